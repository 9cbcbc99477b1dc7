"""The rules of all kinds of layers: all that pruning knows about a kind is in its rule."""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from anpvs_tf.common.errors import UsageError
from anpvs_tf.networks.graph import Node, floating, layers
from anpvs_tf.pruning import linear_rules
from anpvs_tf.pruning.channels import Channels, Given
from anpvs_tf.pruning.frozen_steps import Value, Vector, gathered, plus, taken, then, times
from anpvs_tf.pruning.layer_functions import affine_of, elementwise_of, keeps_zero, read
from anpvs_tf.pruning.rule import Constants, Indices, Places, Rule


class Affine(Rule):
    """x * scale + shift; a batch normalisation's scale may be 0 for a channel."""

    def vectors(self, node: Node) -> tuple:
        """Returns functions that give scale and shift, float32 [channels]; None for no shift."""
        return affine_of(node.layer, node.output_shape[-1])

    def constants(self, node: Node, inputs: list[Channels], given: Given) -> Constants:
        layer, (before,), width = node.layer, inputs, node.output_shape[-1]
        scale, shift = self.vectors(node)
        unscaled = np.zeros(width, bool)
        if isinstance(layer, layers.BatchNormalization) and layer.scale:
            unscaled = ~given.nonzero(layer.gamma, (width,))
            zero = unscaled & ~given.nonzero(layer.beta, (width,))
        else:
            zero = before.zero if shift is None else unscaled
        return before.constant | unscaled, zero, plus(times(before.value, scale), shift)

    def fold(self, node: Node, folding) -> Value:
        value = folding.values[node.inputs[0]]
        kept = value.channels
        scale, shift = self.vectors(node)
        factor = gathered(scale, kept)
        offset = None if shift is None else gathered(shift, kept)
        if value.linear is not None and folding.is_read_once(node.inputs[0]):
            # Nothing else reads the convolution: its own weights take the affine map.
            linear = value.linear
            linear.kernel = times(linear.kernel, factor)
            linear.bias = plus(times(linear.bias, factor), offset)
            return value
        return Value(
            value.source,
            kept,
            scale=factor if value.scale is None else times(value.scale, factor),
            shift=offset if value.shift is None else plus(times(value.shift, factor), offset),
        )

    def settings(self, node: Node, rows: Indices, columns: Indices) -> dict:
        layer = node.layer
        if len(columns) == node.output_shape[-1]:
            return {}
        if isinstance(layer, layers.Normalization):
            raise UsageError(f"layer {layer.name!r} cannot be shrunk: use BatchNormalization there")
        if isinstance(layer, layers.Rescaling):
            held = {"scale": layer.scale, "offset": layer.offset}
            return {name: self._kept(value, columns) for name, value in held.items()}
        return {"projection_dim": len(columns)} if hasattr(layer, "projection_dim") else {}

    def _kept(self, value, columns: np.ndarray):
        vector = np.ravel(value)
        return vector[columns].tolist() if vector.size > 1 else value

    def places(self, node: Node, shape: tuple, rows: Indices, columns: Indices) -> Places:
        if isinstance(node.layer, layers.Normalization):
            return None
        return super().places(node, shape, rows, columns)


class GateRule(Affine):
    """A feature whose gate is shut is 0."""

    def vectors(self, node: Node) -> tuple:
        return node.layer.mean_mask, None

    def constants(self, node: Node, inputs: list[Channels], given: Given) -> Constants:
        constant, zero, value = super().constants(node, inputs, given)
        shut = ~given.open_gates.get(node.layer.name, np.ones(len(zero), bool))
        return constant | shut, zero | shut, value

    def varies(self, node: Node, before: list[tf.Tensor], masks: dict[str, tf.Tensor]) -> tf.Tensor:
        return before[0] * masks.get(node.layer.name, 1.0)

    def wanted(self, node: Node, wanted: tf.Tensor, masks: dict[str, tf.Tensor]) -> list[tf.Tensor]:
        return [wanted * masks.get(node.layer.name, 1.0)]


class Identity(Rule):
    def fold(self, node: Node, folding) -> Value:
        return folding.values[node.inputs[0]]


class Elementwise(Rule):
    def constants(self, node: Node, inputs: list[Channels], given: Given) -> Constants:
        function, (before,) = elementwise_of(node), inputs
        zero = before.zero & keeps_zero(function)
        return before.constant, zero, then(before.value, function)

    def fold(self, node: Node, folding) -> Value:
        value = folding.materialised(folding.values[node.inputs[0]])
        function = elementwise_of(node)
        source = folding.emit(lambda x, w: function(x[0]), [value.source], [], _repeat(node))
        return Value(source, value.channels)


