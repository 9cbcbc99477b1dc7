"""The Keras file of a frozen network: one that loads without this package."""

import pathlib
import zipfile
from typing import Any

import keras
import numpy as np

from anpvs_tf.common.errors import UsageError
from anpvs_tf.pruning.compact import Affine, Select


def write(frozen: keras.Model, path: pathlib.Path) -> None:
    """Writes model.keras: float32 images [batch, H, W, C] in [0, 1] -> logits [batch, classes].

    Raises:
        UsageError: Keras does not have a layer; the message names it.
    """
    of_keras(frozen).save(path / "model.keras")
    _compress(path / "model.keras")


def _compress(path: pathlib.Path) -> None:
    """Writes the archive again, deflated: Keras stores it as it is, a third of it air in HDF5."""
    with zipfile.ZipFile(path) as stored:
        contents = {entry.filename: stored.read(entry) for entry in stored.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as deflated:
        for name, content in contents.items():
            deflated.writestr(name, content)


def of_keras(frozen: keras.Model) -> keras.Model:
    """Makes the same network of Keras's own layers and operations.

    Args:
        frozen: a network from `compact.freeze`.

    Raises:
        UsageError: as of `write`.
    """
    weights: list[tuple[keras.layers.Layer, list[np.ndarray]]] = []

    def own(layer: keras.Operation) -> keras.Operation:
        made = type(layer)
        if not isinstance(layer, keras.layers.Layer):
            return layer  # An operation, such as x * 2, which has no weights.
        if made is Select:
            return layer  # `call` does it without one.
        if made is Affine:
            return _rescaling(layer)
        activation = getattr(layer, "activation", None)
        foreign = [one for one in (made, activation) if one and not _is_of_keras(one)]
        if foreign or made is keras.layers.Lambda:
            what = getattr((foreign or [made])[0], "__name__", "function")
            raise UsageError(
                f"--format=keras writes files that load without other code, and layer {layer.name} "
                f"has {what}, which no other code has; use another --format"
            )
        copy = made.from_config(layer.get_config())
        weights.append((copy, layer.get_weights()))
        return copy

    def call(layer: keras.layers.Layer, x, *others, **settings):
        if isinstance(layer, Select):
            return _chosen(layer, x)
        return layer(x, *others, **settings)

    network = keras.models.clone_model(frozen, clone_function=own, call_function=call)
    for layer, held in weights:
        layer.set_weights(held)
    return network


def _is_of_keras(definition: Any) -> bool:
    return getattr(definition, "__module__", type(definition).__module__).startswith("keras.")


def _rescaling(layer: Affine) -> keras.layers.Layer:
    scale, shift = (
        default if weight is None else np.asarray(weight).tolist()
        for weight, default in ((layer.scale, 1.0), (layer.shift, 0.0))
    )
    return keras.layers.Rescaling(scale, shift, name=layer.name)


def _chosen(layer: Select, x: keras.KerasTensor) -> keras.KerasTensor:
    """Computes the output of `Select` by operations, which are saved like layers."""
    if layer.constants:
        like = keras.ops.zeros_like(x[..., :1])
        x = keras.ops.concatenate([x, like + np.asarray(layer.values)], axis=-1)
    return keras.ops.take(x, layer.indices, axis=-1)
