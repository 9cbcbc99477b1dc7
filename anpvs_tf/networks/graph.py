"""The graph of a functional network: its layer calls in order, and the kinds of layers."""

import dataclasses

import keras

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


def nodes_of(network: keras.Model, output) -> list[Node]:
    """The layer calls between a functional model's input and `output`, in order.

    Raises:
        UsageError: not a functional model of one input, or a layer that freezing
            cannot handle, by name.
    """
    if len(getattr(network, "inputs", None) or ()) != 1:
        raise UsageError(f"{network.name} cannot be frozen: it must be functional with one input")
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
    elif isinstance(layer, layers.Normalization) and layer.invert:
        reason = "invert=True is not supported"
    elif isinstance(layer, layers.Activation) and layer.activation is keras.activations.softmax:
        reason = "a network must end in logits, without softmax"
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
