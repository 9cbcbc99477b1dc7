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
        linear: the step that makes `source`, while no other step has read it: further
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
        if not self._known[node.output].needed.any():
            return _Value(self.image, np.array([], int), places=node.output_shape[1:-1])
        rules = {
            "linear": self._linear,
            "depthwise": self._depthwise,
            "affine": self._affine,
            "elementwise": self._elementwise,
            "identity": self._input,
            "pooling": self._pooling,
            "flatten": self._flatten,
            "reshape": self._reshape,
            "whole": self._whole,
        }
        return rules.get(node.kind, self._joined)(node)

    def _input(self, node: Node) -> _Value:
        return self._values[node.inputs[0]]

    def _elementwise(self, node: Node) -> _Value:
        value = self._materialised(self._input(node))
        function = layer_functions.elementwise_of(node)
        source = self._emit(lambda x, w: function(x[0]), [value.source], [], **_as_it_stands(node))
        return _Value(source, value.channels)

    def _joined(self, node: Node) -> _Value:
        """Sums and other merges, products, concatenation, padding: channel by channel."""
        wanted = self._known[node.output].present
        sources = [
            self._supply(self._values[i], self._known[i], selection)
            for position, i in enumerate(node.inputs)
            if (selection := self._selection(node, position)).size
        ]
        if node.kind == "concatenate" and len(sources) == 1:
            return _Value(sources[0], wanted)
        return _Value(self._emit(_joining(node), sources, [], **_as_it_stands(node)), wanted)

    def _selection(self, node: Node, position: int) -> np.ndarray:
        """The channels of an input that a merge, concatenation or padding needs."""
        needed = self._known[node.output].needed
        if node.kind == "concatenate":
            ends = np.cumsum([shape[-1] for shape in node.input_shapes])[:-1]
            needed = np.split(needed, ends)[position]
        return np.flatnonzero(needed)

    def _linear(self, node: Node) -> _Value:
        layer, value = node.layer, self._input(node)
        known, columns = self._known[node.inputs[0]], self._known[node.output].present
        if not known.needed.any():
            raise UsageError(f"layer {layer.name!r} cannot be frozen: all of its input is pruned")
        rows = value.channels
        alive = np.isin(rows, known.present)
        scale, shift = value.scale, value.shift
        if not alive.all():
            # Constants among the computed channels go into the bias, like all others.
            mask = fixed(alive.astype(np.float32))
            scale = mask if scale is None else times(scale, mask)
            shift = None if shift is None else times(shift, mask)

        def kernel():
            kept = taken(taken(read(layer.kernel), rows, -2), columns, -1)
            return kept if scale is None else kept * scale()[:, tf.newaxis]

        offsets = _offsets(known, rows, shift)
        linear = _Linear(kernel, lambda: taken(_bias_with(node, offsets), columns, -1))
        run, weights, places = self._convolution(node, value, linear)
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

    def _convolution(self, node: Node, value: _Value, linear: _Linear):
        """A linear layer's step: its `run`, its weights, the places at which a kernel applies."""
        layer = node.layer
        # Read when the step runs: a layer that follows may have gone into them.
        weights = [lambda: linear.kernel(), lambda: linear.bias()]
        if not isinstance(layer, layers.Conv2D):
            places = int(np.prod(node.input_shapes[0][1:-1], dtype=int))

            def multiply(x, w):
                return _add_bias(tf.tensordot(x[0], w[0], 1) if places > 1 else x[0] @ w[0], w[1])

            return multiply, weights, places
        places = int(np.prod(node.output_shape[1:-1])) * int(np.prod(layer.kernel_size))
        block = None
        if value.source == self.image:
            block = image_convolution.block_of(layer, len(value.channels))
        if not block:
            return (lambda x, w: _add_bias(_convolve(layer, x[0], w[0]), w[1])), weights, places
        weights.append(lambda: image_convolution.gradient_kernel(linear.kernel(), block))

        def convolve(x, w):
            padding = layer.padding.upper()
            return _add_bias(image_convolution.convolve(x[0], w[0], w[2], padding, block), w[1])

        return convolve, weights, places

    def _depthwise(self, node: Node) -> _Value:
        layer, columns = node.layer, self._known[node.output].present
        source = self._supply(self._input(node), self._known[node.inputs[0]], columns)

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

    def _affine(self, node: Node) -> _Value:
        value = self._input(node)
        kept = value.channels
        scale, shift = layer_functions.affine_of(node.layer, node.output_shape[-1])
        factor = gathered(scale, kept)
        offset = None if shift is None else gathered(shift, kept)
        if value.linear is not None and self._readers.count(node.inputs[0]) == 1:
            # Nothing else reads the convolution: its own weights take the affine map.
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

    def _pooling(self, node: Node) -> _Value:
        value = self._input(node)
        if value.shift is not None:
            value = self._materialised(value)
        # A gate's scale is not negative, so it goes through a maximum as through a mean.
        pool = _stateless(node.layer)
        source = self._emit(lambda x, w: pool(x[0]), [value.source], [], "layer", layer=node.layer)
        return _Value(source, value.channels, scale=value.scale)

    def _flatten(self, node: Node) -> _Value:
        value = self._input(node)
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

    def _reshape(self, node: Node) -> _Value:
        value = self._input(node)
        # The channels stay the last axis, so that a place only gets another name.
        shape = [*node.output_shape[1:-1], len(value.channels)]
        source = self._emit(
            lambda x, w: tf.reshape(x[0], [-1, *shape]), [value.source], [], "reshape", shape=shape
        )
        return dataclasses.replace(value, source=source, linear=None)

    def _whole(self, node: Node) -> _Value:
        sources = [
            self._supply(self._values[number], self._known[number], np.arange(shape[-1]))
            for number, shape in zip(node.inputs, node.input_shapes, strict=True)
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


def _offsets(known: Channels, rows: np.ndarray, shift: Vector | None) -> Vector | None:
    """Constant channels and shifts of a linear layer's input, [channels]; None if there are none.

    Args:
        known: of that input.
        rows: the channels of it that are computed.
        shift: of these.
    """
    constant = np.flatnonzero(known.constant & ~known.zero)
    if shift is None and not constant.size:
        return None

    def offsets():
        added = tf.zeros([len(known.constant)])
        if shift is not None:
            added = tf.tensor_scatter_nd_add(added, rows[:, np.newaxis], shift())
        if constant.size:
            values = tf.gather(known.value(), constant)
            added = tf.tensor_scatter_nd_add(added, constant[:, np.newaxis], values)
        return added

    return offsets


def _bias_with(node: Node, offsets: Vector | None) -> tf.Tensor:
    """A linear layer's bias with what `offsets` of its input add; all channels."""
    layer = node.layer
    total = read(layer.bias) if layer.use_bias else tf.zeros([node.output_shape[-1]])
    if offsets is None:
        return total
    if layer_functions.pads(layer):  # The padding cuts them off: it depends on the place.
        image = tf.broadcast_to(offsets(), [1, *node.input_shapes[0][1:]])
        return total + _convolve(layer, image, read(layer.kernel))
    full = read(layer.kernel) * offsets()[:, tf.newaxis]
    return total + tf.reduce_sum(full, axis=range(full.shape.rank - 1))


def _joining(node: Node):
    """The `run` of a step that joins tensors or pads one."""
    if node.kind == "padding":
        paddings = [[0, 0], *map(list, node.layer.padding), [0, 0]]
        return lambda x, w: tf.pad(x[0], paddings)
    if isinstance(node.layer, layers.Add):
        return lambda x, w: tf.add_n(x)
    if node.kind == "concatenate":
        return lambda x, w: tf.concat(x, axis=-1)
    return _called(node)


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
