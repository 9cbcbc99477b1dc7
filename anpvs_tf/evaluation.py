"""Accuracy, robust accuracy and vulnerability of a network over a whole split."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from anpvs_tf import datasets, noise
from anpvs_tf.attacks import norms, pgd
from anpvs_tf.freezing import FrozenNetwork


@dataclasses.dataclass(frozen=True)
class Attack:
    """A PGD evaluation: pixel units, `norm` ball of radius `epsilon`."""

    epsilon: float
    step_size: float
    steps: int
    restarts: int = 1
    norm: str = "linf"
    name: str = "pgd"


@dataclasses.dataclass(frozen=True)
class Result:
    """Figures over `examples` examples; accuracies in [0, 1].

    `layer_vulnerability` is Eq. 1 averaged over each latent layer's features, and
    `vulnerability` its mean over layers (Eq. 2, `mean` reduction), on the last
    restart's adversarial examples.
    """

    examples: int
    clean_accuracy: float
    robust_accuracy: float
    vulnerability: float
    layer_vulnerability: dict[str, float]


class Evaluator:
    """Evaluates one network again and again with one compilation.

    The attack runs on the frozen network, which is what is deployed.

    Args:
        network: a functional model in float32: images -> dict with "logits".
        attack: the adversary.
        batch_size: examples attacked at a time.
        prune: leave out what is pruned now, which is faster; the gates must then
            not change any more.
    """

    def __init__(self, network: keras.Model, attack: Attack, batch_size: int, prune: bool = False):
        self.network = network
        self.frozen = FrozenNetwork(network, prune)
        self.attack = attack
        self.batch_size = batch_size
        self._batch = tf.function(self._evaluate_batch, autograph=False, reduce_retracing=True)

    def _evaluate_batch(self, images, labels, seed):
        weights = self.frozen.fold()
        clean = self.network(images, training=False)
        survived = clean_hit = self._hits(clean["logits"], labels)
        adversarial_images = []
        for restart in range(self.attack.restarts):
            attacked = pgd.python_function(
                lambda x: self.frozen.apply(weights, x),
                images,
                labels,
                noise.fold(seed, restart),
                epsilon=self.attack.epsilon,
                step_size=self.attack.step_size,
                steps=self.attack.steps,
                norm=self.attack.norm,
            )
            adversarial_images.append(attacked)
            adversarial = self.network(attacked, training=False)
            survived &= self._hits(adversarial["logits"], labels)
        distances = {
            name: tf.reduce_sum(
                tf.reduce_mean(tf.abs(value - adversarial[name]), axis=range(1, value.shape.rank))
            )
            for name, value in clean.items()
            if name != "logits"
        }
        return clean_hit, survived, distances, adversarial_images

    @staticmethod
    def _hits(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        return tf.equal(tf.argmax(logits, axis=1, output_type=labels.dtype), labels)

    def __call__(
        self,
        split: datasets.Split,
        seed: int,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Result:
        """Evaluates on every example of `split`.

        Args:
            seed: of the random starts.
            progress: called with (examples done, examples in all).

        Raises:
            AssertionError: an adversarial example left the ball or [0, 1].
        """
        clean = robust = done = 0
        distances: dict[str, float] = {}
        for i, (images, labels) in enumerate(datasets.evaluation_batches(split, self.batch_size)):
            clean_hit, survived, moved, attacked = self._batch(
                images, labels, noise.seed_of(seed, "evaluation", i)
            )
            for adversarial in attacked:
                norms.assert_in_threat_model(
                    images.numpy(), adversarial.numpy(), self.attack.epsilon, self.attack.norm
                )
            clean += int(np.sum(clean_hit))
            robust += int(np.sum(survived))
            for name, value in moved.items():
                distances[name] = distances.get(name, 0.0) + float(value)
            done += len(labels)
            progress(done, len(split))
        by_layer = {name: total / done for name, total in distances.items()}
        return Result(
            examples=done,
            clean_accuracy=clean / done,
            robust_accuracy=robust / done,
            vulnerability=float(np.mean(list(by_layer.values()))),
            layer_vulnerability=by_layer,
        )
