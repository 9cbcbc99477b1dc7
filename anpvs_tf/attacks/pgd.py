"""Projected gradient descent (Madaan et al. 2020, Eq. 4; Madry et al. 2018)."""

from collections.abc import Callable

import tensorflow as tf

from anpvs_tf.attacks import norms


@tf.function(autograph=False)
def pgd(
    logits_fn: Callable[[tf.Tensor], tf.Tensor],
    images: tf.Tensor,
    labels: tf.Tensor,
    seed: tf.Tensor,
    *,
    epsilon: float,
    step_size: float,
    steps: int,
    norm: str = "linf",
    random_start: bool = True,
) -> tf.Tensor:
    """Maximises the cross-entropy inside a ball around each image.

    Works on any function images -> logits. Compiled once for each `logits_fn`,
    settings and shape; keep the same function object to reuse the compilation.

    Args:
        logits_fn: maps images [batch, ...] to logits [batch, classes].
        images: float32 in [0, 1].
        labels: int [batch], the true classes.
        seed: int32 [2]; the random start is a function of it.
        epsilon: radius of the ball, in pixel units, positive.
        step_size: length of a step in the same norm, positive.
        steps: number of gradient steps.
        norm: "linf" or "l2".
        random_start: start at a uniform draw from the ball instead of its centre.

    Returns:
        Adversarial images, float32, inside the ball and [0, 1].

    Raises:
        ValueError: for another norm.
    """
    norms.check_norm(norm)

    def inside(perturbed):
        moved = images + norms.project(perturbed - images, epsilon, norm)
        return tf.clip_by_value(moved, 0.0, 1.0)

    def step(perturbed):
        with tf.GradientTape() as tape:
            tape.watch(perturbed)
            logits = tf.cast(logits_fn(perturbed), tf.float32)
            # A sum, not a mean: an example's gradient must not depend on the batch size.
            loss = tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        gradients = tape.gradient(loss, perturbed)
        return inside(perturbed + step_size * norms.steepest(gradients, norm))

    start = images
    if random_start:
        start = inside(images + norms.random_in_ball(tf.shape(images), seed, epsilon, norm))
    _, adversarial = tf.while_loop(
        lambda i, _: i < steps, lambda i, x: (i + 1, step(x)), (0, start)
    )
    return tf.stop_gradient(adversarial)
