"""The training program: data, warm start, epochs, final evaluation, result.

Reads from top to bottom; every file goes through `directory.RunDirectory`.
"""

import dataclasses
import json
import os
import pathlib
import signal
import sys
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from anpvs_tf.attacks.settings import EVALUATION_BATCH
from anpvs_tf.common import interruption
from anpvs_tf.common.errors import Interrupted, UsageError
from anpvs_tf.common.progress import Progress
from anpvs_tf.data import loading, pipelines
from anpvs_tf.evaluation.evaluator import Evaluator
from anpvs_tf.methods.registry import METHODS
from anpvs_tf.methods.robust_classifier import RobustClassifier, check_layer_beta
from anpvs_tf.runs import build, console
from anpvs_tf.runs.directory import RunDirectory
from anpvs_tf.runs.finished_run import open_run
from anpvs_tf.runs.result_record import ResultRecord
from anpvs_tf.runs.settings import PRECISIONS, Settings, layer_betas
from anpvs_tf.tracking.tensorboard import Board
from anpvs_tf.tracking.tracked_run import TrackedRun, following
from anpvs_tf.training import (
    forecast,
    history,
    nonfinite,
    overfitting,
    shrinking,
    warm_start,
)
from anpvs_tf.training.best_weights import Best
from anpvs_tf.training.checkpoints import Checkpoints, Position
from anpvs_tf.training.collapse import check_not_collapsed
from anpvs_tf.training.execution import Execution, home_of
from anpvs_tf.training.result import attack_of, final_record
from anpvs_tf.training.work import evaluated_splits, steps_of_epoch, work_of


def train(
    settings: Settings,
    run: RunDirectory,
    data_dir: str | None = None,
    download: bool = True,
    command: list[str] = (),
    overwrite: bool = False,
    execution: Execution | None = None,
    network_file: str | os.PathLike | None = None,
) -> list[ResultRecord]:
    """Trains a run to its end, resuming it if it was begun, and evaluates it on the test set.

    Args:
        settings: what to train.
        run: where; may hold an unfinished run of the same settings.
        data_dir, download: as in `loading.load`.
        command: the command line, kept in config.json.
        overwrite: start anew, deleting the run that is in `run`.
        execution: how; None for the defaults.
        network_file: the Keras model file that the network is made from, if it is made from one;
            the run keeps a copy, and uses that from then on.

    Returns:
        The records of results.json.

    Raises:
        UsageError: something cannot be used; nothing was written.
        TrainingError: training had to stop; the message says what is kept.
        Interrupted: a signal asked for it (`interruption`); the state is saved.
    """
    # ---- Everything that can be refused, before anything is written ----
    execution = execution or Execution()
    devices = execution.devices
    run.check(settings, overwrite)
    if run.finished and not overwrite:
        if devices.is_chief and execution.trackers:
            with run.owned(), following(run, execution.trackers):
                pass  # They are told what they missed.
        return run.results()
    file = run.network_file(settings, network_file, overwrite)
    # The network fits the dataset, or raises.
    remarks: list[str] = []
    network = build.build_network(settings, "float32", file, remarks.append)
    check_layer_beta(network, layer_betas(settings))
    if settings.shrink:
        shrinking.check(network)
    # A run that resumes from a checkpoint needs no base any more.
    base = None if run.begun and not overwrite else warm_start.base_run(settings, run)
    data = loading.load(
        settings.source,
        data_dir,
        download,
        settings.train_examples,
        settings.stream,
        check=not run.begun,
    )
    if settings.batch_size > len(data.train):
        raise UsageError(
            f"--batch_size={settings.batch_size} is more than the {len(data.train)} training "
            f"examples of {settings.dataset}"
        )
    devices.check(settings.batch_size)
    devices.agree(repr(settings))  # And all workers have looked before the chief writes.

    # ---- The run that training starts from ----
    start = f"from the weights of {settings.network}" if settings.pretrained else "from scratch"
    if run.begun and not overwrite:
        start = "resumes from its last checkpoint"
    elif base is not None:
        start = f"from the weights of {base.path}"
    of_base = None
    if base is not None and not base.finished:
        # A base that was begun resumes as it was begun: only what decides its weights was checked.
        begun = base.config_path.exists()
        of_base = base.settings() if begun else warm_start.base_settings(settings)
        start += f", trained first ({of_base.method}, {of_base.epochs} epochs)"
    print(console.plan(settings, len(data.train), start))
    for remark in remarks:
        print(remark)
    if of_base is not None:
        print(f"Warm start: training the {of_base.method} network in {base.path}")
        after = execution.following + work_of(settings, data).whole
        of_execution = dataclasses.replace(execution, following=after)
        train(of_base, base, data_dir, download, command, False, of_execution, file)
    with devices.watched(), home_of(devices, run) as home:
        trainer = Trainer(settings, run, home, data, base, execution, file)
        trainer.resume(list(command), overwrite)
        with trainer.tracked.ended():
            while not trainer.done:
                trainer.run_epoch()
                trainer.end_epoch()
            return trainer.finish()


