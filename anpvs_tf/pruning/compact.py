"""The frozen network as a Keras model of its own: small, plain, ready to ship.

`frozen.FrozenNetwork` plans the steps of the frozen network. Training runs
them on the live variables; here each step becomes a Keras layer that holds a
copy of the folded weights.
"""

import keras
import numpy as np

from anpvs_tf.networks import graph
from anpvs_tf.pruning.frozen import FrozenNetwork
from anpvs_tf.pruning.frozen_steps import Step


@keras.saving.register_keras_serializable("anpvs_tf")
class Affine(keras.layers.Layer):
    """x * scale + shift, where the folded affine map fits no kernel.

    Args:
        scale_shape, shift_shape: shape of each weight, which broadcasts against the
            input [batch, ...]; None leaves that part out.
    """

    def __init__(self, scale_shape=None, shift_shape=None, **kwargs):
        super().__init__(**kwargs)
        self.scale_shape = scale_shape
        self.shift_shape = shift_shape

    def build(self, input_shape: tuple) -> None:
        self.scale = self.shift = None
        if self.scale_shape is not None:
            self.scale = self.add_weight(shape=self.scale_shape, initializer="ones", name="scale")
        if self.shift_shape is not None:
            self.shift = self.add_weight(shape=self.shift_shape, initializer="zeros", name="shift")

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        if self.scale is not None:
            x = x * self.scale
        return x if self.shift is None else x + self.shift

    def get_config(self) -> dict:
        shapes = {"scale_shape": self.scale_shape, "shift_shape": self.shift_shape}
        return super().get_config() | shapes


@keras.saving.register_keras_serializable("anpvs_tf")
class Select(keras.layers.Layer):
    """Chooses channels: those of the input, and behind them the layer's constants.

    Input and output: [batch, ..., channels].

    Args:
        indices: the channels of the output, in order.
        constants: how many constants (a weight) follow the input's channels.
    """

    def __init__(self, indices: list[int], constants: int = 0, **kwargs):
        super().__init__(**kwargs)
        self.indices = [int(i) for i in indices]
        self.constants = constants

    def build(self, input_shape: tuple) -> None:
        if self.constants:
            self.values = self.add_weight(shape=[self.constants], name="constants")

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        if self.constants:
            like = keras.ops.zeros_like(x[..., :1])
            x = keras.ops.concatenate([x, like + self.values], axis=-1)
        return keras.ops.take(x, self.indices, axis=-1)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return (*input_shape[:-1], len(self.indices))

    def get_config(self) -> dict:
        return super().get_config() | {"indices": self.indices, "constants": self.constants}


@keras.saving.register_keras_serializable("anpvs_tf")
class Constant(keras.layers.Layer):
    """A constant (a weight of the last axis's size) of `shape` for each example of any input."""

    def __init__(self, shape: list[int], **kwargs):
        super().__init__(**kwargs)
        self.shape = list(shape)

    def build(self, input_shape: tuple) -> None:
        self.values = self.add_weight(shape=self.shape[-1:], name="constants")

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        return keras.ops.broadcast_to(self.values, [keras.ops.shape(x)[0], *self.shape])

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return (input_shape[0], *self.shape)

    def get_config(self) -> dict:
        return super().get_config() | {"shape": self.shape}


