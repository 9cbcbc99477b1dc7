"""Adversarial weight perturbation (AWP; Wu, Xia, Wang 2020)."""

import keras
import tensorflow as tf


def shifts(
    kernels: list[keras.Variable], gradients: list[tf.Tensor], size: float
) -> list[tf.Tensor]:
    """Computes for each kernel w the shift of norm size ||w|| along which the loss grows.

    Args:
        kernels: the variables that are shifted.
        gradients: of the loss, by kernel, on this replica; inside a replica context.
        size: relative to the norm of a kernel, at least 0.

    Returns:
        A tensor of its shape for each kernel, through which no gradient flows; zeros where
        the gradient is zero or not finite.
    """
    context = tf.distribute.get_replica_context()
    gradients = context.all_reduce(tf.distribute.ReduceOp.MEAN, gradients)
    found = []
    for kernel, gradient in zip(kernels, gradients, strict=True):
        length = size * tf.norm(tf.convert_to_tensor(kernel))
        slope = tf.norm(gradient)
        # Where float16's gradients overflow, those of the update do too, and it is left out.
        usable = tf.math.is_finite(slope) & (slope > 0)
        found.append(tf.stop_gradient(length * tf.where(usable, gradient / slope, 0.0)))
    return found
