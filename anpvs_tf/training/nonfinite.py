"""Steps whose loss or gradient is not finite: training stops, or leaves them out."""

import math
import pathlib

import numpy as np
import tensorflow as tf

from anpvs_tf.common.errors import TrainingError
from anpvs_tf.training.checkpoints import Checkpoints


def culprit(terms: dict[str, float]) -> str | None:
    """Names the term that is not finite; None if all are.

    Args:
        terms: of a step; "nonfinite" says that a loss or gradient was not.
    """
    # The sum last: a term that spoils it is the better name.
    for name, value in sorted(terms.items(), key=lambda item: item[0] == "loss"):
        if not math.isfinite(value):
            return f"{name} became {value}"
    return "a gradient became nan or infinite" if terms.get("nonfinite") else None


def stop(what: str, epoch: int, step: int, checkpoints: Checkpoints, seen: str = "") -> None:
    """Raises TrainingError: says what was not finite and where, and names the last checkpoint."""
    raise TrainingError(
        f"{what} in epoch {epoch}, step {step}{seen}; {checkpoints.kept()}; "
        "a lower --learning_rate or --precision=float32 may help"
    )


def keep_batch(path: pathlib.Path, batch: tuple[tf.Tensor, tf.Tensor], what: str) -> str:
    """Saves a batch for inspection and says where; returns "" if it cannot be written."""
    images, labels = batch
    try:
        path.parent.mkdir(exist_ok=True)
        np.savez(path, images=images, labels=labels, what=what)
    except OSError:
        path.unlink(missing_ok=True)
        return ""
    return f" (its batch is in {path})"
