"""Random noise: the baseline that every attack has to beat."""

import tensorflow as tf

from anpvs_tf import noise
from anpvs_tf.attacks import active, norms, objectives


@tf.function(autograph=False, reduce_retracing=True)
def random_noise(
    logits_fn: objectives.LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    seed: tf.Tensor,
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
    norms.check_threat_model(epsilon, norm)

    def draw(i, worst, largest):
        perturbation = norms.random_in_ball(tf.shape(images), noise.fold(seed, i), epsilon, norm)
        noisy = norms.restrict(images, images + perturbation, epsilon, norm)
        margins = objectives.margins_of(objectives.logits_of(logits_fn, noisy), labels)
        # The first draw is taken whatever its margin, NaN included.
        better = (margins > largest) | tf.equal(i, 0)
        return i + 1, active.select(better, noisy, worst), tf.where(better, margins, largest)

    start = tf.fill(tf.shape(labels), tf.constant(float("-inf")))
    _, worst, _ = tf.while_loop(lambda i, *_: i < draws, draw, (0, images, start))
    return tf.stop_gradient(worst)
