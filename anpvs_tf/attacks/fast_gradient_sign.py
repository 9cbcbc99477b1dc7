"""The fast gradient (sign) method (Goodfellow et al. 2015)."""

import tensorflow as tf

from anpvs_tf.attacks import losses
from anpvs_tf.attacks.projected_gradient import pgd


@tf.function(autograph=False, reduce_retracing=True)
def fgsm(
    logits_fn: losses.LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    seed: tf.Tensor,
    *,
    epsilon: float,
    norm: str = "linf",
    loss: str = "ce",
) -> tf.Tensor:
    """One step of length epsilon from the image along the loss's steepest direction.

    Arguments, result and errors as of `pgd`; the seed is not used.
    """
    return pgd.python_function(
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
