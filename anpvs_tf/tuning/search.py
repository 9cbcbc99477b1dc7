"""The search: trials one after the other, in one process or as a chief and its workers.

keras-tuner's environment variables say which: without KERASTUNER_ORACLE_IP this process
does all; with it, the process whose KERASTUNER_TUNER_ID contains "chief" decides on the
trials and trains none, and the others ask it. All share the sweep's directory.
"""

import contextlib
import gc
import pathlib
import socket
import sys
import threading
import time
from collections.abc import Iterator

import grpc
import keras
import keras_tuner
import tensorflow as tf
from keras_tuner.engine.base_tuner import BaseTuner
from keras_tuner.engine.trial import Trial, TrialStatus
from keras_tuner.src import config

from anpvs_tf.common import lock
from anpvs_tf.common.errors import Interrupted, InUse, TrainingError, UsageError, one_line
from anpvs_tf.common.files import write_atomically
from anpvs_tf.runs.directory import RunDirectory
from anpvs_tf.runs.finished_run import open_run
from anpvs_tf.runs.settings import Settings
from anpvs_tf.tuning import oracles, score, table
from anpvs_tf.tuning.remaining import Remaining
from anpvs_tf.tuning.role import CHIEF_SECONDS, Role, own_role
from anpvs_tf.tuning.sweep import Sweep, wait_until

# By default keras-tuner prints the traceback of each failed trial; the trial's file has it.
config.DEBUG = False


class TrainingRuns(keras_tuner.HyperModel):
    """The hypermodel that is tuned. A model of keras-tuner is here the settings of a run."""

    def __init__(self, sweep: Sweep):
        super().__init__()
        self.sweep = sweep

    def declare_hyperparameters(self, hp: keras_tuner.HyperParameters) -> None:
        for name, swept in self.sweep.space.swept.items():
            swept.declare(name, hp)

    def build(self, hp: keras_tuner.HyperParameters) -> Settings:
        """Makes the settings of a trial; raises UsageError if the values do not fit together."""
        return self.sweep.settings_of(hp.values)

    def fit(self, hp: keras_tuner.HyperParameters, model: Settings, run: RunDirectory) -> float:
        """Trains a trial, or what is left of it; returns its score.

        Raises:
            UsageError, TrainingError, Interrupted: as `trainer.train`.
        """
        self.sweep.train(model, run)
        return self.sweep.objective.score(score.validation_figures(open_run(run.path)))


class RunTuner(BaseTuner):
    """Trains trials as run directories."""

    def __init__(self, sweep: Sweep):
        self.sweep = sweep
        self.idle = False
        definition = sweep.definition
        super().__init__(
            oracles.make(
                definition.tuner, sweep.trials, definition.search_seed, epochs=sweep.longest
            ),
            TrainingRuns(sweep),
            directory=str(sweep.path),
            project_name=table.TUNER,
        )
        # By this file keras-tuner knows that there is something to reload.
        self.save()
        # A worker uses the chief's oracle, and the chief says how much remains.
        self.remaining = None if own_role().name == "worker" else Remaining(self.oracle)

    def pre_create_trial(self) -> None:
        if self.idle:  # The oracle had no trial when it was last asked.
            wait_until(lambda: False, seconds=1.0)
        self.idle = True

    def on_trial_begin(self, trial: Trial) -> None:
        self.idle = False
        keras.backend.clear_session()
        gc.collect()

    def run_trial(self, trial: Trial, **_) -> float:
        run = self.sweep.run_of(trial.trial_id)
        print(
            f"{run.path.name}: {table.values_text(self.sweep, trial.hyperparameters.values)}",
            flush=True,
        )
        reason = table.reason_path(self.sweep.path, trial.trial_id)
        try:
            chosen = self.hypermodel.build(trial.hyperparameters)
            return self.hypermodel.fit(trial.hyperparameters, chosen, run)
        except Interrupted as error:
            raise keras_tuner.errors.FatalError from error
        except Exception as error:
            # An error of the machine would meet the other trials too.
            if isinstance(error, OSError) or isinstance(
                error.__cause__, OSError | tf.errors.OpError
            ):
                raise keras_tuner.errors.FatalError from error
            reason.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(reason, one_line(error) + "\n")
            print(f"{run.path.name} failed: {one_line(error)}", file=sys.stderr)
            raise keras_tuner.errors.FailedTrialError(one_line(error)) from error

    def on_trial_end(self, trial: Trial) -> None:
        super().on_trial_end(trial)
        if trial.status == TrialStatus.COMPLETED:
            print(f"{self.sweep.run_of(trial.trial_id).path.name} is done", flush=True)
        if own_role().name == "alone":
            table.write(self.sweep)
            print(self.remaining.text(), flush=True)


