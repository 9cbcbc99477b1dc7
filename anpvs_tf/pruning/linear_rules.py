"""The rules of the layers with a kernel: dense layers and convolutions of every sort."""

import dataclasses

import keras
import numpy as np
import tensorflow as tf

from anpvs_tf.networks.graph import DEPTHWISE, Node, layers
from anpvs_tf.pruning import image_convolution
from anpvs_tf.pruning.channels import Channels, Given
from anpvs_tf.pruning.compact_layers import Affine, Select
from anpvs_tf.pruning.frozen_steps import (
    LinearWeights,
    Value,
    Vector,
    fixed,
    gathered,
    taken,
    times,
)
from anpvs_tf.pruning.layer_functions import keeps_zero, read
from anpvs_tf.pruning.rule import Constants, Indices, Places, Rule

Layer = keras.layers.Layer


class Linear(Rule):
    """A kernel that an output channel has for each input channel of its group, and a bias.

    Everything here is about kernels [..., input channels of a group, output channels].
    """

    # ---- The methods that a subclass defines ----

    def kernel(self, layer: Layer) -> tf.Tensor:
        """Returns the kernel of a layer, float32."""
        return read(layer.kernel)

    def arranged(self, held: np.ndarray) -> np.ndarray:
        """Puts an array of the layer's own kernel's shape into the shape of `kernel`."""
        return held

    def groups(self, node: Node) -> int:
        return 1

    def pads(self, layer: Layer) -> bool:
        """Says whether a constant input channel adds different numbers at different places."""
        return False

    def applications(self, node: Node) -> int:
        """Counts how often a number of the kernel is used for one image, times its taps."""
        raise NotImplementedError

    def convolve(self, layer: Layer, x: tf.Tensor, kernel: tf.Tensor, groups: int) -> tf.Tensor:
        raise NotImplementedError

    def plain(self, layer: Layer, kernel: np.ndarray, groups: int, **settings) -> tuple:
        """Returns Keras's own layer for a kernel, with its kernel as that layer holds it."""
        raise NotImplementedError

    # ---- Which channels are constant, and which are needed ----

    def _connections(self, node: Node, given: Given) -> np.ndarray:
        """Says between which channels a weight may differ from zero, bool [in, out]."""
        layer, groups = node.layer, self.groups(node)
        held = self.arranged(given.nonzero(layer.kernel, tuple(layer.kernel.shape)))
        held = held.any(axis=tuple(range(held.ndim - 2)))
        if groups == 1:
            return held
        found = np.zeros((node.input_shapes[0][-1], held.shape[-1]), bool)
        for group in range(groups):
            rows, columns = (
                slice(group * n // groups, (group + 1) * n // groups) for n in found.shape
            )
            found[rows, columns] = held[:, columns]
        return found

    def constants(self, node: Node, inputs: list[Channels], given: Given) -> Constants:
        layer, (before,), width = node.layer, inputs, node.output_shape[-1]
        connections = self._connections(node, given)
        # Padding is 0 and cuts other constants off at the border: only zeros stay constants.
        stays = before.zero if self.pads(layer) else before.constant
        constant, zero = (~connections[~known].any(axis=0) for known in (stays, before.zero))
        zero = zero & ~given.nonzero(layer.bias, (width,)) & keeps_zero(layer.activation)

        def value():
            bias = read(layer.bias) if layer.use_bias else tf.zeros([width])
            return layer.activation(bias + self._of_constants(node, before.value()))

        return constant, zero, value

    def _of_constants(self, node: Node, values: tf.Tensor) -> tf.Tensor:
        """Computes the sum that constants [in] at every place add to the output, [out].

        Not for a layer that `pads`.
        """
        kernel, groups = self.kernel(node.layer), self.groups(node)
        if groups > 1:
            kernel = tf.reshape(kernel, [*kernel.shape[:-1], groups, -1])
            values = tf.transpose(tf.reshape(values, [groups, -1]))
        product = kernel * values[..., tf.newaxis]
        kept = 2 if groups > 1 else 1
        return tf.reshape(tf.reduce_sum(product, axis=range(product.shape.rank - kept)), [-1])

    def needs(self, node: Node, needed: np.ndarray, given: Given) -> list[np.ndarray]:
        return [self._connections(node, given)[:, needed].any(axis=1)]

    def varies(self, node: Node, before: list[tf.Tensor], masks: dict[str, tf.Tensor]) -> tf.Tensor:
        return tf.ones([node.output_shape[-1]])

    def wanted(self, node: Node, wanted: tf.Tensor, masks: dict[str, tf.Tensor]) -> list[tf.Tensor]:
        return [tf.ones([node.input_shapes[0][-1]])]

    # ---- The frozen network ----

    def fold(self, node: Node, folding) -> Value:
        layer = node.layer
        known, columns = folding.known[node.inputs[0]], folding.known[node.output].present
        fold = self._fold_whole if self.groups(node) == 1 else self._fold_groups
        value = fold(node, folding, known, columns)
        if layer.activation is keras.activations.linear:
            return value

        def build(x, weights, copies):
            name = f"{layer.name}_activation"
            return copies.add(layers.Activation(layer.activation, name=name), x[0])

        source = folding.emit(lambda x, w: layer.activation(x[0]), [value.source], [], build)
        return Value(source, value.channels)

    def _fold_whole(self, node: Node, folding, known: Channels, columns: np.ndarray) -> Value:
        layer, value = node.layer, folding.values[node.inputs[0]]
        if not known.needed.any():
            # Only constants that padding cuts off are left; the bias has them; the kernel is 0.
            any_row = np.arange(1)
            value = Value(folding.supply(value, known, any_row), any_row)
        rows = value.channels
        alive = np.isin(rows, known.present)
        scale, shift = value.scale, value.shift
        if not alive.all():
            # Constants among the computed channels go into the bias, like all others.
            mask = fixed(alive.astype(np.float32))
            scale = mask if scale is None else times(scale, mask)
            shift = None if shift is None else times(shift, mask)

        def kernel():
            kept = taken(taken(self.kernel(layer), rows, -2), columns, -1)
            return kept if scale is None else kept * scale()[:, tf.newaxis]

        offsets = _offsets(known, rows, shift)
        linear = LinearWeights(kernel, lambda: taken(self._bias(node, offsets), columns, -1))
        indices = np.flatnonzero(alive) if alive.any() else np.arange(len(rows))
        source = self._emit(node, folding, value, linear, 1, (len(rows), len(columns)), indices)
        return Value(source, columns, linear=linear)

    def _fold_groups(self, node: Node, folding, known: Channels, columns: np.ndarray) -> Value:
        layer, value, groups = node.layer, folding.values[node.inputs[0]], self.groups(node)
        layout = _layout(known.needed, columns, groups, node.output_shape[-1])
        scale = None
        if value.scale is not None and value.shift is None and known.needed.any():
            scale = gathered(value.scale, np.searchsorted(value.channels, layout.rows))
            value = dataclasses.replace(value, scale=None)
        x = Value(folding.supply(value, known, layout.rows.ravel()), layout.rows.ravel())
        offsets = _offsets(known, np.array([], int), None)

        def kernel():
            kept = taken(self.kernel(layer), layout.columns.ravel(), -1)
            return layout.narrowed(kept, None if scale is None else scale())

        def bias():
            return taken(self._bias(node, offsets), layout.columns.ravel(), -1)

        linear = LinearWeights(kernel, bias)
        size = (layout.rows.shape[1], layout.columns.size)
        source = self._emit(node, folding, x, linear, len(layout.rows), size)
        if layout.is_even:
            return Value(source, columns, linear=linear)
        return Value(folding.select(source, layout.own), columns)

    def _emit(
        self, node: Node, folding, value: Value, linear: LinearWeights, groups, size, alive=None
    ) -> int:
        """Adds the step of a kernel; its weights are read when it runs, since more folds in.

        Args:
            size: rows and columns of the kernel.
            alive: the rows that are not zero, if there are others.
        """
        layer = node.layer

        def folded_kernel():
            return linear.kernel()

        def folded_bias():
            return linear.bias()

        weights = [folded_kernel, folded_bias]

        def run(x, w):
            return _add_bias(self.convolve(layer, x[0], w[0], groups), w[1])

        if groups == 1 and value.source == folding.image:
            block = self.block_of(layer, len(value.channels))
            if block:
                weights.append(lambda: image_convolution.gradient_kernel(linear.kernel(), block))
                padding = layer.padding.upper()

                def run(x, w):
                    y = image_convolution.convolve(x[0], w[0], w[2], padding, block)
                    return _add_bias(y, w[1])

        def build(x, weights, copies):
            kernel, bias = weights[:2]
            x = x[0]
            if alive is not None and len(alive) < x.shape[-1]:
                # Pruned one by one behind a flatten: a gather, whose gradient is too slow for
                # training.
                x = copies.add(Select(alive, name=f"{layer.name}_inputs"), x)
                kernel = kernel[..., alive, :]
            everywhere = bias.ndim == 1
            settings = {"use_bias": everywhere, "name": layer.name}
            made, kernel = self.plain(layer, kernel, groups, **settings)
            y = copies.add(made, x, [kernel, bias] if everywhere else [kernel])
            if everywhere:
                return y
            # A folded shift that the padding at the borders does not have.
            shift = Affine(shift_shape=bias.shape[1:], name=f"{layer.name}_bias")
            return copies.add(shift, y, [bias[0]])

        count = self.applications(node) * size[0] * size[1]
        return folding.emit(run, [value.source], weights, build, multiplications=count)

    def block_of(self, layer: Layer, channels: int) -> int | None:
        """Returns the side of a block of `image_convolution`, or None where that is not used."""
        return None

    def _bias(self, node: Node, offsets: Vector | None) -> tf.Tensor:
        """Computes a layer's bias plus the effect of `offsets` of its input, for all channels."""
        layer = node.layer
        total = read(layer.bias) if layer.use_bias else tf.zeros([node.output_shape[-1]])
        if offsets is None:
            return total
        if not self.pads(layer):
            return total + self._of_constants(node, offsets())
        image = tf.broadcast_to(offsets(), [1, *node.input_shapes[0][1:]])
        return total + self.convolve(layer, image, self.kernel(layer), self.groups(node))

    # ---- The layer with fewer channels ----

    def agree(self, node: Node, inputs: list[np.ndarray], output: np.ndarray) -> None:
        if self.groups(node) > 1:  # The groups stay of one size.
            inputs[0][:] = True
            output[:] = True

    def places(self, node: Node, shape: tuple, rows: Indices, columns: Indices) -> Places:
        places = [np.arange(size) for size in shape]
        places[-1] = columns
        if len(shape) > 1 and self.groups(node) == 1:
            places[-2] = rows
        return tuple(places)


class Dense(Linear):
    def applications(self, node: Node) -> int:
        return int(np.prod(node.input_shapes[0][1:-1], dtype=int))

    def convolve(self, layer: Layer, x: tf.Tensor, kernel: tf.Tensor, groups: int) -> tf.Tensor:
        return tf.tensordot(x, kernel, 1) if x.shape.rank > 2 else x @ kernel

    def plain(self, layer: Layer, kernel: np.ndarray, groups: int, **settings) -> tuple:
        return layers.Dense(kernel.shape[-1], kernel_initializer="zeros", **settings), kernel

    def settings(self, node: Node, rows: Indices, columns: Indices) -> dict:
        return {"units": len(columns)}


class Convolution(Linear):
    """Conv1D and Conv2D, with groups of more than one channel too."""

    def groups(self, node: Node) -> int:
        return node.layer.groups

    def pads(self, layer: Layer) -> bool:
        return layer.padding == "same" and max(layer.kernel_size) > 1

    def applications(self, node: Node) -> int:
        return int(np.prod(node.output_shape[1:-1])) * int(np.prod(node.layer.kernel_size))

    def convolve(self, layer: Layer, x: tf.Tensor, kernel: tf.Tensor, groups: int) -> tf.Tensor:
        padding, strides, dilation = layer.padding.upper(), layer.strides, layer.dilation_rate
        taps = kernel.shape[:-2]
        if len(taps) == 2 and groups > 1 and kernel.shape[-2] == 1 and len(set(strides)) == 1:
            kernel = tf.reshape(kernel, [*taps, groups, -1])
            return tf.nn.depthwise_conv2d(x, kernel, [1, *strides, 1], padding, dilations=dilation)
        if max(dilation) > 1 or len(taps) != 2:
            # TensorFlow's dilated kernel has no gradient on CPUs without oneDNN's; this has.
            return tf.nn.convolution(x, kernel, strides, padding, dilations=dilation)
        return tf.nn.conv2d(x, kernel, list(strides), padding)

    def plain(self, layer: Layer, kernel: np.ndarray, groups: int, **settings) -> tuple:
        taps = kernel.shape[:-2]
        where = {"strides": layer.strides, "padding": layer.padding}
        where |= {"dilation_rate": layer.dilation_rate, **settings}
        if len(taps) == 2 and groups > 1 and kernel.shape[-2] == 1:
            each = kernel.shape[-1] // groups
            made = layers.DepthwiseConv2D(taps, depth_multiplier=each, **where)
            return made, kernel.reshape(*taps, groups, each)
        of_rank = layers.Conv2D if len(taps) == 2 else layers.Conv1D
        where |= {"kernel_initializer": "zeros", "groups": groups}
        return of_rank(kernel.shape[-1], taps, **where), kernel

    def block_of(self, layer: Layer, channels: int) -> int | None:
        return image_convolution.block_of(layer, channels) if len(layer.kernel_size) == 2 else None

    def settings(self, node: Node, rows: Indices, columns: Indices) -> dict:
        return {"filters": len(columns)}


class Depthwise(Convolution):
    """DepthwiseConv1D and 2D, and a convolution of as many groups as it has input channels."""

    def kernel(self, layer: Layer) -> tf.Tensor:
        kernel = read(layer.kernel)
        if isinstance(layer, DEPTHWISE):
            kernel = tf.reshape(kernel, [*kernel.shape[:-2], 1, -1])
        return kernel

    def arranged(self, held: np.ndarray) -> np.ndarray:
        return held.reshape(*held.shape[:-2], 1, -1)

    def groups(self, node: Node) -> int:
        return node.input_shapes[0][-1]

    varies, wanted, agree = Rule.varies, Rule.wanted, Rule.agree

    def settings(self, node: Node, rows: Indices, columns: Indices) -> dict:
        if isinstance(node.layer, DEPTHWISE):
            return {}
        return {"filters": len(columns), "groups": len(rows)}

    def places(self, node: Node, shape: tuple, rows: Indices, columns: Indices) -> Places:
        if len(shape) == 1 or not isinstance(node.layer, DEPTHWISE):
            return (*map(np.arange, shape[:-1]), columns)
        return (*map(np.arange, shape[:-2]), rows, np.arange(shape[-1]))


class Transposed(Linear):
    """Conv2DTranspose. Which taps of its kernel make a value depends on the place."""

    def kernel(self, layer: Layer) -> tf.Tensor:
        return tf.linalg.matrix_transpose(read(layer.kernel))

    def arranged(self, held: np.ndarray) -> np.ndarray:
        return np.swapaxes(held, -1, -2)

    def pads(self, layer: Layer) -> bool:
        return max(*layer.kernel_size, *layer.strides) > 1

    def applications(self, node: Node) -> int:
        return int(np.prod(node.input_shapes[0][1:-1])) * int(np.prod(node.layer.kernel_size))

    def convolve(self, layer: Layer, x: tf.Tensor, kernel: tf.Tensor, groups: int) -> tf.Tensor:
        kernel = tf.linalg.matrix_transpose(kernel)
        return keras.ops.conv_transpose(x, kernel, **_transposition(layer))

    def plain(self, layer: Layer, kernel: np.ndarray, groups: int, **settings) -> tuple:
        settings |= _transposition(layer) | {"kernel_initializer": "zeros"}
        made = layers.Conv2DTranspose(kernel.shape[-1], layer.kernel_size, **settings)
        return made, np.swapaxes(kernel, -1, -2)

    def settings(self, node: Node, rows: Indices, columns: Indices) -> dict:
        return {"filters": len(columns)}

    def places(self, node: Node, shape: tuple, rows: Indices, columns: Indices) -> Places:
        if len(shape) == 1:
            return (columns,)
        return (*map(np.arange, shape[:-2]), columns, rows)


def _transposition(layer: layers.Conv2DTranspose) -> dict:
    names = ("strides", "padding", "output_padding", "dilation_rate")
    return {name: getattr(layer, name) for name in names}


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Which channels the groups of a narrower grouped kernel have.

    All groups are as large as the largest: a smaller one has a channel twice, of which the
    kernel is 0 (rows), or which is left out behind it (columns).

    Attributes:
        rows, columns: [groups, channels], of the original's input and output.
        used: bool, of the shape of `rows`: the kernel is not 0 there.
        own: places of the needed columns in `columns`, in their order.
        each: input channels of an original group.
    """

    rows: np.ndarray
    columns: np.ndarray
    used: np.ndarray
    own: np.ndarray
    each: int

    @property
    def is_even(self) -> bool:
        """Whether no column is there twice."""
        return len(self.own) == self.columns.size

    def narrowed(self, kernel: tf.Tensor, scale: tf.Tensor | None) -> tf.Tensor:
        """Takes the rows of these groups from a kernel.

        Args:
            kernel: [..., channels of an original group, columns].
            scale: of the rows, float32 [groups, channels].
        """
        if self.each == 1 and scale is None and self.used.all():
            return kernel
        groups, size = self.rows.shape
        chosen = np.arange(self.each) == (self.rows % self.each)[..., np.newaxis]
        chosen = tf.constant((chosen & self.used[..., np.newaxis]).astype(np.float32))
        if scale is not None:
            chosen *= scale[..., tf.newaxis]
        kernel = tf.reshape(kernel, [*kernel.shape[:-1], groups, -1])
        kernel = tf.einsum("...kgc,grk->...rgc", kernel, chosen)
        return tf.reshape(kernel, [*kernel.shape[:-3], size, -1])


def _layout(present: np.ndarray, columns: np.ndarray, groups: int, width: int) -> _Layout:
    """Returns the groups that are left.

    Args:
        present: bool [in], the channels that are computed.
        columns: the output channels that are needed.
    """
    each = len(present) // groups
    of_group = columns // (width // groups)
    if each == 1 and len(set(np.bincount(of_group)) - {0}) > 1:
        # Each column is a group of its own, so that no group is larger than it must be.
        columns_of = [[column] for column in columns]
        rows_of = [[row] if present[row] else [] for row in of_group]
    else:
        left = sorted(set(of_group))
        columns_of = [list(columns[of_group == group]) for group in left]
        inputs = [np.arange(group * each, (group + 1) * each) for group in left]
        rows_of = [list(rows[present[rows]]) for rows in inputs]
    largest = max(1, *map(len, rows_of))
    most = max(map(len, columns_of))
    # Any channel that is computed: the kernel is 0 there.
    other = np.flatnonzero(present)[0] if present.any() else 0
    rows = [[*own, *[(own or [other])[0]] * (largest - len(own))] for own in rows_of]
    used = [[place < len(own) for place in range(largest)] for own in rows_of]
    filled = np.array([[*own, *own[:1] * (most - len(own))] for own in columns_of])
    first = [np.flatnonzero(filled.ravel() == column)[0] for column in columns]
    return _Layout(np.array(rows), filled, np.array(used), np.array(first), each)


def _offsets(known: Channels, rows: np.ndarray, shift: Vector | None) -> Vector | None:
    """Returns a function for the constants and shifts of a layer's input, [channels].

    None if there are none.

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


def _add_bias(x: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    # BiasAdd is fused into the convolution on CPUs; a bias that depends on the place is not.
    return tf.nn.bias_add(x, bias) if bias.shape.rank == 1 else x + bias
