"""The training program: data, warm start, epochs, final evaluation, result.

Reads from top to bottom; every file goes through `directory.RunDirectory`.
"""

import contextlib
import dataclasses
import json
import signal
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from anpvs_tf.attacks.settings import EVALUATION_BATCH
from anpvs_tf.common import interruption
from anpvs_tf.common.devices import Devices, local
from anpvs_tf.common.errors import Interrupted, TrainingError, UsageError
from anpvs_tf.common.progress import Progress
from anpvs_tf.data import loading, pipelines
from anpvs_tf.evaluation.evaluator import Evaluator, PgdAttack
from anpvs_tf.methods.registry import METHODS
from anpvs_tf.methods.robust_classifier import RobustClassifier, check_layer_beta
from anpvs_tf.pruning import efficiency
from anpvs_tf.pruning.frozen import FrozenNetwork
from anpvs_tf.runs import build, chance, console
from anpvs_tf.runs.directory import RunDirectory
from anpvs_tf.runs.settings import PRECISIONS, Settings, layer_betas
from anpvs_tf.training import (
    forecast,
    history,
    nonfinite,
    overfitting,
    shrinking,
    tensorboard,
    warm_start,
)
from anpvs_tf.training.best_weights import Best
from anpvs_tf.training.checkpoints import Checkpoints, Position

VALIDATION_EXAMPLES = 1_000


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a run is carried out. It decides nothing of the result, and may change when it goes on.

    Attributes:
        devices: what to train on.
        checkpoint_minutes: save within an epoch too, after this time.
        on_nonfinite: one of `nonfinite.ACTIONS` at a loss or gradient that is not finite: stop,
            or skip the step.
        following: the work of what is trained after this run, if that is a warm start.
    """

    devices: Devices = dataclasses.field(default_factory=local)
    checkpoint_minutes: float = 15.0
    on_nonfinite: str = "stop"
    following: float = 0.0

    @property
    def skips(self) -> bool:
        return self.on_nonfinite == "skip"


def train(
    settings: Settings,
    run: RunDirectory,
    data_dir: str | None = None,
    download: bool = True,
    command: list[str] = (),
    overwrite: bool = False,
    execution: Execution | None = None,
) -> list[dict[str, Any]]:
    """Trains a run to its end, or continues it, and evaluates it on the test set.

    Args:
        settings: what to train.
        run: where; may hold an unfinished run of the same settings.
        data_dir, download: as in `loading.load`.
        command: the command line, kept in config.json.
        overwrite: start anew, deleting the run that is in `run`.
        execution: how; None for the defaults.

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
        return run.results()
    # The network fits the dataset, or raises.
    check_layer_beta(build.build_network(settings, "float32"), layer_betas(settings))
    # What goes on from a checkpoint needs no base any more.
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
    start = "from scratch"
    if run.begun and not overwrite:
        start = "goes on from its last checkpoint"
    elif base is not None:
        start = f"from the weights of {base.path}"
    of_base = None
    if base is not None and not base.finished:
        # A base that was begun goes on as it was begun: only what decides its weights was checked.
        begun = base.config_path.exists()
        of_base = base.settings() if begun else warm_start.base_settings(settings)
        start += f", trained first ({of_base.method}, {of_base.epochs} epochs)"
    print(console.plan(settings, len(data.train), start))
    if of_base is not None:
        print(f"Warm start: training the {of_base.method} network in {base.path}")
        after = execution.following + work_of(settings, data).whole
        of_execution = dataclasses.replace(execution, following=after)
        train(of_base, base, data_dir, download, command, False, of_execution)
    with devices.watched(), _home(devices, run) as home:
        return _train(settings, run, home, data, base, list(command), overwrite, execution)


