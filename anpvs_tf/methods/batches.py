"""Batches as Keras users give them: converted for a training step, or refused."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from anpvs_tf.attacks.image_range import check_pixels
from anpvs_tf.common.errors import UsageError


def unpacked(data: Any, classes: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the images and labels of a batch: float32 [batch, ...] and integers [batch].

    Args:
        data: (images, labels): images of any floating-point type in [0, 1]; labels of any integer
            type, [batch] or [batch, 1].
        classes: number of classes.

    Raises:
        UsageError: sample weights, integer images, or labels of another kind or shape.
    """
    images, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
    if labels is None:
        raise UsageError("a batch must be (images, labels); got images alone")
    if weights is not None:
        raise UsageError(
            "sample_weight and class_weight are not supported: every example counts the same; "
            "leave them out, or repeat examples"
        )
    images, labels = tf.convert_to_tensor(images), tf.convert_to_tensor(labels)
    if not images.dtype.is_floating:
        raise UsageError(
            f"images must be floats from 0 to 1; got {images.dtype.name}: divide them by 255"
        )
    if labels.shape.rank == 2 and labels.shape[1] == 1:
        labels = tf.squeeze(labels, axis=1)
    if labels.shape.rank == 2:
        raise UsageError(
            f"labels must be the numbers of the classes, [batch]; got {tuple(labels.shape)}: of "
            "one-hot labels take np.argmax(labels, axis=1)"
        )
    if not labels.dtype.is_integer or labels.shape.rank != 1:
        raise UsageError(
            f"labels must be integers from 0 to {classes - 1}, [batch]; got {labels.dtype.name} "
            f"{tuple(labels.shape)}"
        )
    if labels.dtype not in (tf.int32, tf.int64):
        labels = tf.cast(labels, tf.int64)
    return tf.cast(images, tf.float32), labels


def check_first(data: Any) -> None:
    """Refuses images outside [0, 1] before training or evaluation begins.

    Args:
        data: as Keras's `fit` and `evaluate` take it. Arrays and tensors are checked whole, of a
            tf.data.Dataset and a PyDataset the first batch, a generator not at all.

    Raises:
        UsageError: as `check_pixels`.
    """
    if isinstance(data, tf.data.Dataset):
        data = next(iter(data.take(1)), None)
    elif isinstance(data, keras.utils.PyDataset):
        data = data[0]
    if isinstance(data, (tuple, list)) and data:
        data = data[0]
    if isinstance(data, (np.ndarray, tf.Tensor)):
        check_pixels(data)


def check_no_losses_in_calls(layers: list[keras.layers.Layer]) -> None:
    """Refuses layers that have added a loss of their own when they were called.

    Raises:
        UsageError: names the first of them.
    """
    for layer in layers:
        regularized = sum(v.regularizer is not None for v in layer.trainable_variables)
        if len(layer.losses) > regularized:
            raise UsageError(
                f"layer {layer.name!r} adds a loss when it is called (add_loss or an "
                "activity_regularizer), which adversarial training would not minimise; remove it"
            )
