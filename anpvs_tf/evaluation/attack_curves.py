"""How an attack proceeds, step by step, for TensorBoard.

It is run once more, on a few examples and with a look at each step, so that the attack that is
judged does without.
"""

import pathlib

import numpy as np
import tensorflow as tf

from anpvs_tf.attacks import losses
from anpvs_tf.attacks.registry import Stage
from anpvs_tf.common import randomness
from anpvs_tf.data import loading, pipelines
from anpvs_tf.evaluation.attack_run import AttackRun


class _Curves:
    """Mean loss and share broken at each step; an observer as of `losses.observed`."""

    def __init__(self, examples: int):
        self.latest = np.full(examples, np.nan)
        self.loss: list[float] = []
        self.broken: list[float] = []

    def __call__(self, rows: tf.Tensor, values: tf.Tensor, fooled: tf.Tensor) -> None:
        # An example that is broken leaves; its loss stays as it was.
        self.latest[rows.numpy()] = values.numpy()
        left = len(rows) - int(np.sum(fooled.numpy()))
        self.loss.append(float(np.nanmean(self.latest)))
        self.broken.append(1.0 - left / len(self.latest))


def of_stage(run: AttackRun, stage: Stage, split: loading.Split) -> tuple[list, list]:
    """Records the course of an attack on examples.

    Args:
        run: the attack.
        stage: of stages of its own, which were not run before: it is traced here.
        split: the first examples of `run.split`.

    Returns:
        The mean of the loss that the attack maximises, at its start and after each step but the
        last, and the share of examples that are broken, at its start and after each step. Broken
        are those that the image of this step fools, those that left the attack because an earlier
        one did, and those that the model gets wrong unperturbed where the attack leaves these
        out. Both are empty for an attack without such steps.
    """
    images, labels = pipelines.to_float(split.images), tf.constant(split.labels, tf.int64)
    seed = randomness.ExampleSeeds(
        randomness.seed_of(run.seed, "attack"), tf.range(len(split), dtype=tf.int32)
    )
    seen = _Curves(len(split))
    with losses.observed(seen):
        attacked = stage.run(run.attacked, images, labels, seed)
    if seen.broken:
        wrong = losses.fooled(losses.logits_of(run.subject.logits, attacked), labels)
        seen.broken.append(float(np.mean(wrong.numpy())))
    return seen.loss, seen.broken


def write(directory: pathlib.Path, loss: list[float], broken: list[float]) -> None:
    """Writes event files with the scalars attack/loss and attack/broken, a step each."""
    with tf.summary.create_file_writer(str(directory)).as_default():
        for name, values in (("loss", loss), ("broken", broken)):
            for step, value in enumerate(values):
                tf.summary.scalar(f"attack/{name}", value, step=step)
