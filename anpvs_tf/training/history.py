"""The rows of metrics.csv and the result record of a training run."""

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from anpvs_tf.common.errors import UsageError
from anpvs_tf.evaluation.evaluator import PgdAttack, Result
from anpvs_tf.networks.gate import gates_of
from anpvs_tf.pruning import efficiency
from anpvs_tf.pruning.frozen import FrozenNetwork
from anpvs_tf.runs import directory
from anpvs_tf.runs.settings import Settings
from anpvs_tf.training.checkpoints import Position


def epoch_row(
    epoch: int, step: int, terms: dict[str, float], result: Result, network: keras.Model
) -> dict[str, Any]:
    """The row of metrics.csv of an epoch, without its times."""
    counts = efficiency.active_features(network)
    return {
        "epoch": epoch,
        "step": step,
        **terms,
        "validation_clean_accuracy": result.clean_accuracy,
        "validation_robust_accuracy": result.robust_accuracy,
        "validation_vulnerability": result.vulnerability,
        **{f"active_{layer}": active for layer, (active, _) in counts.items()},
        "sparsity": efficiency.sparsity(counts),
    }


def epoch_timing(epoch: int, seconds: float, images: int) -> dict[str, Any]:
    """The row of timings.csv of an epoch: of its steps, without the validation."""
    return {
        "epoch": epoch,
        "seconds": round(seconds, 3),
        "images_per_second": round(images / seconds, 1),
    }


def check_columns(
    run: directory.RunDirectory, position: Position, terms: Iterable[str], network: keras.Model
) -> None:
    """Refuses to go on with tables that would get rows of two kinds.

    Args:
        position: where the run stands, as its checkpoint says.
        terms: the loss terms of a step now.

    Raises:
        UsageError: the version of the package that began the run has other columns.
    """
    sums = dict.fromkeys(terms, 0.0)
    row = epoch_row(0, 0, sums, Result(0, 0.0, 0.0, 0.0, {}), network)
    held = [(one, row) for one in position.rows]
    held += [(one, epoch_timing(0, 1.0, 0)) for one in position.timings]
    held += [(position.sums, sums)] if position.sums else []
    gone = sorted({name for old, new in held for name in old.keys() - new.keys()})
    added = sorted({name for old, new in held for name in new.keys() - old.keys()})
    differences = [f"without {name}" for name in gone] + [f"with {name}" for name in added]
    if differences:
        raise UsageError(
            f"{run.path} was begun by another version of anpvs_tf; this one writes metrics.csv "
            f"and timings.csv {', '.join(differences)}: go on with the version that began it, or "
            "train into another --run_dir"
        )


# A target is met if the share that was pruned differs by at most this.
TARGET_TOLERANCE = 0.01


def target_record(settings: Settings, network: keras.Model) -> dict[str, Any]:
    """What `target_sparsity` asked for, and what has come of it.

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


def result_record(
    settings: Settings, attack: PgdAttack, split: str, result: Result, network: keras.Model
) -> dict[str, Any]:
    """A record of results.json."""
    counts = efficiency.active_features(network)
    return {
        "dataset": settings.dataset,
        "split": split,
        "examples": result.examples,
        "method": settings.method,
        "network": settings.network,
        "width": settings.width,
        "seed": settings.seed,
        "threat_model": {"norm": attack.norm, "epsilon": attack.epsilon},
        "attack": {
            "name": "pgd",
            "steps": attack.steps,
            "step_size": attack.step_size,
            "restarts": 1,
        },
        "clean_accuracy": result.clean_accuracy,
        "robust_accuracy": result.robust_accuracy,
        "vulnerability": result.vulnerability,
        "layer_vulnerability": result.layer_vulnerability,
        "sparsity": efficiency.sparsity(counts),
        "weight_sparsity": efficiency.sparsity(efficiency.nonzero_weights(network)),
        "active_features": counts,
        "date": directory.now(),
        "versions": directory.versions(),
    }
