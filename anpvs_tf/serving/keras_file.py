"""The Keras file of a frozen network: one that loads without this package."""

import pathlib

import keras
import numpy as np

from anpvs_tf.common.errors import UsageError
from anpvs_tf.pruning.compact import Affine, Select


def write(frozen: keras.Model, path: pathlib.Path) -> None:
    """Writes model.keras: float32 images [batch, H, W, C] in [0, 1] -> logits [batch, classes].

    Raises:
        UsageError: a layer that Keras does not have, by name.
    """
    of_keras(frozen).save(path / "model.keras")


def of_keras(frozen: keras.Model) -> keras.Model:
    """The same network, made of Keras's own layers.

    Args:
        frozen: a network from `compact.freeze`.

    Raises:
        UsageError: as of `write`.
    """
    weights: list[tuple[keras.layers.Layer, list[np.ndarray]]] = []

    def own(layer: keras.layers.Layer) -> keras.layers.Layer:
        if isinstance(layer, Affine):
            return _rescaling(layer)
        made, held = type(layer), layer.get_weights()
        if isinstance(layer, Select):
            copy, held = _convolution(layer)
        elif made.__module__.startswith("keras."):
            copy = made.from_config(layer.get_config())
        else:
            raise UsageError(
                f"--format=keras writes files that load without other code, and layer {layer.name} "
                f"is a {made.__name__}, which Keras does not have; use another --format"
            )
        weights.append((copy, held))
        return copy

    network = keras.models.clone_model(frozen, clone_function=own)
    for layer, held in weights:
        layer.set_weights(held)
    return network


def _rescaling(layer: Affine) -> keras.layers.Layer:
    scale, shift = (
        default if weight is None else np.asarray(weight).tolist()
        for weight, default in ((layer.scale, 1.0), (layer.shift, 0.0))
    )
    return keras.layers.Rescaling(scale, shift, name=layer.name)


def _convolution(layer: Select) -> tuple[keras.layers.Layer, list[np.ndarray]]:
    """Channels chosen by a product with zeros and ones; the constants are its bias."""
    shape = layer.input.shape
    constants = np.asarray(layer.values) if layer.constants else np.zeros(0)
    kernel = np.eye(shape[-1] + len(constants))[:, layer.indices]
    bias = np.concatenate([np.zeros(shape[-1]), constants])[layer.indices]
    kernel = kernel[: shape[-1]]
    if len(shape) == 2:
        return keras.layers.Dense(kernel.shape[1], name=layer.name), [kernel, bias]
    rank = len(shape) - 2
    kind = {1: keras.layers.Conv1D, 2: keras.layers.Conv2D, 3: keras.layers.Conv3D}[rank]
    return kind(kernel.shape[1], 1, name=layer.name), [
        kernel.reshape(*[1] * rank, *kernel.shape),
        bias,
    ]
