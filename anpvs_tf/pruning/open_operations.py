"""How many multiplications a gated network needs, as a function of its gates' masks.

`FrozenNetwork.multiplications` counts a network that has been built without its pruned
features; this module counts within a training step, and gives the cost of each feature.
"""

import tensorflow as tf

from anpvs_tf.networks import graph
from anpvs_tf.pruning.layer_rules import RULES
from anpvs_tf.pruning.linear_rules import Linear


def multiplications(nodes: list[graph.Node], masks: dict[str, tf.Tensor]) -> tf.Tensor:
    """Counts the multiply-adds of one image in convolutions and dense layers, a float32 scalar.

    Exact for masks of 0 and 1 where every kernel is full, pruned features are the only
    constants and the groups of a convolution keep one size; differentiable in the masks.

    Args:
        nodes: of the network, from `graph.nodes_of`.
        masks: {gate's name: float32 [features], 0 where the feature is pruned}; a gate that
            is absent is open.
    """
    # 1 where a channel varies, by the masks before it, and where it is needed, by those behind.
    varies: dict[int, tf.Tensor] = {}
    for node in nodes:
        before = [
            varies.get(number, tf.ones([shape[-1]]))
            for number, shape in zip(node.inputs, node.input_shapes, strict=True)
        ]
        varies[node.output] = RULES[node.kind].varies(node, before, masks)
    needed = {nodes[-1].output: tf.ones([nodes[-1].output_shape[-1]])}
    for node in reversed(nodes):
        # A constant is not needed; but no mask may count twice in a derivative.
        wanted = needed[node.output] * tf.stop_gradient(varies[node.output])
        parts = RULES[node.kind].wanted(node, wanted, masks)
        for number, part in zip(node.inputs, parts, strict=True):
            needed[number] = tf.maximum(needed[number], part) if number in needed else part
    alive = {number: channels * varies.get(number, 1.0) for number, channels in needed.items()}
    makers = {node.output: node for node in nodes}
    total = tf.constant(0.0)
    for node in nodes:
        rule = RULES[node.kind]
        if isinstance(rule, Linear):
            made = alive[node.output]
            if rule.groups(node) > 1:
                pairs = _in_groups(node, rule.groups(node), alive)
            else:
                pairs = tf.reduce_sum(made) * _read(node, makers, alive)
            total += rule.applications(node) * pairs
    return total


def costs(
    nodes: list[graph.Node], masks: dict[str, tf.Tensor]
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """Returns `multiplications`, and by gate how many of them each feature causes, [features]."""
    with tf.GradientTape() as tape:
        tape.watch(masks)
        total = multiplications(nodes, masks)
    return total, tape.gradient(total, masks, unconnected_gradients="zero")


def _in_groups(node: graph.Node, groups: int, alive: dict[int, tf.Tensor]) -> tf.Tensor:
    """Counts the pairs of an input and an output channel of a convolution in groups."""
    made = tf.reduce_sum(tf.reshape(alive[node.output], [groups, -1]), axis=1)
    if node.reads is not None:  # One input channel for each output channel.
        return tf.reduce_sum(made)
    read = tf.reduce_sum(tf.reshape(alive[node.inputs[0]], [groups, -1]), axis=1)
    return tf.reduce_sum(made * read)


def _read(
    node: graph.Node, makers: dict[int, graph.Node], alive: dict[int, tf.Tensor]
) -> tf.Tensor:
    """Counts the channels that a convolution or dense layer reads for one of its outputs."""
    (number,) = node.inputs
    # A channel is flattened with all its places, whatever gates come behind.
    maker = makers.get(number)
    while maker is not None and len(maker.inputs) == 1 and maker.reads is not None:
        if maker.kind == "flatten":
            (flattened,) = maker.inputs
            places = maker.output_shape[-1] // maker.input_shapes[0][-1]
            return places * tf.reduce_sum(alive[flattened])
        maker = makers.get(maker.inputs[0])
    return tf.reduce_sum(alive[number])