def _train(
    settings: Settings,
    run: RunDirectory,
    home: RunDirectory,
    data: loading.Dataset,
    base: RunDirectory | None,
    command: list[str],
    overwrite: bool,
    execution: Execution,
) -> list[dict[str, Any]]:
    """`train`, when nothing stands against it.

    Args:
        home: where this worker writes: the chief in `run`.
    """
    devices = execution.devices
    if base is not None:
        print(f"Starting from the weights of {base.path}")

    # ---- Network, objective, optimizer ----
    method = METHODS[settings.method]
    with devices.strategy.scope():
        network = build.build_network(settings, PRECISIONS[settings.precision])
    if base is not None:
        warm_start.copy_weights(base.load_network(), network)
    steps = steps_of_epoch(settings, data)
    objective = build.objective_of(settings, len(data.train), steps)

    def classifier_of(network: keras.Model, shares: dict[str, float] | None) -> RobustClassifier:
        pruning = build.weight_pruning(settings, network) if method.weight_pruning else None
        made = RobustClassifier(network, method, objective, settings.seed, shares, pruning)
        optimizer = build.make_optimizer(settings, settings.epochs * steps, execution.skips)
        # On a CPU, XLA makes the step many times slower (measured with TF 2.21).
        made.compile(optimizer=optimizer, jit_compile=False)
        return made

    # What is evaluated and saved is always the whole network; what is trained may be a
    # smaller one, that is loaded from it and stored back into it.
    with devices.strategy.scope():
        whole = classifier_of(network, None)
        whole.optimizer.build(network.trainable_variables)
        evaluated = build.build_network(settings, "float32")
    removal = shrinking.Removal(network)

    # ---- Evaluation: in float32, on the network as it is deployed ----
    attack = PgdAttack(
        settings.epsilon, settings.eval_step_size, settings.eval_attack_steps, norm=settings.norm
    )
    evaluate = Evaluator(evaluated, attack, EVALUATION_BATCH, devices=devices)
    validation, test = evaluated_splits(settings, data)
    best = Best(evaluated, build.first_selectable_epoch(settings))

    # ---- Resume: the newest checkpoint of this run, else the start ----
    if overwrite:
        home.clear()
    home.begin(settings, command, str(base.path) if base is not None else None)
    position = Position(json.loads(json.dumps(dataclasses.asdict(settings))))
    state, averages = whole.state(), {}
    if whole.averaged_statistics is not None:
        averages = whole.averaged_statistics.state()
        state = {name: held for name, held in state.items() if name not in averages}
    checkpoints = Checkpoints(
        home.checkpoints,
        position,
        network=network,
        optimizer=whole.optimizer,
        method_state=tf.train.Checkpoint(**state),
        averaged_statistics=tf.train.Checkpoint(**averages),
        removal=removal.checkpoint(),
        best=best.checkpoint(),
    )
    # The chief's choice, which holds for the other workers too.
    if number := devices.of_chief(checkpoints.good() or 0):
        absent = checkpoints.restore(run.checkpoints, number, added=("averaged_statistics",))
        if absent and averages:
            whole.averaged_statistics.begin()  # A run of a version that did not average them.
        history.check_columns(run, position, whole.trackers, evaluated)
        print(f"Continuing {run.path} after {position}")
        home.write_metrics(position.rows, position.timings)
    elif home.metrics_path.exists():
        raise UsageError(
            f"the checkpoints of {run.path} are gone, its metrics.csv is not: it cannot go on; "
            "start anew with --overwrite or another --run_dir"
        )

    # ---- Epochs ----
    def stop_if_asked() -> None:
        """Within evaluations. Workers, which must stop together, stop after the next step."""
        if interruption.asked() and devices.workers == 1:
            checkpoints.save()
            raise Interrupted(interruption.asked(), kept_for_later(checkpoints))

    def batches_from_here() -> tf.data.Dataset:
        return pipelines.train_batches(
            data,
            settings.batch_size,
            settings.seed,
            settings.epochs,
            steps,
            position.epoch,
            position.step,
        )

    def skip_or_stop(what: str) -> None:
        epoch, step = position.epoch + 1, position.step + 1
        path = home.nonfinite / f"epoch-{epoch}-step-{step}.npz"
        seen = nonfinite.keep_batch(path, next(iter(batches_from_here())), what)
        position.skip()
        if not execution.skips:
            nonfinite.stop(what, epoch, step, checkpoints, seen)
        if why := position.too_many_skipped():
            nonfinite.stop(what, epoch, step, checkpoints, f"{seen}, {why} that is left out")
        print(f"warning: {what} in epoch {epoch}, step {step}{seen}: left out", file=sys.stderr)

    batches = devices.distribute(batches_from_here(), settings.batch_size)
    batches = pipelines.readable(batches, data.train)
    board = tensorboard.Board(home.tensorboard, settings, position.epoch)
    work = work_of(settings, data)
    coming = forecast.Forecast(work.whole + execution.following)
    update = None
    overfitted = overfitting.noticed(settings, position.rows)
    while position.epoch < settings.epochs and not overfitted:
        epoch = position.epoch + 1
        # What is done at the beginning of an epoch is not done again by a run that goes on in it.
        begins = position.step == 0
        if (begins and settings.shrink and removal.advance(settings.shrink_after)) or not update:
            with devices.strategy.scope():
                classifier, copies = shrinking.working_copy(whole, removal, classifier_of)
            update = None
        if (begins and classifier.begin_epoch(epoch)) or not update:
            update = devices.step(classifier.update)

        progress = Progress(f"epoch {epoch}/{settings.epochs} step", steps)
        before = position.seconds
        while position.step < steps:
            due = checkpoints.minutes() > execution.checkpoint_minutes and devices.is_chief
            terms, (leave, due) = update(next(batches), [bool(interruption.asked()), due])
            if what := nonfinite.culprit(terms):
                skip_or_stop(what)
            else:
                position.add(terms)
            position.seconds = before + progress.seconds()
            progress.update(position.step, f"loss {terms['loss']:.3f}")
            if when := coming.update(work.done(position.epoch, position.step)):
                progress.say(when)
            if leave or due:
                shrinking.store(copies)
                checkpoints.save()
            if leave:
                devices.of_chief(0)  # Whoever leaves first may end the others, the chief too.
                raise Interrupted(
                    interruption.asked() or signal.SIGTERM, kept_for_later(checkpoints)
                )
        if position.skipped == steps:
            nonfinite.stop("no step was finite", epoch, steps, checkpoints)
        shrinking.store(copies)
        evaluated.set_weights(whole.deployed_weights())
        # The losses above were those before the last update.
        spoiled = {w.path: np.nan for w in evaluated.weights if not np.all(np.isfinite(w.numpy()))}
        if what := nonfinite.culprit(spoiled):
            nonfinite.stop(what, epoch, steps, checkpoints)
        # Averages lag behind: what is trained can be lost while what is evaluated is not yet.
        for either in (network, evaluated):
            check_not_collapsed(either, epoch, run)
        result = evaluate(validation, settings.seed, lambda *_: stop_if_asked())
        removal.observe(evaluated)
        terms = position.means() | {"nonfinite": position.skipped}
        row = history.epoch_row(epoch, epoch * steps, terms, result, evaluated)
        timing = history.epoch_timing(epoch, position.seconds, steps * settings.batch_size)
        progress.done(console.epoch_summary(settings, row, timing))
        board.write(row | timing, evaluated, evaluate.examples)
        if settings.select == "best" or overfitting.possible(settings):
            best.offer(epoch, result.robust_accuracy)
        position.end_epoch(row, timing)
        checkpoints.save()
        home.write_metrics(position.rows, position.timings)
        overfitted = overfitting.noticed(settings, position.rows)

    # ---- The result ----
    if overfitted:
        check_good_epoch(position.epoch, int(best.epoch), run)
    evaluated.set_weights(whole.deployed_weights())
    chosen = settings.select == "best" or overfitted
    if chosen:
        best.restore()
    home.write_weights(evaluated)
    progress = Progress("test set: image", len(test))

    def count(done: int, total: int) -> None:
        progress.update(done, total)
        stop_if_asked()

    evaluate = Evaluator(evaluated, attack, EVALUATION_BATCH, True, devices)
    result = evaluate(test, settings.seed, count)
    progress.done()
    record = history.result_record(settings, attack, "test", result, evaluated)
    # Labels on disk are not worth a pass over the images.
    labels = [] if settings.stream else test.labels
    record |= chance.recorded(record, chance.of_labels(labels, settings.classes), settings)
    record["epoch"] = (chosen and int(best.epoch)) or settings.epochs
    if overfitted:
        record["stopped"] = {"reason": "catastrophic overfitting", "epoch": position.epoch}
    if whole.target is not None:
        record["target"] = history.target_record(settings, evaluated)
        print(console.target_summary(record["target"]))
    if devices.is_chief:
        record["efficiency"] = efficiency.report(evaluated)
    record["timing"] = {
        "training_seconds": round(sum(row["seconds"] for row in position.timings), 1),
        "evaluation_seconds": round(progress.seconds(), 1),
    }
    home.write_results([record])
    devices.of_chief(0)  # The other workers may read what the chief has written.
    return [record]


