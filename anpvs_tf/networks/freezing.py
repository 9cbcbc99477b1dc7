"""Layers that fine-tuning leaves as they are."""

import difflib

import keras

from anpvs_tf.common.errors import UsageError
from anpvs_tf.networks import graph
from anpvs_tf.networks.gate import Gate, gates_of

# The most names of layers that are shown to a user who gave an unknown one.
_SHOWN = 8


def freeze_below(network: keras.Model, layer: str) -> None:
    """Makes a layer, and all that its output depends on, not trainable.

    Batch normalisations there act as in inference. Gates there, one directly behind the layer
    too, are opened and not trained (a warm start then gives them the masks of its base); of a gate
    that several layers share, one of them there is enough.

    Args:
        network: functional; its output is a dict of which "logits" is one.
        layer: the name of one of its layers, no gate.

    Raises:
        UsageError: no such layer, or nothing is left to train.
    """
    nodes = graph.nodes_of(network, graph.logits_of(network))
    named = [n for n in nodes if n.layer.name == layer and not isinstance(n.layer, Gate)]
    if not named:
        raise UsageError(
            f"--freeze_below names layer {layer!r}, which {network.name} does not have; some of "
            f"its layers: {', '.join(_suggested(nodes, layer))}"
        )
    frozen = {node.output for node in named}
    for node in reversed(nodes):
        if node.output in frozen:
            frozen |= set(node.inputs)
    for node in nodes:
        if isinstance(node.layer, Gate) and frozen & set(node.inputs):
            node.layer.open_all()
            node.layer.trainable = False
        elif node.output in frozen and isinstance(node.layer, keras.layers.Layer):
            node.layer.trainable = False
    learned = {id(v) for gate in gates_of(network) for v in gate.trainable_variables}
    if all(id(v) in learned for v in network.trainable_variables):
        raise UsageError(
            f"--freeze_below={layer} leaves {network.name} nothing to train; name an earlier layer"
        )


def _suggested(nodes: list[graph.Node], name: str) -> list[str]:
    """Returns the names of layers similar to `name`, else of the first layers with weights."""
    named = [node.layer for node in nodes if not isinstance(node.layer, Gate)]
    like = difflib.get_close_matches(name, [layer.name for layer in named], _SHOWN)
    weighted = [layer.name for layer in named if getattr(layer, "weights", ())]
    return like or weighted[:_SHOWN]
