"""The graph of a functional network: its layer calls in order, and the kinds of layers."""

import dataclasses
import functools
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from anpvs_tf.common.errors import UsageError
from anpvs_tf.networks import bayesian
from anpvs_tf.networks.gate import Gate
from anpvs_tf.networks.shared_dropout import PairedDropout

layers = keras.layers
LINEAR = (layers.Conv2D, layers.Dense)
DEPTHWISE = (layers.DepthwiseConv2D,)
AFFINE = (layers.BatchNormalization, layers.Normalization, layers.Rescaling, Gate)
IDENTITY = (layers.Dropout, layers.SpatialDropout2D, layers.GaussianDropout, layers.GaussianNoise)
IDENTITY += (layers.Identity, PairedDropout)
POOLING = (layers.MaxPooling2D, layers.AveragePooling2D)
GLOBAL_POOLING = (layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D)
ELEMENTWISE = (layers.ReLU, layers.LeakyReLU, layers.ELU, layers.Activation)


@dataclasses.dataclass(frozen=True)
class Node:
    """A call of a layer; tensors are named by number."""

    layer: keras.layers.Layer
    inputs: tuple[int, ...]
    output: int
    input_shapes: tuple[tuple, ...]
    output_shape: tuple


def logits_of(network: keras.Model) -> keras.KerasTensor:
    """The symbolic tensor of a network's logits: its output, or its output "logits"."""
    return network.output["logits"] if isinstance(network.output, dict) else network.outputs[0]


def check_input(network: keras.Model) -> None:
    """Raises UsageError unless a model is functional with one input of floats."""
    inputs = getattr(network, "inputs", None) or ()
    if len(inputs) != 1 or not hasattr(network, "_nodes_by_depth"):
        raise UsageError(
            f"{network.name} cannot be frozen: it must be a functional model with one input "
            f"(keras.Model(inputs, outputs)); it is a {type(network).__name__} with "
            f"{len(inputs)} known inputs"
        )
    if not keras.backend.is_float_dtype(inputs[0].dtype):
        raise UsageError(
            f"{network.name} takes {inputs[0].dtype} images: fractions of [0, 1] would become 0; "
            "give it a float input, in front of its Rescaling"
        )


@functools.lru_cache(maxsize=256)
def is_elementwise(activation: Callable) -> bool:
    """Whether each value of an activation depends on the one at its place alone.

    Asked of the function itself on some numbers, because a user's own can be any: softmax and
    its kind mix channels, so that a channel that is removed changes the others.
    """
    with tf.init_scope():
        numbers = tf.reshape(tf.linspace(-3.0, 3.3, 24), [2, 2, 2, 3])
        together = np.asarray(activation(numbers))
        if together.shape != numbers.shape:
            return False
        alone = [
            np.asarray(activation(tf.reshape(x, [1, 1, 1, 1]))).item()
            for x in tf.reshape(numbers, [-1])
        ]
    return bool(np.allclose(together.ravel(), alone, rtol=1e-5, atol=1e-6, equal_nan=True))


def _vector_problem(layer: keras.layers.Layer, width: int) -> str | None:
    """Why a Normalization or Rescaling is not one number for each channel; None if it is."""
    if isinstance(layer, layers.Normalization):
        if layer.invert:
            return "invert=True is not supported"
        held = {"mean": layer.mean, "variance": layer.variance}
        if None in held.values():
            return "it has no mean and variance; call its adapt, or give them"
    else:
        held = {"scale": layer.scale, "offset": layer.offset}
    for name, value in held.items():
        shape = np.shape(value)
        if np.prod(shape, dtype=int) not in (1, shape[-1] if shape else 1) or (
            shape and shape[-1] not in (1, width)
        ):
            return f"its {name} of shape {shape} is not one number for each of {width} channels"
    return None


def nodes_of(network: keras.Model, output) -> list[Node]:
    """The layer calls between a functional model's input and `output`, in order.

    Raises:
        UsageError: not a functional model of one input, or a layer that freezing
            cannot handle, by name.
    """
    check_input(network)
    by_depth = network._nodes_by_depth
    calls = [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]
    wanted = {id(output)}
    kept = []
    for call in reversed(calls):
        if isinstance(call.operation, keras.layers.InputLayer):
            continue
        if not any(id(tensor) in wanted for tensor in call.outputs):
            continue
        wanted |= {id(tensor) for tensor in call.input_tensors}
        kept.append(call)
    return [_node(call) for call in reversed(kept)]


def _node(call) -> Node:
    layer = call.operation
    supported = LINEAR + DEPTHWISE + AFFINE + IDENTITY + POOLING + GLOBAL_POOLING + ELEMENTWISE
    supported += (layers.Flatten, layers.ZeroPadding2D, layers.Add, layers.Concatenate)
    supported += bayesian.LAYERS  # As their parents, with the posterior means.
    reason = None
    if type(layer) not in supported and not isinstance(layer, Gate):
        reason = f"layers of type {type(layer).__name__} are not supported"
        if not isinstance(layer, keras.layers.Layer):
            reason = f"the operation {type(layer).__name__} is no layer; use keras.layers.Add, say"
    elif getattr(layer, "data_format", "channels_last") != "channels_last":
        reason = "only data_format='channels_last' is supported"
    elif getattr(layer, "groups", 1) != 1:
        reason = "grouped convolutions are not supported"
    elif isinstance(layer, layers.DepthwiseConv2D) and layer.depth_multiplier != 1:
        reason = "depthwise convolutions with a depth_multiplier are not supported"
    elif isinstance(layer, layers.BatchNormalization | layers.Concatenate) and layer.axis not in (
        -1,
        len(call.outputs[0].shape) - 1,
    ):
        reason = "only axis=-1 is supported"
    elif isinstance(layer, layers.Normalization | layers.Rescaling):
        reason = _vector_problem(layer, call.outputs[0].shape[-1])
    elif (activation := getattr(layer, "activation", None)) and not is_elementwise(activation):
        reason = (
            f"its activation {getattr(activation, '__name__', activation)} mixes channels; "
            "a network must end in logits, without softmax, and use elementwise activations inside"
        )
    if reason:
        raise UsageError(f"layer {layer.name!r} cannot be frozen: {reason}")
    return Node(
        layer,
        tuple(id(tensor) for tensor in call.input_tensors),
        id(call.outputs[0]),
        tuple(tensor.shape for tensor in call.input_tensors),
        call.outputs[0].shape,
    )


def hidden(nodes: list[Node]) -> list[Node]:
    """The calls of convolutions and dense layers before the logits'."""
    return [node for node in nodes if isinstance(node.layer, LINEAR)][:-1]
