"""The steps of a frozen network, whose weights are functions of live variables."""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

Vector = Callable[[], tf.Tensor]


@dataclasses.dataclass
class Step:
    """One operation: tensors[output] = run(tensors[inputs], folded weights).

    Attributes:
        build: the same of Keras layers, for `compact.freeze`: from symbolic inputs, the folded
            weights as arrays, and a `compact.Copies`, which adds a layer, to a symbolic output.
        multiplications: the multiply-adds of one image.
    """

    run: Callable[[list[tf.Tensor], list[tf.Tensor]], tf.Tensor]
    inputs: list[int]
    output: int
    weights: list[Vector]
    build: Callable
    multiplications: int = 0


@dataclasses.dataclass
class Value:
    """A tensor as (computed tensor `source`) * scale + shift, on `channels` only.

    Attributes:
        source: number of a computed tensor.
        channels: indices of the original channels, one for each computed one.
        scale, shift: float32 [channels] when called, or None for 1 and 0. A scale
            without a shift comes from gates alone and is not negative.
        linear: the step that makes `source`, while no other step has read it: further
            affine layers go into its weights.
        places: the height and width, where no channel is computed; `source` then
            tells no more than the batch size.
    """

    source: int
    channels: np.ndarray
    scale: Vector | None = None
    shift: Vector | None = None
    linear: "LinearWeights | None" = None
    places: tuple | None = None


@dataclasses.dataclass
class LinearWeights:
    """Kernel and bias of a step, [..., out] each."""

    kernel: Vector
    bias: Vector


def taken(tensor: tf.Tensor, indices: np.ndarray, axis: int) -> tf.Tensor:
    """Takes the slices at `indices`; all of them in order cost nothing."""
    if np.array_equal(indices, np.arange(tensor.shape[axis])):
        return tensor
    return tf.gather(tensor, indices, axis=axis)


# Closures made in functions of their own, so that each keeps its own arguments.


def fixed(array: np.ndarray) -> Vector:
    return lambda: tf.constant(array)


def gathered(vector: Vector, indices: np.ndarray) -> Vector:
    return lambda: taken(vector(), indices, 0)


def times(vector: Vector, factor: Vector) -> Vector:
    return lambda: vector() * factor()


def plus(vector: Vector, offset: Vector | None) -> Vector:
    return vector if offset is None else lambda: vector() + offset()


def then(vector: Vector, function: Callable[[tf.Tensor], tf.Tensor]) -> Vector:
    return lambda: function(vector())
