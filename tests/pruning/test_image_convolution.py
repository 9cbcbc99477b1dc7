"""The image convolution against TensorFlow's own gradients."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from anpvs_tf.pruning import image_convolution


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
@pytest.mark.parametrize(
    ("size", "extent", "channels", "block"),
    [
        ((28, 28), (5, 5), 1, 4),
        ((32, 32), (3, 3), 3, 2),
        ((13, 10), (4, 3), 2, 3),
        ((9, 9), (2, 5), 4, 2),
    ],
)
def test_value_and_gradients(size, extent, channels, block, padding):
    rng = np.random.default_rng(0)
    images = tf.constant(rng.normal(size=(3, *size, channels)))
    kernel = tf.constant(rng.normal(size=(*extent, channels, 7)))
    with tf.GradientTape() as tape:
        tape.watch([images, kernel])
        expected = tf.nn.conv2d(images, kernel, 1, padding)
    upstream = tf.constant(rng.normal(size=expected.shape))
    wanted = tape.gradient(expected, [images, kernel], upstream)

    @tf.function(autograph=False)
    def ours(images, kernel):
        with tf.GradientTape() as tape:
            tape.watch([images, kernel])
            backward = image_convolution.gradient_kernel(kernel, block)
            found = image_convolution.convolve(images, kernel, backward, padding, block)
        return found, tape.gradient(found, [images, kernel], upstream)

    found, gradients = ours(images, kernel)
    np.testing.assert_array_equal(found, expected)
    for ours_, theirs in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(ours_, theirs, rtol=1e-10, atol=1e-10)


def test_where_it_is_used():
    conv = keras.layers.Conv2D
    assert image_convolution.block_of(conv(20, 5), 1) == 4
    assert image_convolution.block_of(conv(64, 3, padding="same"), 3) == 2
    assert image_convolution.block_of(conv(64, 3), 20) is None
    assert image_convolution.block_of(conv(64, 3, strides=2), 3) is None
    assert image_convolution.block_of(conv(64, 3, dilation_rate=2), 3) is None
    assert image_convolution.block_of(conv(64, 1), 3) is None
