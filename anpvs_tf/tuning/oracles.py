"""keras-tuner's oracles, made to last: they lose no trial when a process dies at any time.

An oracle says which trial is next and keeps what it knows in files. keras-tuner's own
write these in place, know nothing of a trial whose process died between two of them, and
their grid search does not find its place again.
"""

import itertools
import json
import math
import pathlib
from typing import Any

import keras_tuner
from keras_tuner.engine.trial import Trial, TrialStatus

from anpvs_tf.common.files import write_atomically

SCORE = "score"
_TRIAL = "trial.json"


class Lasting:
    """The part that all oracles share; it comes before the oracle in the bases of a class.

    Attributes:
        stopped: a tuner was told that the sweep is done.
    """

    stopped = False

    def save(self) -> None:
        write_atomically(pathlib.Path(self._get_oracle_fname()), json.dumps(self.get_state()))

    def _save_trial(self, trial: Trial) -> None:
        path = pathlib.Path(self._get_trial_dir(trial.trial_id)) / _TRIAL
        write_atomically(path, json.dumps(trial.get_state()))

    def reload(self) -> None:
        super().reload()
        # A trial's file is written first: one that the state does not know was not handed out.
        for trial_id in set(self.trials) - set(self.start_order):
            (pathlib.Path(self._get_trial_dir(trial_id)) / _TRIAL).unlink()
            del self.trials[trial_id]
        # The trial's file is also the first to say that the trial is done.
        running = (t.trial_id for t in self.trials.values() if t.status == TrialStatus.RUNNING)
        self._retry_queue = sorted(running, reverse=True)

    @keras_tuner.synchronized
    def create_trial(self, tuner_id: str) -> Trial:
        """Returns the next trial; if none is left while others run, the answer is to wait.

        A trial that runs may come back: that of a tuner that dies.
        """
        trial = super().create_trial(tuner_id)
        if trial.status == TrialStatus.STOPPED:
            if self.ongoing_trials:
                trial.status = TrialStatus.IDLE
                self.tuner_ids.add(tuner_id)
            else:
                self.stopped = True
        return trial

    @keras_tuner.synchronized
    def tuners(self) -> set[str]:
        """Returns the ids of the tuners that were not told yet that the sweep is done."""
        return set(self.tuner_ids) | set(self.ongoing_trials)

    @keras_tuner.synchronized
    def release(self, tuner_id: str) -> None:
        """Gives the trial of a tuner that died to the next tuner that asks."""
        self.tuner_ids.discard(tuner_id)
        trial = self.ongoing_trials.pop(tuner_id, None)
        if trial is not None:
            self._retry_queue.append(trial.trial_id)
            self.save()

    def planned(self) -> list[int]:
        """Lists the work of each trial of the whole sweep, as `work` measures it."""
        return [1] * self.max_trials


def work(trial: Trial) -> int:
    """Measures the work of a trial: its epochs where hyperband decides on them, else 1."""
    return trial.hyperparameters.values.get("tuner/epochs", 1)


class Random(Lasting, keras_tuner.oracles.RandomSearchOracle):
    pass


class Bayesian(Lasting, keras_tuner.oracles.BayesianOptimizationOracle):
    def populate_space(self, trial_id: str) -> dict[str, Any]:
        response = super().populate_space(trial_id)
        if self._duplicate(response["values"] or {}):
            return self._random_populate_space()
        return response


class Hyperband(Lasting, keras_tuner.oracles.HyperbandOracle):
    def planned(self) -> list[int]:
        return [
            self._get_epochs(bracket, number)
            for bracket in range(self._get_num_brackets())
            for number in range(self._get_num_rounds(bracket))
            for _ in range(self._get_size(bracket, number))
        ]


class Grid(Lasting, keras_tuner.Oracle):
    """All combinations of the choices, the last hyperparameter changing fastest."""

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        space = self.hyperparameters.space
        combinations = itertools.product(*(one.values for one in space))
        values = next(itertools.islice(combinations, len(self.trials), None), None)
        if values is None:
            return {"status": TrialStatus.STOPPED}
        names = [one.name for one in space]
        return {"status": TrialStatus.RUNNING, "values": dict(zip(names, values, strict=True))}

    def planned(self) -> list[int]:
        combinations = math.prod(len(one.values) for one in self.hyperparameters.space)
        return [1] * min(combinations, self.max_trials or combinations)


# By the names of `names.TUNERS`.
_ORACLES = {"random": Random, "bayesian": Bayesian, "hyperband": Hyperband, "grid": Grid}


def make(tuner: str, trials: int | None, seed: int, epochs: int) -> Lasting:
    """Makes an oracle by a name of `names.TUNERS`.

    Args:
        trials: the most trials; None for no limit.
        epochs: of the longest trial; for hyperband.
    """
    size = {"max_epochs": epochs} if tuner == "hyperband" else {"max_trials": trials}
    return _ORACLES[tuner](
        objective=keras_tuner.Objective(SCORE, "max"),
        # keras-tuner takes seed 0 for no seed, and then draws one.
        seed=seed + 1,
        # keras-tuner compares their number with ==: with None, failed trials do not end a sweep.
        max_consecutive_failed_trials=None,
        **size,
    )
