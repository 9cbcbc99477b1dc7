"""Values of the networks themselves for figures, computed on saved weights and test images."""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from anpvs_tf.attacks import losses as attacks_losses
from anpvs_tf.attacks import threat_model
from anpvs_tf.attacks.losses import evaluate
from anpvs_tf.attacks.projected_gradient import pgd
from anpvs_tf.common import randomness
from anpvs_tf.data import loading, pipelines
from anpvs_tf.evaluation import attacked_model
from anpvs_tf.evaluation.feature_movement import movement
from anpvs_tf.methods import losses
from anpvs_tf.reporting.grouping import Group
from anpvs_tf.runs.finished_run import FinishedRun

PICTURED = 6
SURFACE_IMAGES = 10
SURFACE_POINTS = 21
BATCH_SIZE = 100


@dataclasses.dataclass(frozen=True)
class Probe:
    """Values of one run's network.

    The attack is the run's own evaluation attack: PGD from one random start. Pictured are the
    first test images of `PICTURED` classes.

    Attributes:
        run: that trained the network.
        examples: test images behind `moved`.
        moved: {latent layer: float64 [features]}, Eq. 1 of each feature (of a convolution, at
            each place of its map).
        images, adversarial: float32 [pictured, H, W, C], in [0, 1].
        projections: float32 [pictured, H, W], |dV / d x~|, summed over colours.
        labels, before, after: int [pictured], true class, and predictions on both.
        confidence_before, confidence_after: float [pictured], probability of these.
        surface: float32 [points, points], mean cross-entropy in nats at x + s g + t r: rows by
            t, columns by s, both from -epsilon to epsilon; g the direction of steepest ascent,
            r a random one, both of length 1 in the attack's norm.
    """

    run: FinishedRun
    examples: int
    moved: dict[str, np.ndarray]
    images: np.ndarray
    adversarial: np.ndarray
    projections: np.ndarray
    labels: np.ndarray
    before: np.ndarray
    after: np.ndarray
    confidence_before: np.ndarray
    confidence_after: np.ndarray
    surface: np.ndarray

    @property
    def label(self) -> str:
        """The method: there is one network of each."""
        return self.run.settings.method

    @property
    def vulnerability(self) -> float:
        """Eq. 2, `mean` reduction."""
        return float(np.mean([values.mean() for values in self.moved.values()]))


def probe(
    group: Group,
    split: loading.Split,
    examples: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Probe:
    """Measures the network of a group's first run.

    Args:
        split: the test images.
        examples: how many of them the vulnerability of features is measured on.
        progress: called with (images done, images in all).

    Raises:
        UsageError: the network cannot be loaded.
    """
    run = group.runs[0]
    subject = attacked_model.of_run(run)
    network = _Network(subject, run)
    counted, few = split.take(examples), split.take(SURFACE_IMAGES)
    total = len(counted) + PICTURED + SURFACE_POINTS * len(few)

    moved: dict[str, np.ndarray] = {}
    for start in range(0, len(counted), BATCH_SIZE):
        images = pipelines.to_float(counted.images[start : start + BATCH_SIZE])
        labels = tf.constant(counted.labels[start : start + BATCH_SIZE])
        adversarial = network.attack(images, labels, randomness.seed_of(0, "report", start))
        for layer, distance in network.movement(images, adversarial).items():
            moved[layer] = moved.get(layer, 0.0) + distance.numpy().astype(np.float64).ravel()
        progress(start + len(labels), total)

    rows = first_of_classes(split.labels, PICTURED)
    images = pipelines.to_float(split.images[rows])
    labels = tf.constant(split.labels[rows])
    adversarial = network.attack(images, labels, randomness.seed_of(0, "report", "pictured"))
    probabilities = [tf.nn.softmax(subject.logits(x)).numpy() for x in (images, adversarial)]
    before, after = (found.argmax(axis=1) for found in probabilities)
    projections = network.projection(images, adversarial).numpy()
    progress(len(counted) + PICTURED, total)

    images_of_surface = pipelines.to_float(few.images)
    done = len(counted) + PICTURED
    surface = network.surface(
        images_of_surface,
        tf.constant(few.labels),
        lambda count: progress(done + count, total),
    )
    return Probe(
        run=run,
        examples=len(counted),
        moved={layer: values / len(counted) for layer, values in moved.items()},
        images=images.numpy(),
        adversarial=adversarial.numpy(),
        projections=projections,
        labels=split.labels[rows],
        before=before,
        after=after,
        confidence_before=probabilities[0].max(axis=1),
        confidence_after=probabilities[1].max(axis=1),
        surface=surface,
    )


def first_of_classes(labels: np.ndarray, count: int) -> list[int]:
    """Finds the row of the first example of each of the first `count` classes in `labels`."""
    return [int(np.flatnonzero(labels == one)[0]) for one in np.unique(labels)[:count]]


class _Network:
    """The compiled functions of one network."""

    def __init__(self, subject: attacked_model.Subject, run: FinishedRun):
        self.subject = subject
        self.settings = run.settings
        compiled = {"autograph": False, "reduce_retracing": True}
        self.attack = tf.function(self._attack, **compiled)
        self.movement = tf.function(self._movement, **compiled)
        self.projection = tf.function(self._projection, **compiled)
        self._sign_gradient = tf.function(self._gradient, **compiled)
        self._loss = tf.function(self._cross_entropy, **compiled)

    def _attack(self, images, labels, seed):
        return pgd(
            self.subject.logits,
            images,
            labels,
            seed,
            epsilon=self.settings.epsilon,
            step_size=self.settings.eval_step_size,
            steps=self.settings.eval_attack_steps,
            norm=self.settings.norm,
        )

    def _latents(self, images):
        outputs = self.subject.outputs(images)
        return {name: value for name, value in outputs.items() if name != "logits"}

    def _movement(self, images, adversarial):
        moved = movement(self.subject.outputs(images), self.subject.outputs(adversarial))
        return {name: tf.reduce_sum(distances, axis=0) for name, distances in moved.items()}

    def _projection(self, images, adversarial):
        clean = self._latents(images)
        with tf.GradientTape() as tape:
            tape.watch(adversarial)
            moved = self._latents(adversarial)
            # The mean over the batch would make each image's gradient that much smaller.
            total = losses.vulnerability(list(clean.values()), list(moved.values()))
            total *= tf.cast(tf.shape(images)[0], tf.float32)
        return tf.reduce_sum(tf.abs(tape.gradient(total, adversarial)), axis=-1)

    def _gradient(self, images, labels):
        loss = attacks_losses.attack_loss("ce", self.subject.logits, images, labels)
        found = evaluate(self.subject.logits, images, loss).gradients
        return threat_model.steepest(found, self.settings.norm)

    def _cross_entropy(self, images, labels):
        return losses.cross_entropy(labels, self.subject.logits(images))

    def surface(self, images, labels, progress: Callable[[int], None]) -> np.ndarray:
        epsilon = self.settings.epsilon
        along = self._sign_gradient(images, labels)
        draws = randomness.normal(tf.shape(images), randomness.seed_of(0, "surface"))
        across = threat_model.steepest(draws, self.settings.norm)
        places = np.linspace(-epsilon, epsilon, SURFACE_POINTS).astype(np.float32)
        found = np.zeros([SURFACE_POINTS, SURFACE_POINTS], np.float32)
        for i, t in enumerate(places):
            for j, s in enumerate(places):
                found[i, j] = self._loss(images + s * along + t * across, labels)
            progress((i + 1) * len(labels))
        return found
