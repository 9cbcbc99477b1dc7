"""How a network is folded: every affine map into a kernel beside it, by the rule of each layer."""

import numpy as np
import tensorflow as tf

from anpvs_tf.networks.graph import Node
from anpvs_tf.pruning.channels import Channels
from anpvs_tf.pruning.compact_layers import Affine, Constant, Select
from anpvs_tf.pruning.frozen_steps import Step, Value, Vector, fixed, gathered
from anpvs_tf.pruning.layer_rules import RULES


class Folding:
    """The steps that compute a network's logits, with all that can be folded into their kernels.

    Args:
        nodes: the network's layers in the order in which they run.
        image: number of the tensor of images.
        channels: of an image.
        known: the channels of every tensor, from `live_channels.analyse`.

    Attributes:
        steps: in the order in which they run.
        values: of every tensor so far, by its number.
        logits: number of the tensor of logits.

    Raises:
        UsageError: all paths of the network are pruned.
    """

    def __init__(self, nodes: list[Node], image: int, channels: int, known: dict[int, Channels]):
        self.image = image
        self.known = known
        self._readers = [i for node in nodes for i in node.inputs]
        self.steps: list[Step] = []
        self.values = {image: Value(image, np.arange(channels))}
        for node in nodes:
            if known[node.output].needed.any():
                value = RULES[node.kind].fold(node, self)
            else:
                value = Value(image, np.array([], int), places=node.output_shape[1:-1])
            self.values[node.output] = value
        logits = nodes[-1].output
        self.logits = self.supply(self.values[logits], known[logits], known[logits].present)

    def is_read_once(self, tensor: int) -> bool:
        """Says whether one layer alone reads a tensor of the network."""
        return self._readers.count(tensor) == 1

    def emit(self, run, inputs: list[int], weights: list[Vector], build, **what) -> int:
        """Adds a `Step`; returns the number of its output."""
        output = -1 - len(self.steps)
        self.steps.append(Step(run, inputs, output, weights, build, **what))
        return output

    def materialised(self, value: Value) -> Value:
        """Adds the step that applies a value's scale and shift, if any; returns the new value."""
        if value.scale is None and value.shift is None:
            return value
        ones = fixed(np.ones(len(value.channels), np.float32))
        weights = [value.scale or ones]
        weights += [value.shift] if value.shift is not None else []

        def run(x, w):
            y = x[0] * w[0]
            return y + w[1] if len(w) > 1 else y

        def build(x, weights, copies):
            affine = Affine(*(weight.shape for weight in weights), name="affine")
            return copies.add(affine, x[0], weights)

        return Value(self.emit(run, [value.source], weights, build), value.channels)

    def supply(self, value: Value, known: Channels, wanted: np.ndarray) -> int:
        """Makes a tensor of exactly the channels `wanted`, constants too; returns its number."""
        value = self.materialised(value)
        if np.array_equal(value.channels, wanted):
            return value.source
        places = {channel: place for place, channel in enumerate(value.channels)}
        constant = np.array([c for c in wanted if c not in places], int)
        places |= {c: len(value.channels) + i for i, c in enumerate(constant)}
        order = np.array([places[c] for c in wanted], int)
        values = gathered(known.value, constant)
        if value.channels.size:
            return self.select(value.source, order, values if constant.size else None)
        shape = [*value.places, constant.size]

        def run(x, w):
            return tf.broadcast_to(w[0], [tf.shape(x[0])[0], *shape])

        def build(x, weights, copies):
            return copies.add(Constant(shape, name="constant"), x[0], weights)

        return self.emit(run, [value.source], [values], build)

    def select(self, source: int, order: np.ndarray, constants: Vector | None = None) -> int:
        """Adds a `Step` that picks channels; returns the number of its output.

        Args:
            order: indices into the channels of `source` and the constants behind them.
        """

        def run(x, w):
            y = x[0]
            if w:
                shape = tf.concat([tf.shape(y)[:-1], tf.shape(w[0])], axis=0)
                y = tf.concat([y, tf.broadcast_to(w[0], shape)], axis=-1)
            return tf.gather(y, order, axis=-1)

        def build(x, weights, copies):
            count = sum(weight.size for weight in weights)
            return copies.add(Select(order, count, name="select"), x[0], weights)

        return self.emit(run, [source], [] if constants is None else [constants], build)
