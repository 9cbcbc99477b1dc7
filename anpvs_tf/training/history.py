"""The rows of metrics.csv and timings.csv."""

from collections.abc import Iterable
from typing import Any

import keras

from anpvs_tf.common.errors import UsageError
from anpvs_tf.evaluation.evaluator import Result
from anpvs_tf.pruning import efficiency
from anpvs_tf.runs import directory
from anpvs_tf.training.checkpoints import Position


def epoch_row(
    epoch: int, step: int, terms: dict[str, float], result: Result, network: keras.Model
) -> dict[str, Any]:
    """Makes the row of metrics.csv of an epoch, without its times."""
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
    """Makes the row of timings.csv of an epoch: of its steps, without the validation."""
    return {
        "epoch": epoch,
        "seconds": round(seconds, 3),
        "images_per_second": round(images / seconds, 1),
    }


def check_columns(
    run: directory.RunDirectory, position: Position, terms: Iterable[str], network: keras.Model
) -> None:
    """Refuses to resume a run whose tables would get rows of two kinds.

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
            f"and timings.csv {', '.join(differences)}: resume it with the version that began it, "
            "or train into another --run_dir"
        )