class PReLU(Rule):
    """Slopes of the negative values for each channel, and for each place unless axes share them."""

    def _is_shared(self, node: Node) -> bool:
        """Says whether a slope holds at every place, so that constants stay constant."""
        return all(size == 1 for size in node.layer.alpha.shape[:-1])

    def constants(self, node: Node, inputs: list[Channels], given: Given) -> Constants:
        (before,), alpha = inputs, node.layer.alpha
        everywhere = self._is_shared(node)

        def value():
            x = before.value()
            return _leaky(x, tf.reshape(read(alpha), [-1])) if everywhere else x

        return before.constant if everywhere else before.zero, before.zero, value

    def fold(self, node: Node, folding) -> Value:
        value, alpha = folding.values[node.inputs[0]], node.layer.alpha
        if self._is_shared(node):
            value = folding.materialised(value)
        else:
            wanted = folding.known[node.output].present
            value = Value(folding.supply(value, folding.known[node.inputs[0]], wanted), wanted)
        kept = value.channels
        kept_slopes = kept if alpha.shape[-1] > 1 else np.arange(1)

        def build(x, weights, copies):
            config = node.layer.get_config() | {"dtype": "float32"}
            return copies.add(layers.PReLU.from_config(config), x[0], weights)

        source = folding.emit(
            lambda x, w: _leaky(x[0], w[0]),
            [value.source],
            [lambda: taken(read(alpha), kept_slopes, -1)],
            build,
        )
        return Value(source, kept)

    def places(self, node: Node, shape: tuple, rows: Indices, columns: Indices) -> Places:
        return super().places(node, shape, rows, columns if shape[-1] > 1 else np.arange(1))


def _leaky(x: tf.Tensor, slope: tf.Tensor) -> tf.Tensor:
    return tf.nn.relu(x) - slope * tf.nn.relu(-x)


class Pooling(Rule):
    def fold(self, node: Node, folding) -> Value:
        value = folding.values[node.inputs[0]]
        if value.shift is not None:
            value = folding.materialised(value)
        # A gate's scale is not negative, so it goes through a maximum as through a mean.
        pool = floating(node.layer)
        source = folding.emit(lambda x, w: pool(x[0]), [value.source], [], _repeat(node))
        return Value(source, value.channels, scale=value.scale)


class Flatten(Rule):
    def fold(self, node: Node, folding) -> Value:
        value = folding.values[node.inputs[0]]
        width = node.input_shapes[0][-1]
        places = node.output_shape[-1] // width
        channels = (np.arange(places)[:, np.newaxis] * width + value.channels).ravel()
        size = len(channels)
        again = np.tile(np.arange(len(value.channels)), places)
        source = folding.emit(
            lambda x, w: tf.reshape(x[0], [-1, size]), [value.source], [], _repeat(node)
        )
        return Value(
            source,
            channels,
            scale=None if value.scale is None else gathered(value.scale, again),
            shift=None if value.shift is None else gathered(value.shift, again),
        )


class Reshape(Rule):
    def fold(self, node: Node, folding) -> Value:
        value = folding.values[node.inputs[0]]
        # The channels stay the last axis, so that a place only gets another name.
        shape = [*node.output_shape[1:-1], len(value.channels)]

        def build(x, weights, copies):
            return copies.add(layers.Reshape(shape, name="reshape"), x[0])

        source = folding.emit(
            lambda x, w: tf.reshape(x[0], [-1, *shape]), [value.source], [], build
        )
        return dataclasses.replace(value, source=source, linear=None)

    def settings(self, node: Node, rows: Indices, columns: Indices) -> dict:
        return {"target_shape": (*node.output_shape[1:-1], len(columns))}


class Joining(Rule):
    """Layers of one or several tensors that are computed from exactly the channels needed."""

    def fold(self, node: Node, folding) -> Value:
        known = folding.known[node.output]
        # All channels that are computed, whatever the weights are.
        parts = self.needs(node, known.needed, Given({}, {}))
        sources = [
            folding.supply(folding.values[i], folding.known[i], np.flatnonzero(part))
            for i, part in zip(node.inputs, parts, strict=True)
            if part.any()
        ]
        return Value(self.joined(node, folding, sources), known.present)

    def joined(self, node: Node, folding, sources: list[int]) -> int:
        return folding.emit(self.function(node), sources, [], _repeat(node))

    def function(self, node: Node) -> Callable:
        """Returns the `run` of the step."""
        return _called(node)


class Padding(Joining):
    def constants(self, node: Node, inputs: list[Channels], given: Given) -> Constants:
        (before,) = inputs
        return before.zero, before.zero, before.value

    def function(self, node: Node) -> Callable:
        padding = np.reshape(node.layer.padding, [-1, 2]).tolist()
        paddings = [[0, 0], *padding, [0, 0]]
        return lambda x, w: tf.pad(x[0], paddings)


