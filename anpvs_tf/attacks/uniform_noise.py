"""Random noise: the baseline that every attack has to beat."""

import tensorflow as tf

from anpvs_tf.attacks import active_examples, losses, threat_model
from anpvs_tf.common import randomness


def random_noise(
    logits_fn: losses.LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    seed: randomness.Seed,
    *,
    epsilon: float,
    norm: str = "linf",
    draws: int = 1,
) -> tf.Tensor:
    """Draws uniformly from the ball and keeps each example's worst draw.

    The worst draw has the largest margin (best wrong logit minus the right one);
    nothing but logits is used. Arguments and errors as of `pgd`, and:

    Args:
        draws: perturbed images tried for each example.

    Returns:
        Noisy images, float32, inside the ball and [0, 1].
    """
    threat_model.check_threat_model(epsilon, norm)

    def draw(i, worst, largest):
        perturbation = threat_model.random_in_ball(
            tf.shape(images), randomness.fold(seed, i), epsilon, norm
        )
        noisy = threat_model.restrict(images, images + perturbation, epsilon, norm)
        margins = losses.margins_of(losses.logits_of(logits_fn, noisy), labels)
        # The first draw is taken whatever its margin, NaN included.
        better = (margins > largest) | tf.equal(i, 0)
        return (
            i + 1,
            active_examples.select(better, noisy, worst),
            tf.where(better, margins, largest),
        )

    start = tf.fill(tf.shape(labels), tf.constant(float("-inf")))
    _, worst, _ = tf.while_loop(lambda i, *_: i < draws, draw, (0, images, start))
    return tf.stop_gradient(worst)
