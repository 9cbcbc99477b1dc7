"""The functions of single layers, which freezing folds."""

from collections.abc import Callable

import keras
import tensorflow as tf

from anpvs_tf.networks.graph import Node, floating, is_layer_scale, layers


def affine_of(
    layer: keras.layers.Layer, width: int
) -> tuple[Callable[[], tf.Tensor], Callable[[], tf.Tensor] | None]:
    """Returns an AFFINE layer in inference as two functions; None for no shift.

    The functions return scale and shift, float32 [channels].
    """

    def vector(x):
        return tf.broadcast_to(tf.reshape(tf.cast(x, tf.float32), [-1]), [width])

    if is_layer_scale(layer):
        return lambda: vector(layer.gamma), None
    if isinstance(layer, layers.Rescaling):
        return (
            lambda: vector(layer.scale),
            lambda: vector(layer.offset),
        )
    if isinstance(layer, layers.Normalization):

        def scale():
            return 1.0 / tf.maximum(tf.sqrt(vector(layer.variance)), keras.config.epsilon())

        return scale, lambda: -vector(layer.mean) * scale()

    def scale():
        factor = tf.math.rsqrt(read(layer.moving_variance) + layer.epsilon)
        return factor * read(layer.gamma) if layer.scale else factor

    def shift():
        offset = -read(layer.moving_mean) * scale()
        return offset + read(layer.beta) if layer.center else offset

    return scale, shift


def elementwise_of(node: Node) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns an elementwise layer or operation as a function of a tensor of any dtype."""
    layer = node.layer
    if isinstance(layer, layers.Activation):
        return layer.activation
    if not isinstance(layer, layers.Layer):
        return lambda x: node.call([x])
    return floating(layer).call


def keeps_zero(function: Callable[[tf.Tensor], tf.Tensor]) -> bool:
    """Says whether an elementwise function of 0 is 0."""
    return float(function(tf.zeros([1]))[0]) == 0.0


def read(variable) -> tf.Tensor:
    """Returns a Keras variable as a float32 tensor."""
    return tf.cast(tf.convert_to_tensor(variable), tf.float32)
