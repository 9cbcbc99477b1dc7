"""Accuracy, robust accuracy and vulnerability of a network over a whole split."""

import dataclasses
import itertools
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from anpvs_tf.attacks import threat_model
from anpvs_tf.attacks.projected_gradient import pgd
from anpvs_tf.common import randomness
from anpvs_tf.common.devices import Devices, local
from anpvs_tf.data import loading, pipelines
from anpvs_tf.evaluation.feature_movement import movement
from anpvs_tf.pruning.frozen import FrozenNetwork

# Examples of an evaluation that are kept to be shown.
SHOWN = 4


@dataclasses.dataclass(frozen=True)
class PgdAttack:
    """PGD from one random start: pixel units, `norm` ball of radius `epsilon`."""

    epsilon: float
    step_size: float
    steps: int
    norm: str = "linf"


@dataclasses.dataclass(frozen=True)
class Result:
    """Accuracies in [0, 1] and vulnerabilities, over `examples` examples.

    `layer_vulnerability` is Eq. 1 averaged over each latent layer's features, and
    `vulnerability` its mean over layers (Eq. 2, `mean` reduction).
    """

    examples: int
    clean_accuracy: float
    robust_accuracy: float
    vulnerability: float
    layer_vulnerability: dict[str, float]


class Evaluator:
    """Evaluates one network again and again with one compilation.

    Every replica takes whole batches, so the results do not depend on the number of replicas.

    The attack runs on the frozen network, which is what is deployed.

    Args:
        network: a functional model in float32: images -> dict with "logits".
        attack: the adversary.
        batch_size: examples attacked at a time.
        prune: leave out the features that are pruned now, which is faster; the gates must
            then not change any more.
        devices: that share the batches; None for one.

    Attributes:
        examples: the first images of the last evaluation, clean and attacked,
            [at most `SHOWN`, height, width, channels].
    """

    def __init__(
        self,
        network: keras.Model,
        attack: PgdAttack,
        batch_size: int,
        prune: bool = False,
        devices: Devices | None = None,
    ):
        self.network = network
        self.frozen = FrozenNetwork(network, prune)
        self.attack = attack
        self.batch_size = batch_size
        self.devices = devices or local()
        self.layers = [name for name in network.output if name != "logits"]
        self._batch = tf.function(self.evaluate_batch, autograph=False, reduce_retracing=True)

    def evaluate_batch(
        self, images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, dict[str, tf.Tensor], tf.Tensor]:
        """Attacks one batch and classifies it before and after.

        Returns:
            Clean hits, robust hits (bool [batch]), each latent layer's summed distance between
            clean and adversarial features, and the adversarial images.
        """
        weights = self.frozen.fold()
        clean = self.network(images, training=False)
        attacked = pgd(
            lambda x: self.frozen.apply(weights, x),
            images,
            labels,
            randomness.fold(seed, 0),
            epsilon=self.attack.epsilon,
            step_size=self.attack.step_size,
            steps=self.attack.steps,
            norm=self.attack.norm,
        )
        adversarial = self.network(attacked, training=False)
        clean_hits = self._hits(clean["logits"], labels)
        survived = clean_hits & self._hits(adversarial["logits"], labels)
        moved = movement(clean, adversarial)
        distances = {
            name: tf.reduce_sum(tf.reduce_mean(moved[name], axis=range(1, moved[name].shape.rank)))
            for name in self.layers
        }
        return clean_hits, survived, distances, attacked

    @staticmethod
    def _hits(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        return tf.equal(tf.argmax(logits, axis=1, output_type=labels.dtype), labels)

    def __call__(
        self,
        split: loading.Split,
        seed: int,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Result:
        """Evaluates the network on every example of `split`.

        Args:
            seed: of the random starts.
            progress: called with (examples done, examples in all).

        Raises:
            AssertionError: an adversarial example left the ball or [0, 1].
        """
        batches = enumerate(pipelines.evaluation_batches(split, self.batch_size))
        totals = 0.0
        while group := list(itertools.islice(batches, self.devices.replicas)):
            for row in self._group(group, seed):
                totals = totals + row
            progress(int(totals[0]), len(split))
        done, clean, robust = (int(total) for total in totals[:3])
        distances = dict(zip(self.layers, totals[3:].tolist(), strict=True))
        by_layer = {name: total / done for name, total in distances.items()}
        return Result(
            examples=done,
            clean_accuracy=clean / done,
            robust_accuracy=robust / done,
            vulnerability=float(np.mean(list(by_layer.values()))),
            layer_vulnerability=by_layer,
        )

    def _group(self, group: list, seed: int) -> np.ndarray:
        """Evaluates a batch on each replica.

        Args:
            group: (number, (images, labels)) of successive batches.

        Returns:
            A row a batch (examples, clean hits, robust hits, distance of each layer); if there
            are fewer batches than replicas, rows of zeros follow.
        """
        replicas = self.devices.replicas
        padded = group + group[:1] * (replicas - len(group))
        seeds = [randomness.seed_of(seed, "evaluation", number) for number, _ in padded]
        images, labels = zip(*(batch for _, batch in padded), strict=True)
        arguments = [self.devices.scatter(values) for values in (images, labels, seeds)]
        found = self.devices.strategy.run(self._batch, arguments)
        of_replica = self.devices.strategy.experimental_local_results
        clean_hits, survived = (of_replica(hits) for hits in found[:2])
        distances = [of_replica(found[2][name]) for name in self.layers]
        attacked = of_replica(found[3])
        rows, first = [], self.devices.worker * len(clean_hits)
        for i, hits in enumerate(clean_hits):
            clean, adversarial = images[first + i].numpy(), attacked[i].numpy()
            if group[0][0] == i == 0:
                self.examples = clean[:SHOWN], adversarial[:SHOWN]
            threat_model.assert_in_threat_model(
                clean, adversarial, self.attack.epsilon, self.attack.norm
            )
            row = [len(hits), np.sum(hits), np.sum(survived[i]), *(float(d[i]) for d in distances)]
            rows.append(np.array(row, np.float64) * (first + i < len(group)))
        return self.devices.gather(rows)
