"""Layers that fine-tuning leaves as they are."""

import keras

from anpvs_tf.common.errors import UsageError
from anpvs_tf.networks import graph
from anpvs_tf.networks.gate import Gate, gates_of

# So many names of layers are shown to one who gave another.
_SHOWN = 12


def freeze_below(network: keras.Model, layer: str) -> None:
    """Makes a layer, and all that its output depends on, not trainable.

    Batch normalisations there act as in inference. Gates there, one directly behind the layer
    too, are opened and not trained; of a gate that several layers share, one of them there is
    enough.

    Args:
        network: functional; its output is a dict of which "logits" is one.
        layer: the name of one of its layers, no gate.

    Raises:
        UsageError: no such layer, or nothing is left to train.
    """
    nodes = graph.nodes_of(network, graph.logits_of(network))
    named = [n for n in nodes if n.layer.name == layer and not isinstance(n.layer, Gate)]
    if not named:
        weighted = [n.layer for n in nodes if getattr(n.layer, "weights", ())]
        names = [held.name for held in weighted if not isinstance(held, Gate)]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise UsageError(
            f"--freeze_below names layer {layer!r}, which {network.name} does not have; some of "
            f"its layers: {', '.join(names[:_SHOWN])}{more}"
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
