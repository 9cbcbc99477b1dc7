"""How a network is folded: every affine map into a kernel beside it, one method a kind of layer."""

import dataclasses

import keras
import numpy as np
import tensorflow as tf

from anpvs_tf.common.errors import UsageError
from anpvs_tf.networks.graph import Node
from anpvs_tf.pruning import image_convolution, layer_functions
from anpvs_tf.pruning.frozen_steps import Step, Vector, fixed, gathered, plus, taken, tiled, times
from anpvs_tf.pruning.layer_functions import read
from anpvs_tf.pruning.live_channels import Channels

layers = keras.layers


@dataclasses.dataclass
class _Value:
    """A tensor as (what step `source` computes) * scale + shift, on `channels` only.

    Attributes:
        source: number of a computed tensor.
        channels: indices of the original channels, one for each computed one.
        scale, shift: float32 [channels] when called, or None for 1 and 0. A scale
            without a shift comes from gates alone and is not negative.
        linear: the step that makes `source`, while nobody has read it: further
            affine layers go into its weights.
        places: the height and width, where no channel is computed; `source` then
            tells no more than the batch size.
    """

    source: int
    channels: np.ndarray
    scale: Vector | None = None
    shift: Vector | None = None
    linear: "_Linear | None" = None
    places: tuple | None = None


@dataclasses.dataclass
class _Linear:
    kernel: Vector
    bias: Vector


