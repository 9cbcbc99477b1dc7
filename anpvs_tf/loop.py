"""The training program: data, warm start, epochs, final evaluation, result.

Reads from top to bottom; every file goes through `runs.RunDirectory`.
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from anpvs_tf import datasets, efficiency, records, runs, shrinking, warm_start
from anpvs_tf.errors import TrainingError, UsageError
from anpvs_tf.evaluation import Attack, Evaluator
from anpvs_tf.freezing import FrozenNetwork
from anpvs_tf.methods import METHODS
from anpvs_tf.optimization import GroupedAdam, learning_rate_schedule
from anpvs_tf.progress import Progress
from anpvs_tf.runs import RunDirectory
from anpvs_tf.selection import Best
from anpvs_tf.settings import PRECISIONS, Settings, layer_betas
from anpvs_tf.training import Objective, RobustClassifier

VALIDATION_EXAMPLES = 1_000
EVALUATION_BATCH = 250


def train(
    settings: Settings,
    run: RunDirectory,
    data_dir: str | None = None,
    download: bool = True,
    command: list[str] = (),
    overwrite: bool = False,
) -> list[dict[str, Any]]:
    """Trains a run to its end, or continues it, and evaluates it on the test set.

    Args:
        settings: what to train.
        run: where; may hold an unfinished run of the same settings.
        data_dir, download: as in `datasets.load`.
        command: the command line, kept in config.json.
        overwrite: start anew, deleting the run that is in `run`.

    Returns:
        The records of results.json.

    Raises:
        UsageError: something cannot be used; nothing was written.
        TrainingError: training had to stop; the message says what is kept.
    """
    # ---- Everything that can be refused, before anything is written ----
    run.check(settings, overwrite)
    if run.finished and not overwrite:
        return run.results()
    runs.build_network(settings, "float32")  # The network fits the dataset, or raises.
    base = warm_start.base_run(settings, run)
    data = datasets.load(settings.dataset, data_dir, download, settings.train_examples)
    if settings.batch_size > len(data.train):
        raise UsageError(
            f"--batch_size={settings.batch_size} is more than the {len(data.train)} training "
            f"examples of {settings.dataset}"
        )

    # ---- The run that training starts from ----
    if base is not None and not base.finished:
        # A base that was begun goes on as it was begun: only what decides its weights was checked.
        begun = base.config_path.exists()
        of_base = base.settings() if begun else warm_start.base_settings(settings)
        print(f"Warm start: training the {of_base.method} network in {base.path}")
        train(of_base, base, data_dir, download, command)
    with run.owned():
        return _train(settings, run, data, base, list(command), overwrite)


def _train(
    settings: Settings,
    run: RunDirectory,
    data: datasets.Dataset,
    base: RunDirectory | None,
    command: list[str],
    overwrite: bool,
) -> list[dict[str, Any]]:
    """`train`, when nothing stands against it."""
    if base is not None:
        print(f"Starting from the weights of {base.path}")

    # ---- Network, objective, optimizer ----
    method = METHODS[settings.method]
    network = runs.build_network(settings, PRECISIONS[settings.precision])
    if base is not None:
        warm_start.copy_weights(base.load_network(), network)
    steps = len(data.train) // settings.batch_size
    steps = min(steps, settings.steps_per_epoch or steps)
    objective = Objective(
        epsilon=settings.epsilon,
        step_size=settings.step_size,
        attack_steps=settings.attack_steps,
        train_examples=len(data.train),
        norm=settings.norm,
        adversarial_weight=settings.adversarial_weight,
        trades_beta=settings.trades_beta,
        weight_decay=settings.weight_decay,
        lambda_vs=settings.lambda_vs,
        vulnerability_reduction=settings.vulnerability_reduction,
        beta=settings.beta,
        layer_beta=layer_betas(settings),
        kl_warmup_steps=settings.kl_warmup_epochs * steps,
        kl_ramp_steps=settings.kl_ramp_epochs * steps,
        epsilon_warmup_steps=settings.epsilon_warmup_epochs * steps,
        kl_scale=settings.kl_scale,
        crafting_draws=settings.crafting_draws,
        awp=settings.awp,
    )

    def classifier_of(network: keras.Model, shares: dict[str, float] | None) -> RobustClassifier:
        made = RobustClassifier(network, method, objective, settings.seed, shares)
        optimizer = make_optimizer(settings, settings.epochs * steps)
        # On a CPU, XLA makes the step many times slower (measured with TF 2.21).
        made.compile(optimizer=optimizer, jit_compile=False)
        return made

    # What is evaluated and saved is always the whole network; what is trained may be a
    # smaller one, that is loaded from it and stored back into it.
    whole = classifier_of(network, None)
    whole.optimizer.build(network.trainable_variables)
    removal = shrinking.Removal(network)

    # ---- Evaluation: in float32, on the network as it is deployed ----
    evaluated = runs.build_network(settings, "float32")
    attack = Attack(
        settings.epsilon, settings.eval_step_size, settings.eval_attack_steps, norm=settings.norm
    )
    evaluate = Evaluator(evaluated, attack, EVALUATION_BATCH)
    validation = data.validation.take(settings.eval_examples or VALIDATION_EXAMPLES)
    test = data.test.take(settings.eval_examples)
    best = Best(evaluated, first_selectable_epoch(settings))

    # ---- Resume: the newest checkpoint of this run, else the start ----
    if overwrite:
        run.clear()
    run.begin(settings, command, str(base.path) if base is not None else None)
    epochs_done = tf.Variable(0, dtype=tf.int64, trainable=False)
    checkpoint = tf.train.Checkpoint(
        network=network,
        optimizer=whole.optimizer,
        epochs_done=epochs_done,
        method_state=tf.train.Checkpoint(**whole.state()),
        removal=removal.checkpoint(),
        best=best.checkpoint(),
    )
    manager = tf.train.CheckpointManager(checkpoint, str(run.checkpoints), max_to_keep=2)
    if manager.latest_checkpoint:
        restore(checkpoint, manager.latest_checkpoint)
        print(f"Continuing {run.path} after epoch {int(epochs_done)}")
    rows: list[dict[str, Any]] = list(run.metrics())[: int(epochs_done)]

    # ---- Epochs ----
    first = int(epochs_done)
    batches = iter(
        datasets.train_batches(
            data, settings.batch_size, settings.seed, settings.epochs, steps, first
        )
    )
    writer = tf.summary.create_file_writer(str(run.tensorboard))
    update = None
    for epoch in range(first + 1, settings.epochs + 1):
        if (settings.shrink and removal.advance(settings.shrink_after)) or update is None:
            classifier, copies = shrinking.working_copy(whole, removal, classifier_of)
            update = None
        if classifier.begin_epoch(epoch) or update is None:
            update = tf.function(classifier.update, autograph=False)
        progress = Progress(f"epoch {epoch}/{settings.epochs} step", steps)
        sums: dict[str, float] = {}
        for step in range(1, steps + 1):
            terms = {name: float(value) for name, value in update(next(batches)).items()}
            check_finite(terms, epoch, step, manager.latest_checkpoint)
            sums = {name: sums.get(name, 0.0) + value for name, value in terms.items()}
            progress.update(step, f"loss {sums['loss'] / step:.3f}")
        seconds = progress.seconds()
        for copy in copies:
            copy.store()
        evaluated.set_weights(whole.deployed_weights())
        removal.observe(evaluated)
        # The losses above were those before the last update.
        spoiled = {w.path: np.nan for w in evaluated.weights if not np.all(np.isfinite(w.numpy()))}
        check_finite(spoiled, epoch, steps, manager.latest_checkpoint)
        check_not_collapsed(evaluated, epoch, run)
        result = evaluate(validation, settings.seed)
        means = {name: total / steps for name, total in sums.items()}
        row = records.epoch_row(epoch, epoch * steps, means, result, evaluated)
        row |= {"seconds": round(seconds, 3)}
        row |= {"images_per_second": round(steps * settings.batch_size / seconds, 1)}
        rows.append(row)
        progress.done(records.epoch_summary(settings, row))
        records.write_tensorboard(writer, row)
        if settings.select == "best":
            best.offer(epoch, result.robust_accuracy)
        epochs_done.assign(epoch)
        # metrics.csv first: a checkpoint without its row could not be made whole again.
        run.write_metrics(rows)
        manager.save()

    # ---- The result ----
    evaluated.set_weights(whole.deployed_weights())
    best.restore()
    run.write_weights(evaluated)
    progress = Progress("test set: image", len(test))
    evaluate = Evaluator(evaluated, attack, EVALUATION_BATCH, prune=True)
    result = evaluate(test, settings.seed, progress.update)
    progress.done()
    record = records.result_record(settings, attack, "test", result, evaluated)
    record["epoch"] = int(best.epoch) or settings.epochs
    record["training_seconds"] = round(sum(float(row["seconds"]) for row in rows), 1)
    record["evaluation_seconds"] = round(progress.seconds(), 1)
    record["efficiency"] = efficiency.report(evaluated)
    run.write_results([record])
    return [record]


def restore(checkpoint: tf.train.Checkpoint, path: str) -> None:
    """Reads a checkpoint.

    Raises:
        UsageError: it is not of this run as this version of the package would train it.
    """
    try:
        checkpoint.restore(path).assert_existing_objects_matched()
    except (AssertionError, ValueError, tf.errors.OpError) as error:
        raise UsageError(
            f"checkpoint {path} cannot be continued: it is damaged, or of another version of "
            "anpvs_tf; start anew with --overwrite or another --run_dir"
        ) from error


def first_selectable_epoch(settings: Settings) -> int:
    """The first epoch whose network is what was asked for: all warm-ups are over."""
    method = METHODS[settings.method]
    begins = 0
    if method.adversarial:
        begins = settings.epsilon_warmup_epochs
    if method.learned_gates:
        begins = max(begins, settings.kl_warmup_epochs + settings.kl_ramp_epochs)
    return min(begins + 1, settings.epochs)


def make_optimizer(settings: Settings, total_steps: int) -> keras.optimizers.Optimizer:
    """Adam with the published schedule; loss scaling for float16."""
    optimizer = GroupedAdam(
        learning_rate_schedule(
            settings.learning_rate, total_steps, settings.decay_at, settings.decay
        ),
        settings.gate_learning_rate / settings.learning_rate,
        settings.weight_average,
    )
    if settings.precision == "float16":
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def check_finite(terms: dict[str, float], epoch: int, step: int, kept: str | None) -> None:
    """Raises TrainingError if a loss term is not finite."""
    # The sum last: a term that spoils it is the better name.
    for name, value in sorted(terms.items(), key=lambda item: item[0] == "loss"):
        if not np.isfinite(value):
            keeps = f"the last good checkpoint is {kept}" if kept else "no checkpoint exists yet"
            raise TrainingError(
                f"{name} became {value} in epoch {epoch}, step {step}; {keeps}; "
                "a lower --learning_rate or --precision=float32 may help"
            )


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