class Concatenate(Joining):
    def constants(self, node: Node, inputs: list[Channels], given: Given) -> Constants:
        constant, zero = (
            np.concatenate([getattr(i, name) for i in inputs]) for name in ("constant", "zero")
        )
        return constant, zero, lambda: tf.concat([i.value() for i in inputs], axis=0)

    def varies(self, node: Node, before: list[tf.Tensor], masks: dict[str, tf.Tensor]) -> tf.Tensor:
        return tf.concat(before, axis=0)

    def joined(self, node: Node, folding, sources: list[int]) -> int:
        return sources[0] if len(sources) == 1 else super().joined(node, folding, sources)

    def function(self, node: Node) -> Callable:
        return lambda x, w: tf.concat(x, axis=-1)


class Merge(Joining):
    """Sums and the like: 0 where all inputs are."""

    def constants(self, node: Node, inputs: list[Channels], given: Given) -> Constants:
        constant, zero = (
            np.logical_and.reduce(
                [getattr(i, name)[reads] for i, reads in zip(inputs, node.reads, strict=True)]
            )
            for name in ("constant", "zero")
        )
        return constant, zero, _merged(node, inputs)

    def varies(self, node: Node, before: list[tf.Tensor], masks: dict[str, tf.Tensor]) -> tf.Tensor:
        return tf.reduce_max(_broadcast(node, before), axis=0)

    def function(self, node: Node) -> Callable:
        alike = len(set(node.input_shapes)) == 1
        if isinstance(node.layer, layers.Add) and alike:
            return lambda x, w: tf.add_n(x)
        return _called(node)


class Multiply(Joining):
    """Products: 0 where one input is."""

    def constants(self, node: Node, inputs: list[Channels], given: Given) -> Constants:
        both = list(zip(inputs, node.reads, strict=True))
        zero = np.logical_or.reduce([i.zero[reads] for i, reads in both])
        constant = zero | np.logical_and.reduce([i.constant[reads] for i, reads in both])
        merged = _merged(node, inputs)
        return constant, zero, lambda: tf.where(zero, 0.0, merged())

    def varies(self, node: Node, before: list[tf.Tensor], masks: dict[str, tf.Tensor]) -> tf.Tensor:
        return tf.reduce_min(_broadcast(node, before), axis=0)


def _merged(node: Node, inputs: list[Channels]) -> Vector:
    merge = tf.add_n if isinstance(node.layer, layers.Add) else node.of_vectors
    return lambda: merge(_broadcast(node, [i.value() for i in inputs]))


def _broadcast(node: Node, vectors: list[tf.Tensor]) -> list[tf.Tensor]:
    return [taken(v, reads, 0) for v, reads in zip(vectors, node.reads, strict=True)]


class Whole(Rule):
    def constants(self, node: Node, inputs: list[Channels], given: Given) -> Constants:
        width = node.output_shape[-1]
        never = np.zeros(width, bool)
        return never, never, lambda: tf.zeros([width])

    def needs(self, node: Node, needed: np.ndarray, given: Given) -> list[np.ndarray]:
        return [np.ones(shape[-1], bool) for shape in node.input_shapes]

    def varies(self, node: Node, before: list[tf.Tensor], masks: dict[str, tf.Tensor]) -> tf.Tensor:
        return tf.ones([node.output_shape[-1]])

    def wanted(self, node: Node, wanted: tf.Tensor, masks: dict[str, tf.Tensor]) -> list[tf.Tensor]:
        return [tf.ones([shape[-1]]) for shape in node.input_shapes]

    def fold(self, node: Node, folding) -> Value:
        sources = [
            folding.supply(folding.values[number], folding.known[number], np.arange(shape[-1]))
            for number, shape in zip(node.inputs, node.input_shapes, strict=True)
        ]
        source = folding.emit(_called(node), sources, [], _repeat(node))
        return Value(source, np.arange(node.output_shape[-1]))

    def agree(self, node: Node, inputs: list[np.ndarray], output: np.ndarray) -> None:
        for channels in (*inputs, output):
            channels[:] = True

    def places(self, node: Node, shape: tuple, rows: Indices, columns: Indices) -> Places:
        return None


def _called(node: Node):
    """Returns a call as a step's `run`, in the dtype that the frozen network computes in."""
    return lambda x, w: tf.cast(node.call(x), x[0].dtype)


def _repeat(node: Node):
    """Returns a call as a step's `build`; of several inputs, some may be left out."""

    def build(x, weights, copies):
        if len(x) == len(node.inputs):
            return copies.repeat(node, x)
        copy = type(node.layer).from_config(node.layer.get_config() | {"dtype": "float32"})
        return copies.add(copy, x)

    return build


RULES: dict[str, Rule] = {
    "dense": linear_rules.Dense(),
    "convolution": linear_rules.Convolution(),
    "transposed": linear_rules.Transposed(),
    "depthwise": linear_rules.Depthwise(),
    "gate": GateRule(),
    "affine": Affine(),
    "identity": Identity(),
    "elementwise": Elementwise(),
    "prelu": PReLU(),
    "pooling": Pooling(),
    "merge": Merge(),
    "multiply": Multiply(),
    "flatten": Flatten(),
    "reshape": Reshape(),
    "padding": Padding(),
    "concatenate": Concatenate(),
    "whole": Whole(),
}
