"""Layers of a compact network that Keras does not have."""

import keras


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

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        # Keras takes a product with a number for sparse, and would lose its shape.
        return input_shape

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