def run(sweep: Sweep) -> None:
    """Runs the sweep, or this process's part of it; resumes it if it was begun.

    Raises:
        UsageError: it cannot begin or resume here; nothing was written.
        TrainingError: the machine failed; the same command resumes the sweep.
        Interrupted: a signal asked for it; the state is saved.
    """
    own = own_role()
    if own.name == "worker":
        _work(sweep, own)
        return
    sweep.check()
    if sweep.finished:
        return
    if own.name == "chief":
        _check_port(own)
    with lock.owned(sweep.path, "--run_dir"):
        sweep.begin()
        tuner = _tuner(sweep)
        if own.name == "chief":
            _lead(sweep, tuner, own)
        else:
            _search(tuner)
        table.write(sweep, finished=True)


def _tuner(sweep: Sweep) -> RunTuner:
    with contextlib.redirect_stdout(None):  # keras-tuner prints what it reloads.
        return RunTuner(sweep)


def _search(tuner: RunTuner) -> None:
    try:
        tuner.search(verbose=0)
    except keras_tuner.errors.FatalError as fatal:
        cause = fatal.__cause__
        if isinstance(cause, OSError):
            raise TrainingError(f"{one_line(cause)}; the same command resumes the sweep") from cause
        raise (cause or fatal) from None


# ---- Chief ----


def _check_port(own: Role) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((own.ip, own.port))
        except OSError as error:
            raise UsageError(f"cannot serve on {own.ip}:{own.port}: {error.strerror}") from error


def _lead(sweep: Sweep, tuner: RunTuner, own: Role) -> None:
    """Serves the oracle until all trials are done and all workers that live know it.

    keras-tuner's own chief would wait for workers that died, for ever.
    """
    oracle = tuner.oracle
    threading.Thread(target=tuner.search, kwargs={"verbose": 0}, daemon=True).start()
    print(f"Serving {sweep.path} on {own.ip}:{own.port}", flush=True)
    ended = -1
    while not (oracle.stopped and not oracle.tuners()):
        wait_until(lambda: False, seconds=1.0)
        for tuner_id in oracle.tuners():
            if not lock.in_use(_place_of(sweep, tuner_id)):
                print(f"{tuner_id} is gone; its trial goes to the next worker", file=sys.stderr)
                oracle.release(tuner_id)
        if (now := tuner.remaining.ended()) != ended:
            ended = now
            print(tuner.remaining.text(), flush=True)
            table.write(sweep)
    time.sleep(1.0)  # The last answer is on its way.


# ---- Worker ----


def _place_of(sweep: Sweep, tuner_id: str) -> pathlib.Path:
    """Returns the directory that a worker holds as long as it lives."""
    return sweep.path / "workers" / tuner_id


@contextlib.contextmanager
def _alive(sweep: Sweep, own: Role) -> Iterator[None]:
    place = _place_of(sweep, own.tuner_id)
    with contextlib.ExitStack() as stack:
        for attempts_left in reversed(range(5)):
            try:
                stack.enter_context(lock.owned(place, "KERASTUNER_TUNER_ID"))
                break
            except InUse:  # By another worker, or by the chief that looks.
                if not attempts_left:
                    raise UsageError(
                        f"another worker is KERASTUNER_TUNER_ID={own.tuner_id}; choose another id"
                    ) from None
                time.sleep(0.2)
        yield


def _work(sweep: Sweep, own: Role) -> None:
    def served() -> bool:
        if sweep.finished:
            return True
        try:
            socket.create_connection((own.ip, own.port), timeout=5).close()
        except OSError:
            return False
        return True

    if not wait_until(served, CHIEF_SECONDS):
        raise UsageError(f"no chief answers on {own.ip}:{own.port}; start it first")
    sweep.check()
    if sweep.finished:
        return
    with _alive(sweep, own):
        try:
            _search(_tuner(sweep))
        except grpc.RpcError as error:
            raise TrainingError(
                f"the chief on {own.ip}:{own.port} is gone ({one_line(error)}); start it and "
                "the workers again: they resume"
            ) from error
