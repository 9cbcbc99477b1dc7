"""The examples of a split: arrays in memory, or read from disk whenever they are needed."""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

# int64 indices [n] -> uint8 images [n, H, W, C], int64 labels [n]; usable inside tf.data.
Reader = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]

READ_AT_ONCE = 64
# Shares of red, green and blue in grey (ITU-R BT.601).
LUMA = (0.299, 0.587, 0.114)


@dataclasses.dataclass(frozen=True)
class Split:
    """images: uint8 [examples, H, W, C]; labels: int64 [examples]."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.images.shape[1:]

    def part(self, begin: int, end: int | None = None) -> "Split":
        """Returns the examples from `begin` to before `end` (to the last if None)."""
        return Split(self.images[begin:end], self.labels[begin:end])

    def take(self, examples: int | None) -> "Split":
        """Returns the first `examples` (all if None)."""
        return self.part(0, examples)

    def reader(self) -> Reader:
        """Returns a function that reads examples by their places in the split."""
        with tf.device("CPU"):  # tf.data runs there; the GPU's memory is for training.
            images, labels = tf.constant(self.images), tf.constant(self.labels)
        return lambda indices: (tf.gather(images, indices), tf.gather(labels, indices))


@dataclasses.dataclass(frozen=True)
class StoredSplit:
    """A `Split` on disk: `images` are read when they are indexed, `labels` when first asked for.

    Attributes:
        read: reads stored rows by their numbers.
        rows: int64, the stored rows that make up this split, in its order.
        check: reads everything once; raises UsageError, which names the damaged data.
    """

    read: Reader
    rows: np.ndarray
    image_shape: tuple[int, int, int]
    check: Callable[[], None]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def images(self) -> "StoredImages":
        return StoredImages(self)

    @functools.cached_property
    def labels(self) -> np.ndarray:
        found = [labels for _, labels in _batches(self.read, self.rows)]
        return np.concatenate([np.zeros(0, np.int64), *found])

    def part(self, begin: int, end: int | None = None) -> "StoredSplit":
        """Returns the examples from `begin` to before `end` (to the last if None)."""
        return dataclasses.replace(self, rows=self.rows[begin:end])

    def take(self, examples: int | None) -> "StoredSplit":
        """Returns the first `examples` (all if None)."""
        return self.part(0, examples)

    def reader(self) -> Reader:
        """Returns a function that reads examples by their places in the split."""
        rows = tf.constant(self.rows)
        return lambda indices: self.read(tf.gather(rows, indices))


class StoredImages:
    """The images of a `StoredSplit`, uint8 [examples, H, W, C]; indexing reads them."""

    dtype = np.dtype(np.uint8)

    def __init__(self, split: StoredSplit):
        self.split = split
        self.shape = (len(split), *split.image_shape)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, places: slice | np.ndarray) -> np.ndarray:
        found = [images for images, _ in _batches(self.split.read, self.split.rows[places])]
        return np.concatenate([np.zeros((0, *self.shape[1:]), np.uint8), *found])

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)


def _batches(read: Reader, rows: np.ndarray):
    batches = tf.data.Dataset.from_tensor_slices(rows).batch(READ_AT_ONCE)
    return batches.map(read, num_parallel_calls=tf.data.AUTOTUNE).as_numpy_iterator()


def fit(image: tf.Tensor, image_shape: tuple[int, int, int]) -> tf.Tensor:
    """Converts an image to the channels and the size of a dataset.

    Alpha is dropped; grey becomes equal channels, colour its luma. The
    size is reached by bilinear interpolation, antialiased; the aspect is not kept.

    Args:
        image: uint8 [height, width, 1 to 4]: grey, grey and alpha, RGB, RGB and alpha.
        image_shape: (height, width, 1 or 3) of the result.

    Returns:
        uint8 [*image_shape].
    """
    if image.shape == image_shape:
        return image
    # Resizing an image that has the size already would cost more than decoding it.
    as_wanted = tf.reduce_all(tf.shape(image) == image_shape)
    fitted = tf.cond(as_wanted, lambda: image, lambda: _fitted(image, image_shape))
    return tf.ensure_shape(fitted, image_shape)


def _fitted(image: tf.Tensor, image_shape: tuple[int, int, int]) -> tf.Tensor:
    height, width, channels = image_shape
    in_colour = tf.shape(image)[-1] >= 3
    grey = tf.cast(image[..., :1], tf.float32)
    rgb = tf.gather(image, tf.where(in_colour, [0, 1, 2], [0, 0, 0]), axis=-1)
    fitted = tf.cast(rgb, tf.float32)
    if channels == 1:
        luma = tf.reduce_sum(fitted * LUMA, axis=-1, keepdims=True)
        fitted = tf.where(in_colour, luma, grey)
    resized = tf.image.resize(fitted, [height, width], antialias=True)
    return tf.cast(tf.round(resized), tf.uint8)