class Folding:
    """The steps that compute a network's logits, with all that can be folded into their kernels.

    Args:
        nodes: the network's layers in the order in which they run.
        image: number of the tensor of images.
        channels: of an image.
        known: what `live_channels.analyse` says of every tensor.

    Attributes:
        steps: in the order in which they run.
        logits: number of the tensor of logits.

    Raises:
        UsageError: all paths of the network are pruned.
    """

    def __init__(self, nodes: list[Node], image: int, channels: int, known: dict[int, Channels]):
        self.image = image
        self._known = known
        self._readers = [i for node in nodes for i in node.inputs]
        self.steps: list[Step] = []
        self._fresh = -1
        self._values = {self.image: _Value(self.image, np.arange(channels))}
        for node in nodes:
            self._values[node.output] = self._freeze(node)
        self.logits = self._supply(self._values[nodes[-1].output], self._known[nodes[-1].output])

    def _emit(self, run, inputs: list[int], weights: list[Vector], kind: str, **what) -> int:
        self._fresh -= 1
        self.steps.append(Step(run, inputs, self._fresh, weights, kind, **what))
        return self._fresh

    def _freeze(self, node: Node) -> _Value:
        layer = node.layer
        inputs = [self._values[i] for i in node.inputs]
        wanted = self._known[node.output]
        if not wanted.needed.any():
            return _Value(self.image, np.array([], int), places=node.output_shape[1:-1])
        if node.kind == "linear":
            return self._linear(node, inputs[0], wanted)
        if node.kind == "whole":
            return self._whole(node, inputs)
        if node.kind == "reshape":
            return self._reshape(node, inputs[0])
        if node.kind == "identity":
            return inputs[0]
        if node.kind == "affine":
            return self._affine(node, inputs[0])
        if node.kind == "depthwise":
            return self._depthwise(node, inputs[0], wanted)
        if node.kind == "elementwise":
            value = self._materialised(inputs[0])
            function = layer_functions.elementwise_of(node)
            source = self._emit(
                lambda x, w: function(x[0]), [value.source], [], **_as_it_stands(node)
            )
            return _Value(source, value.channels)
        if node.kind == "pooling":
            return self._pooling(layer, inputs[0])
        if node.kind == "flatten":
            return self._flatten(node, inputs[0])
        sources = [
            self._supply(value, self._known[i], selection)
            for position, (i, value) in enumerate(zip(node.inputs, inputs, strict=True))
            if (selection := self._selection(node, position)).size
        ]
        if node.kind == "concatenate" and len(sources) == 1:
            return _Value(sources[0], wanted.present)
        if node.kind == "padding":
            paddings = [[0, 0], *map(list, layer.padding), [0, 0]]

            def run(x, w):
                return tf.pad(x[0], paddings)
        elif isinstance(layer, layers.Add):

            def run(x, w):
                return tf.add_n(x)
        elif node.kind == "concatenate":

            def run(x, w):
                return tf.concat(x, axis=-1)
        else:  # merge, multiply
            run = _called(node)
        return _Value(self._emit(run, sources, [], **_as_it_stands(node)), wanted.present)

    def _selection(self, node: Node, position: int) -> np.ndarray:
        """The channels of an input that a merge, concatenation or padding needs."""
        needed = self._known[node.output].needed
        if node.kind == "concatenate":
            ends = np.cumsum([shape[-1] for shape in node.input_shapes])[:-1]
            needed = np.split(needed, ends)[position]
        return np.flatnonzero(needed)

    def _linear(self, node: Node, value: _Value, wanted: Channels) -> _Value:
        layer, known = node.layer, self._known[node.inputs[0]]
        if not known.needed.any():
            raise UsageError(f"layer {layer.name!r} cannot be frozen: all of its input is pruned")
        rows, columns = value.channels, wanted.present
        scale, shift = value.scale, value.shift
        alive = np.isin(rows, known.present)
        if not alive.all():
            # Constants among the computed channels go into the bias, like all others.
            mask = fixed(alive.astype(np.float32))
            scale = mask if scale is None else times(scale, mask)
            shift = None if shift is None else times(shift, mask)
        # What constants and shifts add depends on the place only where padding cuts them off.
        constant = np.flatnonzero(known.constant & ~known.zero)
        padded = layer_functions.pads(layer)
        offset = shift is not None or constant.size > 0

        def kernel():
            kept = taken(taken(read(layer.kernel), rows, -2), columns, -1)
            return kept if scale is None else kept * scale()[:, tf.newaxis]

        def offsets():
            added = tf.zeros([node.input_shapes[0][-1]])
            if shift is not None:
                added = tf.tensor_scatter_nd_add(added, rows[:, np.newaxis], shift())
            if constant.size:
                values = tf.gather(known.value(), constant)
                added = tf.tensor_scatter_nd_add(added, constant[:, np.newaxis], values)
            return added

        def bias():
            total = read(layer.bias) if layer.use_bias else tf.zeros([node.output_shape[-1]])
            if offset and padded:
                image = tf.broadcast_to(offsets(), [1, *node.input_shapes[0][1:]])
                total += _convolve(layer, image, read(layer.kernel))
            elif offset:
                full = read(layer.kernel) * offsets()[:, tf.newaxis]
                total += tf.reduce_sum(full, axis=range(full.shape.rank - 1))
            return taken(total, columns, -1)

        weights = [lambda: linear.kernel(), lambda: linear.bias()]
        block = None
        if isinstance(layer, layers.Conv2D):
            places = int(np.prod(node.output_shape[1:-1])) * int(np.prod(layer.kernel_size))
            if value.source == self.image:
                block = image_convolution.block_of(layer, len(rows))

            def run(x, w):
                return _add_bias(_convolve(layer, x[0], w[0]), w[1])
        else:
            places = int(np.prod(node.input_shapes[0][1:-1], dtype=int))

            def run(x, w):
                return _add_bias(tf.tensordot(x[0], w[0], 1) if places > 1 else x[0] @ w[0], w[1])

        linear = _Linear(kernel, bias)
        if block:
            weights.append(lambda: image_convolution.gradient_kernel(linear.kernel(), block))

            def run(x, w):
                padding = layer.padding.upper()
                return _add_bias(image_convolution.convolve(x[0], w[0], w[2], padding, block), w[1])

        source = self._emit(
            run,
            [value.source],
            weights,
            "linear",
            layer=layer,
            indices=np.flatnonzero(alive),
            multiplications=places * len(rows) * len(columns),
        )
        if layer.activation is keras.activations.linear:
            return _Value(source, columns, linear=linear)
        source = self._emit(
            lambda x, w: layer.activation(x[0]), [source], [], "activation", layer=layer
        )
        return _Value(source, columns)

    def _depthwise(self, node: Node, value: _Value, wanted: Channels) -> _Value:
        layer, columns = node.layer, wanted.present
        source = self._supply(value, self._known[node.inputs[0]], columns)

        def kernel():
            return taken(read(layer.kernel), columns, -2)

        def bias():
            return (
                tf.gather(read(layer.bias), columns) if layer.use_bias else tf.zeros([len(columns)])
            )

        def run(x, w):
            strides = [1, *layer.strides, 1]
            y = tf.nn.depthwise_conv2d(
                x[0], w[0], strides, layer.padding.upper(), dilations=layer.dilation_rate
            )
            return layer.activation(_add_bias(y, w[1]))

        places = int(np.prod(node.output_shape[1:-1])) * int(np.prod(layer.kernel_size))
        source = self._emit(
            run,
            [source],
            [kernel, bias],
            "depthwise",
            layer=layer,
            multiplications=places * len(columns),
        )
        return _Value(source, columns)

    def _affine(self, node: Node, value: _Value) -> _Value:
        kept = value.channels
        scale, shift = layer_functions.affine_of(node.layer, node.output_shape[-1])
        factor = gathered(scale, kept)
        offset = None if shift is None else gathered(shift, kept)
        if value.linear is not None and self._readers.count(node.inputs[0]) == 1:
            # Nobody else reads the convolution: its own weights take the affine map.
            linear = value.linear
            linear.kernel = times(linear.kernel, factor)
            linear.bias = plus(times(linear.bias, factor), offset)
            return value
        return _Value(
            value.source,
            kept,
            scale=factor if value.scale is None else times(value.scale, factor),
            shift=offset if value.shift is None else plus(times(value.shift, factor), offset),
        )

    def _pooling(self, layer, value: _Value) -> _Value:
        if value.shift is not None:
            value = self._materialised(value)
        # A gate's scale is not negative, so it goes through a maximum as through a mean.
        pool = _stateless(layer)
        source = self._emit(lambda x, w: pool(x[0]), [value.source], [], "layer", layer=layer)
        return _Value(source, value.channels, scale=value.scale)

    def _flatten(self, node: Node, value: _Value) -> _Value:
        width = node.input_shapes[0][-1]
        places = node.output_shape[-1] // width
        channels = (np.arange(places)[:, np.newaxis] * width + value.channels).ravel()
        size = len(channels)
        source = self._emit(
            lambda x, w: tf.reshape(x[0], [-1, size]), [value.source], [], "layer", layer=node.layer
        )
        return _Value(
            source,
            channels,
            scale=None if value.scale is None else tiled(value.scale, places),
            shift=None if value.shift is None else tiled(value.shift, places),
        )

    def _reshape(self, node: Node, value: _Value) -> _Value:
        # The channels stay the last axis, so that a place only gets another name.
        shape = [*node.output_shape[1:-1], len(value.channels)]
        source = self._emit(
            lambda x, w: tf.reshape(x[0], [-1, *shape]), [value.source], [], "reshape", shape=shape
        )
        return dataclasses.replace(value, source=source, linear=None)

    def _whole(self, node: Node, values: list[_Value]) -> _Value:
        sources = [
            self._supply(value, self._known[number], np.arange(shape[-1]))
            for value, number, shape in zip(values, node.inputs, node.input_shapes, strict=True)
        ]
        source = self._emit(_called(node), sources, [], "whole", layer=node.layer, node=node)
        return _Value(source, np.arange(node.output_shape[-1]))

    def _materialised(self, value: _Value) -> _Value:
        """The value with its scale and shift computed."""
        if value.scale is None and value.shift is None:
            return value
        ones = fixed(np.ones(len(value.channels), np.float32))
        weights = [value.scale or ones]
        weights += [value.shift] if value.shift is not None else []

        def run(x, w):
            y = x[0] * w[0]
            return y + w[1] if len(w) > 1 else y

        return _Value(self._emit(run, [value.source], weights, "affine"), value.channels)

    def _supply(self, value: _Value, known: Channels, wanted: np.ndarray | None = None) -> int:
        """The number of a tensor that holds exactly the channels `wanted`, constants filled in."""
        value = self._materialised(value)
        wanted = known.present if wanted is None else wanted
        if np.array_equal(value.channels, wanted):
            return value.source
        places = {channel: place for place, channel in enumerate(value.channels)}
        constant = np.array([c for c in wanted if c not in places], int)
        places |= {c: len(value.channels) + i for i, c in enumerate(constant)}
        order = np.array([places[c] for c in wanted], int)

        weights = [gathered(known.value, constant)]
        if not value.channels.size:
            shape = [*value.places, constant.size]

            def run(x, w):
                return tf.broadcast_to(w[0], [tf.shape(x[0])[0], *shape])

            return self._emit(run, [value.source], weights, "constant", shape=shape)

        def run(x, w):
            y = x[0]
            if constant.size:
                shape = tf.concat([tf.shape(y)[:-1], [constant.size]], axis=0)
                y = tf.concat([y, tf.broadcast_to(w[0], shape)], axis=-1)
            return tf.gather(y, order, axis=-1)

        return self._emit(run, [value.source], weights, "select", indices=order)


def _called(node: Node):
    """A call as a step's `run`, in the dtype that the frozen network computes in."""
    return lambda x, w: tf.cast(node.call(x), x[0].dtype)


def _as_it_stands(node: Node) -> dict:
    """How the compact model repeats a step without weights."""
    if isinstance(node.layer, layers.Layer):
        return {"kind": "layer", "layer": node.layer}
    return {"kind": "whole", "layer": node.layer, "node": node}


def _convolve(layer: layers.Conv2D, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    padding = layer.padding.upper()
    if max(layer.dilation_rate) > 1:
        # TensorFlow's dilated kernel has no gradient on CPUs without oneDNN's; this has everywhere.
        return tf.nn.convolution(x, kernel, padding=padding, dilations=layer.dilation_rate)
    return tf.nn.conv2d(x, kernel, list(layer.strides), padding)


def _add_bias(x: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    # BiasAdd is fused into the convolution on CPUs; a bias that depends on the place is not.
    return tf.nn.bias_add(x, bias) if bias.shape.rank == 1 else x + bias


def _stateless(layer: layers.Layer) -> layers.Layer:
    """A copy of a layer without weights, that takes any dtype as it comes."""
    copy = type(layer).from_config(layer.get_config())
    copy.autocast = False
    return copy
