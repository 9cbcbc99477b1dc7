"""Robust accuracy of any classifier on images in memory."""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from anpvs_tf.attacks import registry
from anpvs_tf.attacks.settings import EVALUATION_BATCH, AttackSettings, resolve
from anpvs_tf.common.errors import UsageError
from anpvs_tf.data.sources import Source
from anpvs_tf.data.splits import Split
from anpvs_tf.evaluation.attack_run import AttackRun
from anpvs_tf.evaluation.attacked_model import Subject


@dataclasses.dataclass(frozen=True)
class Robustness:
    """A classifier's accuracy under an attack.

    Attributes:
        clean_accuracy: share of the images that are classified right, in [0, 1].
        robust_accuracy: share that is classified right and was not broken, in [0, 1].
        robust: bool [images], those that are classified right and were not broken.
    """

    clean_accuracy: float
    robust_accuracy: float
    robust: np.ndarray


def evaluate(
    classifier: Callable[[tf.Tensor], tf.Tensor],
    images: np.ndarray,
    labels: np.ndarray,
    *,
    epsilon: float,
    norm: str = "linf",
    attack: str = "autoattack",
    batch_size: int = EVALUATION_BATCH,
    seed: int = 0,
    **settings: float,
) -> Robustness:
    """Attacks a classifier on images in memory and measures its robust accuracy.

    `bin/evaluate.py` does the same for runs and model files, with records, self-checks and
    resuming.

    Args:
        classifier: float32 images [batch, H, W, C] in [0, 1] -> logits [batch, classes], a
            `FrozenNetwork` or a Keras model, say; of a dict, "logits" is taken.
        images: uint8 [images, H, W, C], as they lie in files.
        labels: integers from 0, [images].
        epsilon: radius of the ball, in pixel units of [0, 1].
        norm: "linf" or "l2".
        attack: a key of `attacks.settings.USES`.
        settings: others of `attacks.settings.AttackSettings`, such as `steps`.

    Raises:
        UsageError: arrays of other kinds or lengths, no logits, a setting out of range.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        raise UsageError(
            f"images must be uint8 [images, height, width, channels]; got {images.dtype} "
            f"{list(images.shape)}"
        )
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise UsageError(
            f"labels must be {len(images)} integers, one an image; got {labels.dtype} "
            f"{list(labels.shape)}"
        )

    def logits(batch):
        found = classifier(batch)
        return found["logits"] if isinstance(found, dict) else found

    classes = int(logits(tf.zeros([1, *images.shape[1:]])).shape[-1])
    try:
        chosen = AttackSettings(epsilon=epsilon, norm=norm, classes=classes, **settings)
        stages = registry.stages(attack, chosen)
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error
    outcome = AttackRun(
        Subject("the classifier", Source("images", images.shape[1:], classes), "", logits),
        Split(images, labels.astype(np.int64)),
        stages,
        epsilon=epsilon,
        norm=norm,
        seed=seed,
        batch_size=batch_size,
        draws=resolve(attack, chosen).draws,
    ).run()
    return Robustness(
        float(np.mean(outcome.correct)), float(np.mean(outcome.robust)), outcome.robust
    )
