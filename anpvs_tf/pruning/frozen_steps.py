"""The steps of a frozen network, whose weights are functions of live variables."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from anpvs_tf.networks.graph import Node

Vector = Callable[[], tf.Tensor]


@dataclasses.dataclass
class Step:
    """One operation: tensors[output] = run(tensors[inputs], folded weights).

    `kind`, `layer`, `indices`, `shape` and `node` say what `run` does, for `compact.freeze`:
        linear: the convolution or dense `layer` without its activation; weights are
            kernel, bias and perhaps one for the gradient; the kernel has zero rows for
            the input channels that are not in `indices`.
        depthwise: the depthwise `layer` with its activation.
        activation: the activation of `layer`.
        affine: x * weights[0] + weights[1], the second one optional.
        select: the channels `indices` of x with the constants weights[0] appended.
        constant: weights[0] at every place of a tensor [batch, *shape].
        layer: the weightless `layer` itself.
        reshape: to [batch, *shape].
        whole: the call `node`, with the layer's own weights.
    `multiplications` counts the multiply-adds of one image.
    """

    run: Callable[[list[tf.Tensor], list[tf.Tensor]], tf.Tensor]
    inputs: list[int]
    output: int
    weights: list[Vector]
    kind: str
    layer: keras.layers.Layer | None = None
    indices: np.ndarray | None = None
    shape: list[int] | None = None
    node: Node | None = None
    multiplications: int = 0


def taken(tensor: tf.Tensor, indices: np.ndarray, axis: int) -> tf.Tensor:
    """The slices at `indices`, which increase; all of them cost nothing."""
    return tensor if len(indices) == tensor.shape[axis] else tf.gather(tensor, indices, axis=axis)


# Closures made in functions of their own, so that each keeps its own arguments.


def fixed(array: np.ndarray) -> Vector:
    return lambda: tf.constant(array)


def gathered(vector: Vector, indices: np.ndarray) -> Vector:
    return lambda: taken(vector(), indices, 0)


def times(vector: Vector, factor: Vector) -> Vector:
    return lambda: vector() * factor()


def plus(vector: Vector, offset: Vector | None) -> Vector:
    return vector if offset is None else lambda: vector() + offset()


def tiled(vector: Vector, times: int) -> Vector:
    return lambda: tf.tile(vector(), [times])
