"""A convolution of images with a fast gradient with respect to the images.

An attack needs the gradient of the first layer with respect to its few input
channels. A CPU computes that with vectors over channels, of which most lanes are then
empty: for LeNet's first layer it took longer than any other part of crafting.
Here a block of block x block pixels is computed at once, as a convolution of
stride `block` over the output's gradient, with block^2 times as many channels.
"""

import math

import keras
import numpy as np
import tensorflow as tf

# Channels (block^2 of the image's) that fill a vector; more only add work.
_ENOUGH_CHANNELS = 12
_MOST_IMAGE_CHANNELS = 4


def block_of(layer: keras.layers.Conv2D, channels: int) -> int | None:
    """Returns the side of a block for a convolution of images, or None where it does not pay.

    Args:
        layer: reads images of `channels` channels.
    """
    if channels > _MOST_IMAGE_CHANNELS or max(*layer.strides, *layer.dilation_rate) > 1:
        return None
    if max(layer.kernel_size) < 2 or tf.config.list_physical_devices("GPU"):
        return None
    return math.ceil(math.sqrt(_ENOUGH_CHANNELS / channels))


def gradient_kernel(kernel: tf.Tensor, block: int) -> tf.Tensor:
    """Makes the kernel that turns the output's gradient into blocks of the images' gradient.

    Args:
        kernel: [height, width, channels, filters].

    Returns:
        [height + block - 1, width + block - 1, filters, block^2 channels], in the
        channel order of `tf.nn.depth_to_space`.
    """
    height, width, channels, filters = kernel.shape
    # Pixel (a, b) of a block gets kernel[i, j] from place (a - i, b - j) of the output.
    rows = np.arange(block)[np.newaxis] + height - 1 - np.arange(height + block - 1)[:, np.newaxis]
    columns = np.arange(block)[np.newaxis] + width - 1 - np.arange(width + block - 1)[:, np.newaxis]
    i, j = rows[:, np.newaxis, :, np.newaxis], columns[np.newaxis, :, np.newaxis, :]
    inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
    places = np.where(inside, i * width + j, height * width)
    flat = tf.reshape(kernel, [height * width, channels, filters])
    flat = tf.concat([flat, tf.zeros_like(flat[:1])], axis=0)
    gathered = tf.transpose(tf.gather(flat, places), [0, 1, 5, 2, 3, 4])
    return tf.reshape(gathered, [*places.shape[:2], filters, block**2 * channels])


def convolve(
    images: tf.Tensor, kernel: tf.Tensor, backward: tf.Tensor, padding: str, block: int
) -> tf.Tensor:
    """Computes the convolution of `images`, of stride 1.

    Args:
        images: [batch, H, W, channels].
        kernel: [height, width, channels, filters].
        backward: `gradient_kernel(kernel, block)`; gets no gradient of its own.
        padding: "VALID" or "SAME".
    """
    height, width = kernel.shape[:2]
    size = images.shape[1:3]

    def margins(length, extent):
        """Counts the zeros before and behind the output's gradient, for all blocks of an axis."""
        before = (extent - 1) // 2 if padding == "SAME" else 0
        outputs = length if padding == "SAME" else length - extent + 1
        front = extent - 1 - before
        window = -(-length // block) * block + extent - 1
        return [front, window - front - outputs]

    @tf.custom_gradient
    def run(images, kernel):
        def gradient(upstream):
            rows, columns = margins(size[0], height), margins(size[1], width)
            padded = tf.pad(upstream, [[0, 0], rows, columns, [0, 0]])
            blocks = tf.nn.conv2d(padded, tf.stop_gradient(backward), block, "VALID")
            of_images = tf.nn.depth_to_space(blocks, block)[:, : size[0], : size[1]]
            of_kernel = tf.compat.v1.nn.conv2d_backprop_filter(
                images, kernel.shape, upstream, [1, 1, 1, 1], padding
            )
            return of_images, of_kernel

        return tf.nn.conv2d(images, kernel, 1, padding), gradient

    return run(images, kernel)
