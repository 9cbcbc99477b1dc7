"""The values that a user's Keras model takes for black and white, read off its first layers."""

from collections.abc import Iterator

import keras
import numpy as np

from anpvs_tf.common.errors import UsageError

UNIT, BYTES, SYMMETRIC = (0.0, 1.0), (0.0, 255.0), (-1.0, 1.0)
# A layer that maps the distance of 0 and 255 to this number or less is made for pixels from 0
# to 255: its outputs lie about 1 to 5 apart; for pixels of [0, 1] they would be almost equal.
LARGEST_SPREAD = 25.0

# Layers that may come before that layer: they keep the range.
_KEEPING = (
    keras.layers.InputLayer,
    keras.layers.Resizing,
    keras.layers.CenterCrop,
    keras.layers.ZeroPadding2D,
    keras.layers.Cropping2D,
    keras.layers.Dropout,
    keras.layers.GaussianNoise,
    keras.layers.Reshape,
    keras.layers.Permute,
)


def of_keras(model: keras.Model) -> tuple[tuple[float, float], str]:
    """Reads ((black, white), how that is known) off a model; UNIT and "" if no layer says it."""
    for layer in _layers(model):
        if isinstance(layer, keras.layers.Rescaling):
            scale, offset = np.asarray(layer.scale, float), np.asarray(layer.offset, float)
            found = _by_spread(255.0 * np.abs(scale))
            if np.all(offset == scale):  # Black, -1, becomes 0.
                found = SYMMETRIC
        elif isinstance(layer, keras.layers.Normalization):
            found = _by_spread(255.0 / np.sqrt(np.maximum(np.asarray(layer.variance), 1e-12)))
        elif isinstance(layer, _KEEPING) or type(layer).__name__.startswith("Random"):
            continue
        else:
            break
        return found, f"by its layer {layer.name!r}" if found != UNIT else ""
    if takes_integers(model):
        return BYTES, f"it takes {model.inputs[0].dtype}"
    return UNIT, ""


def _by_spread(spread: np.ndarray) -> tuple[float, float]:
    return BYTES if np.median(spread) <= LARGEST_SPREAD else UNIT


def _layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Yields the layers from the input on, those of nested models among them."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _layers(layer)
        else:
            yield layer


def takes_integers(model: keras.Model) -> bool:
    """Says whether the model takes integers, through which no gradient passes."""
    inputs = getattr(model, "inputs", None) or []
    return any("int" in str(tensor.dtype) for tensor in inputs)


def with_float_input(model: keras.Model) -> keras.Model:
    """Copies a model of integer images; the copy takes the same numbers as float32.

    Raises:
        UsageError: the model is neither functional nor sequential.
    """
    try:
        images = keras.Input(model.inputs[0].shape[1:], dtype="float32")
        images = keras.tree.map_structure(lambda _: images, model.input)
        copy = keras.models.clone_model(model, input_tensors=images)
        copy.set_weights(model.get_weights())
        return copy
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"the model takes {model.inputs[0].dtype}, through which no gradient passes, and "
            "cannot be rebuilt for float32; save one that takes float32"
        ) from error
