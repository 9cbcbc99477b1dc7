"""How many multiplications a gated network needs, as a function of its gates' masks.

`FrozenNetwork.multiplications` counts a network that has been built without its pruned
features; this counts within a training step, and gives what each feature costs.
"""

import keras
import tensorflow as tf

from anpvs_tf.networks import graph
from anpvs_tf.networks.gate import Gate


def multiplications(nodes: list[graph.Node], masks: dict[str, tf.Tensor]) -> tf.Tensor:
    """Multiply-adds of one image in convolutions and dense layers, a float32 scalar.

    Exact for masks of 0 and 1 where every kernel is full and pruned features are the only
    constants; differentiable in the masks.

    Args:
        nodes: of the network, from `graph.nodes_of`.
        masks: {gate's name: float32 [features], 0 where the feature is pruned}; a gate that
            is absent is open.
    """
    # 1 where a channel varies, by the masks before it, and where it is needed, by those behind.
    varies: dict[int, tf.Tensor] = {}
    for node in nodes:
        varies[node.output] = _forward(node, masks, varies)
    needed = {nodes[-1].output: tf.ones([nodes[-1].output_shape[-1]])}
    for node in reversed(nodes):
        # A constant is not needed; but no mask may count twice in a derivative.
        wanted = needed[node.output] * tf.stop_gradient(varies[node.output])
        for number, part in zip(node.inputs, _backward(node, wanted, masks), strict=True):
            needed[number] = tf.maximum(needed[number], part) if number in needed else part
    alive = {number: channels * varies.get(number, 1.0) for number, channels in needed.items()}
    makers = {node.output: node for node in nodes}
    total = tf.constant(0.0)
    for node in nodes:
        if node.kind in ("linear", "depthwise"):
            each = _taps(node.layer) * _places(node.output_shape)
            made = tf.reduce_sum(alive[node.output])
            total += each * made * _read(node, makers, alive)
    return total


def costs(
    nodes: list[graph.Node], masks: dict[str, tf.Tensor]
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """`multiplications`, and by gate how many of them each feature answers for, [features]."""
    with tf.GradientTape() as tape:
        tape.watch(masks)
        total = multiplications(nodes, masks)
    return total, tape.gradient(total, masks, unconnected_gradients="zero")


def _forward(node: graph.Node, masks: dict[str, tf.Tensor], varies: dict[int, tf.Tensor]):
    layer, width = node.layer, node.output_shape[-1]
    before = [varies.get(i) for i in node.inputs]
    before = [
        tf.ones([shape[-1]]) if found is None else found
        for found, shape in zip(before, node.input_shapes, strict=True)
    ]
    if node.kind in ("linear", "whole"):
        return tf.ones([width])
    if isinstance(layer, Gate):
        return before[0] * masks[layer.name] if layer.name in masks else before[0]
    if node.kind == "flatten":
        return tf.tile(before[0], [width // before[0].shape[0]])
    if node.kind == "concatenate":
        return tf.concat(before, axis=0)
    if node.kind == "merge":
        return tf.reduce_max(tf.stack(before), axis=0)
    if node.kind == "multiply":
        return tf.reduce_min(tf.stack(before), axis=0)
    return before[0]


def _backward(node: graph.Node, wanted: tf.Tensor, masks: dict[str, tf.Tensor]) -> list[tf.Tensor]:
    layer, widths = node.layer, [shape[-1] for shape in node.input_shapes]
    if node.kind in ("linear", "whole"):
        return [tf.ones([width]) for width in widths]
    if isinstance(layer, Gate) and layer.name in masks:
        return [wanted * masks[layer.name]]
    if node.kind == "flatten":
        return [tf.reduce_max(tf.reshape(wanted, [-1, widths[0]]), axis=0)]
    if node.kind == "concatenate":
        return tf.split(wanted, widths)
    return [wanted] * len(widths)


def _read(
    node: graph.Node, makers: dict[int, graph.Node], alive: dict[int, tf.Tensor]
) -> tf.Tensor:
    """How many channels a convolution or dense layer reads for one of its outputs."""
    if node.kind == "depthwise":
        return tf.constant(1.0)
    (number,) = node.inputs
    # A channel is flattened with all its places, whatever gates come behind.
    maker = makers.get(number)
    while maker is not None and len(maker.inputs) == 1 and _keeps_channels(maker):
        if maker.kind == "flatten":
            (flattened,) = maker.inputs
            places = maker.output_shape[-1] // maker.input_shapes[0][-1]
            return places * tf.reduce_sum(alive[flattened])
        maker = makers.get(maker.inputs[0])
    return tf.reduce_sum(alive[number])


def _keeps_channels(node: graph.Node) -> bool:
    return node.kind not in ("linear", "whole")


def _taps(layer: keras.layers.Layer) -> float:
    size = 1.0
    for extent in getattr(layer, "kernel_size", ()):
        size *= extent
    return size


def _places(shape: tuple) -> float:
    places = 1.0
    for extent in shape[1:-1]:
        places *= extent
    return places
