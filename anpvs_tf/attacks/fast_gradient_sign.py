"""The fast gradient (sign) method (Goodfellow et al. 2015), and its noisy form for training."""

import tensorflow as tf

from anpvs_tf.attacks import losses, threat_model
from anpvs_tf.attacks.projected_gradient import pgd
from anpvs_tf.common import randomness


def fgsm(
    logits_fn: losses.LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    seed: randomness.Seed,
    *,
    epsilon: float,
    norm: str = "linf",
    loss: str = "ce",
) -> tf.Tensor:
    """Takes one step of length epsilon from the image along the loss's steepest direction.

    Arguments, result and errors as of `pgd`; the seed is not used.
    """
    return pgd(
        logits_fn,
        images,
        labels,
        seed,
        epsilon=epsilon,
        norm=norm,
        loss=loss,
        step_size=epsilon,
        steps=1,
        random_start=False,
    )


def noisy_fgsm(
    logits_fn: losses.LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    seed: randomness.Seed,
    *,
    epsilon: float | tf.Tensor,
    norm: str = "linf",
    loss: str = "ce",
) -> tf.Tensor:
    """Takes one step of length epsilon from a uniform draw of the ball of radius 2 epsilon.

    N-FGSM (de Jorge et al. 2022), a cheap adversary for training: nothing is projected
    afterwards, so the result lies within 3 epsilon, and it is no attack to evaluate with.

    Arguments and errors as of `pgd`.

    Returns:
        Images, float32, in [0, 1].
    """
    threat_model.check_threat_model(epsilon, norm)
    maximised = losses.attack_loss(loss, logits_fn, images, labels)
    noise = threat_model.random_in_ball(tf.shape(images), seed, 2.0 * epsilon, norm)
    start = tf.clip_by_value(images + noise, 0.0, 1.0)
    gradients = losses.evaluate(logits_fn, start, maximised).gradients
    moved = start + epsilon * threat_model.steepest(gradients, norm)
    return tf.stop_gradient(tf.clip_by_value(moved, 0.0, 1.0))