class Trainer:
    """A run while it is trained: `resume`; `run_epoch` and `end_epoch` until `done`; `finish`.

    The whole network is evaluated and saved. The network that is trained may be a smaller
    one, which is loaded from the whole network and stored back into it.

    Args:
        settings: what to train.
        run: where; all that can be refused was (`train`).
        home: where this worker writes: the chief in `run`.
        data: the run's.
        base: a finished run, whose weights training starts from; None to start from scratch.
        execution: how.
        network_file: that the network is made from (`RunDirectory.network_file`).
    """

    def __init__(
        self,
        settings: Settings,
        run: RunDirectory,
        home: RunDirectory,
        data: loading.Dataset,
        base: RunDirectory | None,
        execution: Execution,
        network_file: pathlib.Path | None = None,
    ):
        self.settings, self.run, self.home, self.data = settings, run, home, data
        self.base, self.execution, self.devices = base, execution, execution.devices
        self.network_file = network_file
        if base is not None:
            print(f"Starting from the weights of {base.path}")
        self.method = METHODS[settings.method]
        with self.devices.strategy.scope():
            dtype = PRECISIONS[settings.precision]
            self.network = build.build_network(settings, dtype, network_file)
        if base is not None:
            warm_start.copy_weights(open_run(base.path).network(), self.network)
        self.steps = steps_of_epoch(settings, data)
        self.objective = build.objective_of(settings, len(data.train), self.steps)
        with self.devices.strategy.scope():
            self.whole = self._classifier_of(self.network, None)
            self.evaluated = build.build_network(settings, "float32", network_file)
        self.removal = shrinking.Removal(self.network)
        # In float32, on the network as it is deployed.
        attack = attack_of(settings)
        self.evaluate = Evaluator(self.evaluated, attack, EVALUATION_BATCH, devices=self.devices)
        self.validation, self.test = evaluated_splits(settings, data)
        self.best = Best(self.evaluated, build.first_selectable_epoch(settings))
        self.position = Position(json.loads(json.dumps(dataclasses.asdict(settings))))
        self.checkpoints = self._checkpoints()
        # Of the epochs; the first one that is run makes the classifier and its compiled update.
        self.classifier: RobustClassifier | None = None
        self.copies: list[shrinking.Pair] = []
        self.update: Callable | None = None
        self.overfitted = False

    def _classifier_of(
        self, network: keras.Model, shares: dict[str, float] | None
    ) -> RobustClassifier:
        settings, pruning = self.settings, None
        if self.method.weight_pruning:
            pruning = build.weight_pruning(settings, network)
        made = RobustClassifier(
            network,
            self.method,
            self.objective,
            settings.seed,
            shares,
            pruning,
            self.devices.xla,
        )
        optimizer = build.make_optimizer(
            settings, settings.epochs * self.steps, self.execution.skips
        )
        # On a CPU, XLA makes the step many times slower (measured with TF 2.21).
        made.compile(optimizer=optimizer, jit_compile=False)
        return made

    def _checkpoints(self) -> Checkpoints:
        state, averages = self.whole.state(), {}
        if self.whole.averaged_statistics is not None:
            averages = self.whole.averaged_statistics.state()
            state = {name: held for name, held in state.items() if name not in averages}
        return Checkpoints(
            self.home.checkpoints,
            self.position,
            network=self.network,
            optimizer=self.whole.optimizer,
            method_state=tf.train.Checkpoint(**state),
            averaged_statistics=tf.train.Checkpoint(**averages),
            removal=self.removal.checkpoint(),
            best=self.best.checkpoint(),
        )

    # ---- Resume: the newest checkpoint of this run, else the start ----

    def resume(self, command: list[str], overwrite: bool) -> None:
        """Restores the newest good checkpoint, or begins the run.

        Raises:
            UsageError: the run was begun and none of its checkpoints can be used.
        """
        home, position, settings = self.home, self.position, self.settings
        if overwrite:
            home.clear()
        of_base = str(self.base.path) if self.base is not None else None
        home.begin(settings, command, of_base, network_file=self.network_file)
        # The chief's choice, which holds for the other workers too.
        if number := self.devices.of_chief(self.checkpoints.good() or 0):
            self.checkpoints.restore(self.run.checkpoints, number)
            history.check_columns(self.run, position, self.whole.trackers, self.evaluated)
            print(f"Resuming {self.run.path} after {position}")
            home.write_metrics(position.rows, position.timings)
        elif home.metrics_path.exists():
            raise UsageError(
                f"the checkpoints of {self.run.path} are gone, its metrics.csv is not: it cannot "
                "be resumed; start anew with --overwrite or another --run_dir"
            )
        own = self._batches_from_here(self.devices.worker, self.devices.workers)
        batches = self.devices.distribute(own, settings.batch_size)
        self.batches = pipelines.readable(batches, self.data.train)
        self.board = Board()
        self.board.begin(home, settings, position.epoch, None)
        self.tracked = TrackedRun(home, self.execution.trackers if self.devices.is_chief else ())
        rows = zip(position.rows, position.timings, strict=True)
        self.tracked.begin([row | timing for row, timing in rows])
        self.work = work_of(settings, self.data)
        self.coming = forecast.Forecast(self.work.whole + self.execution.following)
        self.overfitted = overfitting.noticed(settings, position.rows)

    def _batches_from_here(self, worker: int = 0, workers: int = 1) -> tf.data.Dataset:
        settings, position = self.settings, self.position
        return pipelines.train_batches(
            self.data,
            settings.batch_size,
            settings.seed,
            settings.epochs,
            self.steps,
            position.epoch,
            position.step,
            worker,
            workers,
        )

    @property
    def done(self) -> bool:
        """Whether no epoch is left, or training ends because of catastrophic overfitting."""
        return self.position.epoch >= self.settings.epochs or self.overfitted

    # ---- An epoch ----

    def run_epoch(self) -> None:
        """Takes the steps that are left of this epoch.

        Raises:
            Interrupted: a signal asked for it; the state is saved.
            TrainingError: a step is not finite, and execution does not skip it.
            LockLost: another process has taken over the run directory.
        """
        position, epoch = self.position, self.position.epoch + 1
        self._prepare_update(epoch)
        self.progress = Progress(f"epoch {epoch}/{self.settings.epochs} step", self.steps)
        before = position.seconds
        while position.step < self.steps:
            self.home.check_owned(look=False)
            due = self.checkpoints.minutes() > self.execution.checkpoint_minutes
            wishes = [bool(interruption.asked()), due and self.devices.is_chief]
            terms, (leave, due) = self.update(next(self.batches), wishes)
            if what := nonfinite.culprit(terms):
                self._skip_or_stop(what)
            else:
                position.add(terms)
            position.seconds = before + self.progress.seconds()
            self.progress.update(position.step, f"loss {terms['loss']:.3f}")
            if when := self.coming.update(self.work.done(position.epoch, position.step)):
                self.progress.say(when)
            if leave or due:
                shrinking.store(self.copies)
                self.checkpoints.save()
            if leave:
                # The worker that leaves first may end the others, the chief too.
                self.devices.of_chief(0)
                raise Interrupted(
                    interruption.asked() or signal.SIGTERM, kept_for_later(self.checkpoints)
                )
        if position.skipped == self.steps:
            nonfinite.stop("no step was finite", epoch, self.steps, self.checkpoints)
        shrinking.store(self.copies)

    def _prepare_update(self, epoch: int) -> None:
        """Makes the classifier and its compiled update, if they are stale."""
        # A run that resumes within an epoch does not begin the epoch again.
        begins = self.position.step == 0
        settings, removal = self.settings, self.removal
        shrinks = begins and settings.shrink and removal.advance(settings.shrink_after)
        if shrinks or not self.update:
            with self.devices.strategy.scope():
                self.classifier, self.copies = shrinking.working_copy(
                    self.whole, removal, self._classifier_of
                )
            self.update = None
        if (begins and self.classifier.begin_epoch(epoch)) or not self.update:
            self.update = self.devices.step(self.classifier.update)

    def _skip_or_stop(self, what: str) -> None:
        """Keeps the batch of a step that was not finite, and leaves the step out or stops."""
        epoch, step = self.position.epoch + 1, self.position.step + 1
        path = self.home.nonfinite / f"epoch-{epoch}-step-{step}.npz"
        seen = nonfinite.keep_batch(path, next(iter(self._batches_from_here())), what)
        self.position.skip()
        if not self.execution.skips:
            nonfinite.stop(what, epoch, step, self.checkpoints, seen)
        if why := self.position.too_many_skipped():
            why = f"{seen}, {why} that is left out"
            nonfinite.stop(what, epoch, step, self.checkpoints, why)
        print(f"warning: {what} in epoch {epoch}, step {step}{seen}: left out", file=sys.stderr)

    def end_epoch(self) -> None:
        """Evaluates the network on the validation examples, and saves the state.

        Raises:
            Interrupted: as `run_epoch`.
            TrainingError: weights are not finite, or all paths through the network are closed.
            LockLost: as `run_epoch`.
        """
        settings, position, epoch = self.settings, self.position, self.position.epoch + 1
        evaluated = self.evaluated
        evaluated.set_weights(self.whole.deployed_weights())
        # The losses above were those before the last update.
        spoiled = {w.path: np.nan for w in evaluated.weights if not np.all(np.isfinite(w.numpy()))}
        if what := nonfinite.culprit(spoiled):
            nonfinite.stop(what, epoch, self.steps, self.checkpoints)
        # Averages lag behind: the trained network can be lost while the evaluated one is not yet.
        for either in (self.network, evaluated):
            check_not_collapsed(either, epoch, self.run)
        result = self.evaluate(self.validation, settings.seed, lambda *_: self._stop_if_asked())
        self.removal.observe(evaluated)
        terms = position.means() | {"nonfinite": position.skipped}
        row = history.epoch_row(epoch, epoch * self.steps, terms, result, evaluated)
        timing = history.epoch_timing(epoch, position.seconds, self.steps * settings.batch_size)
        self.home.check_owned()
        self.progress.done(console.epoch_summary(settings, row, timing))
        self.board.epoch(row | timing, evaluated, self.evaluate.examples)
        if settings.select == "best" or overfitting.possible(settings):
            self.best.offer(epoch, result.robust_accuracy)
        position.end_epoch(row, timing)
        self.checkpoints.save()
        self.home.write_metrics(position.rows, position.timings)
        self.tracked.epoch(row | timing, evaluated, self.evaluate.examples)
        self.overfitted = overfitting.noticed(settings, position.rows)

    def _stop_if_asked(self) -> None:
        """Saves the state and raises Interrupted if a signal asked for it during an evaluation.

        Several workers, which must stop together, stop after the next step instead.
        """
        if interruption.asked() and self.devices.workers == 1:
            self.checkpoints.save()
            raise Interrupted(interruption.asked(), kept_for_later(self.checkpoints))

    # ---- The result ----

    def finish(self) -> list[ResultRecord]:
        """Evaluates the chosen network on the test examples; writes weights and results.

        Returns:
            The records of results.json.

        Raises:
            Interrupted: as `run_epoch`.
            TrainingError: training ends because of catastrophic overfitting, and no epoch
                before it can be kept.
        """
        settings, position, evaluated = self.settings, self.position, self.evaluated
        if self.overfitted:
            overfitting.check_good_epoch(position.epoch, int(self.best.epoch), self.run)
        evaluated.set_weights(self.whole.deployed_weights())
        chosen = settings.select == "best" or self.overfitted
        if chosen:
            self.best.restore()
        self.home.write_weights(evaluated)
        record = final_record(
            settings,
            evaluated,
            self.test,
            position.timings,
            (chosen and int(self.best.epoch)) or settings.epochs,
            position.epoch if self.overfitted else None,
            self.devices,
            self._stop_if_asked,
        )
        if "target" in record:
            print(console.target_summary(record["target"]))
        self.home.write_results([record])
        self.tracked.result(record)
        self.devices.of_chief(0)  # The other workers may read what the chief has written.
        return [record]


def kept_for_later(checkpoints: Checkpoints) -> str:
    """Returns the last line of an interrupted run."""
    return f"{checkpoints.kept()}; the same command, or --run_dir alone, resumes it"