def steps_of_epoch(settings: Settings, data: loading.Dataset) -> int:
    """The steps of an epoch."""
    steps = len(data.train) // settings.batch_size
    return min(steps, settings.steps_per_epoch or steps)


def evaluated_splits(
    settings: Settings, data: loading.Dataset
) -> tuple[loading.Split, loading.Split]:
    """What is evaluated after each epoch, and in the end."""
    validation = data.validation.take(settings.eval_examples or VALIDATION_EXAMPLES)
    return validation, data.test.take(settings.eval_examples)


def work_of(settings: Settings, data: loading.Dataset) -> forecast.Work:
    """How much work a run on these data is."""
    validated, tested = map(len, evaluated_splits(settings, data))
    return forecast.Work(settings, steps_of_epoch(settings, data), validated, tested)


@contextlib.contextmanager
def _home(devices: Devices, run: RunDirectory) -> Iterator[RunDirectory]:
    """Where this worker writes: the chief in `run`, held against other processes.

    The other workers write the same to a temporary directory, because reading a variable
    may need all workers; it is deleted afterwards.
    """
    if devices.is_chief:
        with run.owned():
            yield run
        return
    with tempfile.TemporaryDirectory(prefix="anpvs_tf") as scratch:
        yield RunDirectory(scratch)