def freeze(network: keras.Model, prune: bool = True) -> keras.Model:
    """The compact float32 network: images [batch, H, W, C] in [0, 1] -> logits.

    Computes what `network` computes in inference, from weights of its own: later
    changes of `network` do not reach it.

    Args:
        network: as in `FrozenNetwork`.
        prune: leave out the features that are pruned; without, only fold.

    Raises:
        UsageError: a layer that cannot be frozen, or a network of which a whole
            layer is pruned.
    """
    frozen = FrozenNetwork(network, prune)
    images = keras.Input(network.inputs[0].shape[1:], name="images")
    tensors = {frozen.image: images}
    names: set[str] = set()
    for step, folded in zip(frozen.steps, frozen.fold(), strict=True):
        x = [tensors[i] for i in step.inputs]
        if step.kind == "whole":
            tensors[step.output] = _whole(step, x, names)
            continue
        weights = [weight.numpy() for weight in folded]
        for layer, held in _layers(step, weights, x[0].shape[-1]):
            layer.name = _unused(layer.name, names)
            x = [layer(x if len(x) > 1 else x[0])]
            layer.set_weights(held)
        tensors[step.output] = x[0]
    return keras.Model(images, tensors[frozen.logits], name=f"{network.name}_frozen")


def _layers(
    step: Step, weights: list[np.ndarray], width: int
) -> list[tuple[keras.layers.Layer, list[np.ndarray]]]:
    """A step as Keras layers to be applied in turn, each with its weights.

    Args:
        width: number of channels of the step's (first) input.
    """
    layer = step.layer
    if step.kind == "linear":
        return _linear(step, *weights[:2], width)
    if step.kind == "depthwise":
        depthwise = keras.layers.DepthwiseConv2D(
            layer.kernel_size,
            layer.strides,
            layer.padding,
            dilation_rate=layer.dilation_rate,
            activation=layer.activation,
            name=layer.name,
        )
        return [(depthwise, weights)]
    if step.kind == "activation":
        name = f"{layer.name}_activation"
        return [(keras.layers.Activation(layer.activation, name=name), [])]
    if step.kind == "affine":
        return [(Affine(*(weight.shape for weight in weights), name="affine"), weights)]
    if step.kind == "select":
        constants = weights[0].size
        select = Select(step.indices, constants, name="select")
        return [(select, weights if constants else [])]
    if step.kind == "constant":
        return [(Constant(step.shape, name="constant"), weights)]
    if step.kind == "reshape":
        return [(keras.layers.Reshape(step.shape, name="reshape"), [])]
    config = layer.get_config() | {"dtype": "float32"}
    return [(type(layer).from_config(config), [])]


def _whole(step: Step, x: list, names: set[str]):
    """The output of a call that is repeated as it stands, by a copy of its layer."""
    if not isinstance(step.layer, keras.layers.Layer):
        return step.node.call(x)
    copy = type(step.layer).from_config(step.layer.get_config() | {"dtype": "float32"})
    copy.name = _unused(copy.name, names)
    output = step.node.call(x, copy)
    graph.copy_state(step.layer, copy)
    return output


def _linear(step: Step, kernel: np.ndarray, bias: np.ndarray, width: int) -> list:
    layer = step.layer
    made = []
    if len(step.indices) < width:
        # Pruned one by one behind a flatten: a gather, whose gradient is too slow for training.
        made.append((Select(step.indices, name=f"{layer.name}_inputs"), []))
        kernel = kernel[..., step.indices, :]
    everywhere = bias.ndim == 1
    settings = {"use_bias": everywhere, "kernel_initializer": "zeros", "name": layer.name}
    if isinstance(layer, keras.layers.Conv2D):
        linear = keras.layers.Conv2D(
            kernel.shape[-1],
            layer.kernel_size,
            layer.strides,
            layer.padding,
            dilation_rate=layer.dilation_rate,
            **settings,
        )
    else:
        linear = keras.layers.Dense(kernel.shape[-1], **settings)
    made.append((linear, [kernel, bias] if everywhere else [kernel]))
    if not everywhere:
        # A folded shift that the padding at the borders does not have.
        shift = Affine(shift_shape=bias.shape[1:], name=f"{layer.name}_bias")
        made.append((shift, [bias[0]]))
    return made


def _unused(name: str, names: set[str]) -> str:
    """`name`, numbered if it is taken (a layer may be called more than once)."""
    number, found = 1, name
    while found in names:
        number += 1
        found = f"{name}_{number}"
    names.add(found)
    return found
