"""Examples leave an attack when they are broken, and the batch shrinks.

An attack keeps the positions of the examples that are left, int [examples], and
state tensors with one row for each of them.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf


def keep(mask: tf.Tensor, state: Any) -> Any:
    """Gathers from every tensor of a structure the rows where mask, bool [examples], is true."""
    rows = tf.where(mask)[:, 0]
    return tf.nest.map_structure(lambda values: tf.gather(values, rows), state)


def put(values: tf.Tensor, positions: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Replaces the rows of `values` at `positions`."""
    return tf.tensor_scatter_nd_update(values, positions[:, None], rows)


def select(mask: tf.Tensor, yes: tf.Tensor, no: tf.Tensor) -> tf.Tensor:
    """Takes each row from `yes` where mask, bool [examples], is true, else from `no`."""
    return tf.where(tf.reshape(mask, [-1] + [1] * (yes.shape.rank - 1)), yes, no)


def any_size(state: Any) -> Any:
    """Returns the shapes of a structure of tensors, with the number of rows left open."""
    return tf.nest.map_structure(lambda t: tf.TensorShape([None, *t.shape[1:]]), state)


def unless_none(left: tf.Tensor, attack: Callable[[], tf.Tensor], images: tf.Tensor) -> tf.Tensor:
    """Returns the images of `attack()`, or `images` if left, bool [batch], is true nowhere.

    oneDNN fails at a convolution of an empty batch (TensorFlow 2.21), or ends the process.
    """
    return tf.cond(tf.reduce_any(left), attack, lambda: images)


def run(period: Callable, end: int, state: Any, images: tf.Tensor) -> tf.Tensor:
    """Runs an attack until its end, or until no example is left.

    Args:
        period: (i, state, images) -> the next i, the state of the examples left, and the images.
        end: the i at which the attack ends; i begins at 0.
        state: of the examples that are left; `state.position` says which they are.
        images: [batch, ...], all of them.

    Returns:
        The images of the last period, without a gradient.
    """
    _, _, images = tf.while_loop(
        lambda i, state, _: (i < end) & (tf.size(state.position) > 0),
        period,
        (0, state, images),
        shape_invariants=(tf.TensorShape([]), any_size(state), any_size(images)),
    )
    return tf.stop_gradient(images)
