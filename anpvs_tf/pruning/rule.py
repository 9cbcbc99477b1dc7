"""The base of the rules by which layers of a kind are pruned, folded and narrowed."""

import keras
import numpy as np
import tensorflow as tf

from anpvs_tf.networks.graph import Node
from anpvs_tf.pruning.channels import Channels, Given
from anpvs_tf.pruning.frozen_steps import Value, Vector, gathered

Constants = tuple[np.ndarray, np.ndarray, Vector]  # constant, zero and value of `Channels`.
Indices = np.ndarray
Places = tuple[Indices, ...] | None  # Of every axis of a weight; None for all of it.


class Rule:
    """How a kind of layer treats channels.

    This base is the rule of a layer without weights of which every output channel is made of the
    input channels that `Node.reads` names, and which passes constants.
    """

    # ---- Which channels are constant, and which are needed ----

    def constants(self, node: Node, inputs: list[Channels], given: Given) -> Constants:
        """Says which channels of the output are constant, and their values."""
        (reads,), (before,) = node.reads, inputs
        return before.constant[reads], before.zero[reads], gathered(before.value, reads)

    def needs(self, node: Node, needed: np.ndarray, given: Given) -> list[np.ndarray]:
        """Says which channels of each input the needed ones of the output are made of, bool."""
        return [
            np.isin(np.arange(shape[-1]), reads[needed])
            for reads, shape in zip(node.reads, node.input_shapes, strict=True)
        ]

    # ---- The same, differentiable in the gates' masks ----

    def varies(self, node: Node, before: list[tf.Tensor], masks: dict[str, tf.Tensor]) -> tf.Tensor:
        """Says how far the output's channels vary, in [0, 1], if the inputs' do as in `before`."""
        return tf.gather(before[0], node.reads[0])

    def wanted(self, node: Node, wanted: tf.Tensor, masks: dict[str, tf.Tensor]) -> list[tf.Tensor]:
        """Says how far each input's channels are needed, in [0, 1], if the output's are so."""
        return [
            wanted
            if np.array_equal(reads, np.arange(shape[-1]))
            else tf.math.unsorted_segment_max(wanted, reads, shape[-1])
            for reads, shape in zip(node.reads, node.input_shapes, strict=True)
        ]

    # ---- The frozen network ----

    def fold(self, node: Node, folding) -> Value:
        """Adds steps to a `folding.Folding` that compute the output."""
        raise NotImplementedError

    # ---- The layer with fewer channels, for training ----

    def agree(self, node: Node, inputs: list[np.ndarray], output: np.ndarray) -> None:
        """Adds channels, in place, until those before and behind the layer fit each other."""
        for reads, channels in zip(node.reads, inputs, strict=True):
            own = reads >= 0
            output[own] |= channels[reads[own]]
        for reads, channels in zip(node.reads, inputs, strict=True):
            channels[reads[output & (reads >= 0)]] = True

    def narrow(self, node: Node, rows: Indices, columns: Indices) -> keras.layers.Layer:
        """Makes the layer anew, for channels `rows` of its input and `columns` of its output."""
        layer = node.layer
        if not isinstance(layer, keras.layers.Layer):
            return layer  # An operator does not know a number of channels.
        return type(layer).from_config(layer.get_config() | self.settings(node, rows, columns))

    def settings(self, node: Node, rows: Indices, columns: Indices) -> dict:
        """Returns the options of the narrow layer that differ from the layer's."""
        return {}

    def places(self, node: Node, shape: tuple, rows: Indices, columns: Indices) -> Places:
        """Says which part of a weight of `shape` the narrow layer keeps."""
        return (*map(np.arange, shape[:-1]), columns)
