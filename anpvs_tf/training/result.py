"""The record that training ends with: the network on the test examples, and what it costs."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from anpvs_tf.attacks.settings import EVALUATION_BATCH
from anpvs_tf.common.devices import Devices, local
from anpvs_tf.common.progress import Progress
from anpvs_tf.data import loading
from anpvs_tf.evaluation import recording
from anpvs_tf.evaluation.evaluator import Evaluator, PgdAttack, Result
from anpvs_tf.methods.registry import METHODS
from anpvs_tf.networks.gate import gates_of
from anpvs_tf.pruning import efficiency
from anpvs_tf.pruning.frozen import FrozenNetwork
from anpvs_tf.runs import chance
from anpvs_tf.runs.result_record import ResultRecord
from anpvs_tf.runs.settings import Settings

# A target is met if the share that was pruned differs by at most this.
TARGET_TOLERANCE = 0.01


def attack_of(settings: Settings) -> PgdAttack:
    """Makes the attack that judges a run, on validation and test examples."""
    return PgdAttack(
        settings.epsilon, settings.eval_step_size, settings.eval_attack_steps, norm=settings.norm
    )


def final_record(
    settings: Settings,
    network: keras.Model,
    test: loading.Split,
    timings: list[dict[str, Any]],
    epoch: int,
    overfitted_at: int | None = None,
    devices: Devices | None = None,
    after_batch: Callable[[], None] = lambda: None,
) -> ResultRecord:
    """Evaluates a trained network on the test examples.

    Args:
        network: in float32, as it is deployed.
        timings: a row an epoch, as in timings.csv.
        epoch: whose weights `network` has, from 1.
        overfitted_at: the epoch after which catastrophic overfitting ended training.
        devices: None for the local ones.
        after_batch: called after each batch of the evaluation; may raise.
    """
    devices, attack = devices or local(), attack_of(settings)
    progress = Progress("test set: image", len(test))

    def count(done: int, total: int) -> None:
        progress.update(done, total)
        after_batch()

    result = Evaluator(network, attack, EVALUATION_BATCH, True, devices)(test, settings.seed, count)
    seconds = progress.seconds()
    progress.done()
    record = tested(settings, attack, result, network)
    # Labels on disk are not worth a pass over the images.
    labels = [] if settings.stream else test.labels
    record |= chance.recorded(record, chance.of_labels(labels, settings.classes), settings)
    record["epoch"] = epoch
    if overfitted_at is not None:
        record["stopped"] = {"reason": "catastrophic overfitting", "epoch": overfitted_at}
    if settings.target_sparsity is not None and METHODS[settings.method].learned_gates:
        record["target"] = _target(settings, network)
    if devices.is_chief:
        record["efficiency"] = efficiency.report(network)
    record["timing"] = {
        "training_seconds": round(sum(row["seconds"] for row in timings), 1),
        "evaluation_seconds": round(seconds, 1),
    }
    return record


def tested(
    settings: Settings, attack: PgdAttack, result: Result, network: keras.Model
) -> ResultRecord:
    """Makes the record of an evaluation on the test examples."""
    record = recording.record(
        dataset=settings.dataset,
        split="test",
        examples=result.examples,
        norm=attack.norm,
        epsilon=attack.epsilon,
        clean_accuracy=result.clean_accuracy,
        robust_accuracy=result.robust_accuracy,
        settings=settings,
        network=network,
    )
    steps = {"steps": attack.steps, "step_size": attack.step_size, "restarts": 1}
    return record | {
        "attack": {"name": "pgd"} | steps,
        "vulnerability": result.vulnerability,
        "layer_vulnerability": result.layer_vulnerability,
    }


def _target(settings: Settings, network: keras.Model) -> dict[str, Any]:
    """Says which share `target_sparsity` asked for, which was reached, and whether that is met.

    Operations are the multiplications of the frozen network, as it is deployed. As in
    `SparsityTarget`, only gates that learn count.
    """
    gates = gates_of(network)
    if settings.target_of == "operations":
        whole = {
            gate.name: np.ones(gate.features, bool) if gate.trainable else gate.is_open().numpy()
            for gate in gates
        }
        left = FrozenNetwork(network).multiplications
        reached = 1.0 - left / FrozenNetwork(network, open_gates=whole).multiplications
    else:
        learned = {gate.name.removesuffix("_gate") for gate in gates if gate.trainable}
        counts = efficiency.active_features(network)
        reached = efficiency.sparsity({name: counts[name] for name in learned})
    met = abs(reached - settings.target_sparsity) <= TARGET_TOLERANCE
    asked = {"of": settings.target_of, "asked": settings.target_sparsity}
    return asked | {"reached": reached, "met": met}
