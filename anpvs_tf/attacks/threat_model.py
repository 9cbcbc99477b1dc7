"""The geometry of a threat model: steepest step, projection and random starts in a ball.

All functions take a batch of perturbations [batch, ...] and treat each example
by itself.
"""

import numpy as np
import tensorflow as tf

from anpvs_tf.attacks.settings import NORMS as NORMS
from anpvs_tf.attacks.settings import check_norm as check_norm
from anpvs_tf.attacks.settings import check_threat_model as check_threat_model
from anpvs_tf.common import randomness


def length(perturbations: tf.Tensor, norm: str) -> tf.Tensor:
    """Computes the norm of each perturbation, [batch, 1, ..., 1]."""
    axes = list(range(1, perturbations.shape.rank))
    if norm == "linf":
        return tf.reduce_max(tf.abs(perturbations), axis=axes, keepdims=True)
    return tf.sqrt(tf.reduce_sum(tf.square(perturbations), axis=axes, keepdims=True))


def steepest(gradients: tf.Tensor, norm: str) -> tf.Tensor:
    """Computes the direction of norm 1 in which the loss grows fastest; 0 for a zero gradient."""
    if norm == "linf":
        return tf.sign(gradients)
    # Divided by the largest entry first: squares of small gradients would vanish.
    gradients = tf.math.divide_no_nan(gradients, length(gradients, "linf"))
    return tf.math.divide_no_nan(gradients, length(gradients, norm))


def project(perturbations: tf.Tensor, epsilon: float, norm: str) -> tf.Tensor:
    """Computes the nearest perturbations inside the ball of radius epsilon."""
    if norm == "linf":
        return tf.clip_by_value(perturbations, -epsilon, epsilon)
    factor = tf.math.divide_no_nan(
        tf.cast(epsilon, perturbations.dtype), length(perturbations, norm)
    )
    return perturbations * tf.where(factor > 0, tf.minimum(factor, 1.0), 1.0)


def restrict(images: tf.Tensor, candidates: tf.Tensor, epsilon: float, norm: str) -> tf.Tensor:
    """Moves candidates into the ball around their images, then into [0, 1].

    The second move does not leave the ball: it brings every pixel nearer to the
    image's own, which lies in [0, 1].
    """
    return tf.clip_by_value(images + project(candidates - images, epsilon, norm), 0.0, 1.0)


def random_in_ball(shape: tf.Tensor, seed: randomness.Seed, epsilon: float, norm: str) -> tf.Tensor:
    """Draws perturbations uniformly from the ball of radius epsilon, float32.

    An example's draw is that of its number (`randomness.ExampleSeeds`), or in a
    `randomness.scope` that of its place in the global batch.
    """

    def draw(examples, seed, first):
        own = tf.concat([[examples], shape[1:]], axis=0)
        return _uniform_in_ball(own, seed, epsilon, norm, first)

    return randomness.for_examples(draw, shape, seed)


def _uniform_in_ball(
    shape: tf.Tensor, seed: tf.Tensor, epsilon: float, norm: str, first: randomness.Rows
) -> tf.Tensor:
    if norm == "linf":
        return randomness.uniform(shape, seed, -epsilon, epsilon, first)
    seeds = randomness.bits([2, 2], seed)
    direction = steepest(randomness.normal(shape, seeds[0], first), norm)
    dimensions = tf.cast(tf.reduce_prod(shape[1:]), tf.float32)
    radius_shape = tf.concat([shape[:1], tf.ones_like(shape[1:])], axis=0)
    radius = randomness.uniform(radius_shape, seeds[1], first=first) ** (1.0 / dimensions)
    return epsilon * radius * direction


def random_on_sphere(
    shape: tf.Tensor, seed: randomness.Seed, epsilon: float, norm: str
) -> tf.Tensor:
    """Draws perturbations of norm epsilon, float32: around 0, scaled to that norm.

    The draw is uniform for "linf" and normal for "l2", whose direction is uniform. It is an
    example's own as that of `random_in_ball`.
    """

    def draw(examples, seed, first):
        own = tf.concat([[examples], shape[1:]], axis=0)
        if norm == "linf":
            return randomness.uniform(own, seed, -1.0, 1.0, first)
        return randomness.normal(own, seed, first)

    drawn = randomness.for_examples(draw, shape, seed)
    return epsilon * tf.math.divide_no_nan(drawn, length(drawn, norm))


def assert_in_threat_model(
    images: np.ndarray, adversarial: np.ndarray, epsilon: float, norm: str
) -> None:
    """Raises AssertionError unless every adversarial image lies in the ball and in [0, 1].

    Float32 rounding of x + d is allowed for: 1e-5 in relative terms of epsilon,
    1e-6 in pixel units.
    """
    difference = np.reshape(adversarial.astype(np.float64) - images, [len(images), -1])
    order = np.inf if norm == "linf" else 2
    largest = np.linalg.norm(difference, ord=order, axis=1).max(initial=0.0)
    if not largest <= epsilon * (1 + 1e-5) + 1e-6:
        raise AssertionError(f"an attack left the {norm} ball: {largest} > epsilon = {epsilon}")
    low, high = adversarial.min(initial=0.0), adversarial.max(initial=1.0)
    if not (low >= 0.0 and high <= 1.0):
        raise AssertionError(f"an attack left the pixel range [0, 1]: [{low}, {high}]")