def kept_for_later(checkpoints: Checkpoints) -> str:
    """What an interrupted run says last."""
    return f"{checkpoints.kept()}; the same command, or --run_dir alone, goes on"


def check_good_epoch(epoch: int, best: int, run: RunDirectory) -> None:
    """Says that training ends because of catastrophic overfitting, and what is kept.

    Raises:
        TrainingError: there is no epoch to go back to.
    """
    found = (
        f"catastrophic overfitting in epoch {epoch}: accuracy under the training attack rose, "
        "under the validation attack it fell to less than half"
    )
    cure = "more --attack_steps with --train_attack=pgd, or a smaller --learning_rate, prevent it"
    if not best:
        raise TrainingError(
            f"{found}, and no epoch before had the network that was asked for; {cure}; start "
            f"anew with --overwrite ({run.path} keeps the epochs before)"
        )
    print(f"warning: {found}; training ends, epoch {best} is kept; {cure}", file=sys.stderr)


def check_not_collapsed(network: keras.Model, epoch: int, run: RunDirectory) -> None:
    """Raises TrainingError if no feature connects the image to the logits: it cannot recover."""
    try:
        FrozenNetwork(network)
    except UsageError as error:
        counts = efficiency.active_features(network)
        left = ", ".join(f"{layer} {active}/{total}" for layer, (active, total) in counts.items())
        raise TrainingError(
            f"the gates collapsed in epoch {epoch} (active features: {left}); start anew with a "
            "larger --kl_warmup_epochs, a smaller --beta or a smaller --gate_learning_rate "
            f"({run.path} keeps the epochs before)"
        ) from error
