"""Describes a compact network for the page of --format=web, which builds it layer by layer."""

import base64
import dataclasses
from typing import Any

import keras
import numpy as np

from anpvs_tf.common.errors import UsageError
from anpvs_tf.networks import graph
from anpvs_tf.pruning.compact import Affine, Latent, Select

layers = keras.layers

ACTIVATIONS = ("linear", "relu", "sigmoid", "tanh")


@dataclasses.dataclass(frozen=True)
class _Follows:
    """How the page follows a type of layer.

    Attributes:
        settings: of the layer's configuration, which the page reads.
        only: {setting: the values that the page follows}.
    """

    settings: tuple[str, ...] = ()
    only: dict[str, tuple] = dataclasses.field(default_factory=dict)


_PADDINGS = {"padding": ("same", "valid")}
# The gradient of TensorFlow.js has no dilation.
_CONVOLUTION = _PADDINGS | {"dilation_rate": ((1, 1),), "data_format": ("channels_last",)}
_POOLING = ("pool_size", "strides", "padding")

# By type; `LAYERS` of web/network.js computes them.
FOLLOWED: dict[type, _Follows] = {
    layers.Conv2D: _Follows(("strides", "padding", "activation"), _CONVOLUTION | {"groups": (1,)}),
    layers.DepthwiseConv2D: _Follows(("strides", "padding", "activation"), _CONVOLUTION),
    layers.Dense: _Follows(("activation",)),
    layers.Activation: _Follows(("activation",)),
    layers.ReLU: _Follows((), {"max_value": (None,), "negative_slope": (0,), "threshold": (0,)}),
    layers.MaxPooling2D: _Follows(_POOLING, _PADDINGS),
    # Its gradient in TensorFlow.js is wrong at padded borders.
    layers.AveragePooling2D: _Follows(_POOLING, {"padding": ("valid",)}),
    layers.GlobalAveragePooling2D: _Follows(("keepdims",)),
    layers.Flatten: _Follows(),
    layers.Add: _Follows(),
    Affine: _Follows(),
    Select: _Follows(("indices",)),
}
_EVERYWHERE = {"data_format": ("channels_last",), "activation": ACTIVATIONS}


def describe(frozen: keras.Model, latents: dict[str, Latent]) -> dict[str, Any]:
    """Makes what `anpvs.Network` of web/network.js is made from, as it goes into JSON.

    Args:
        frozen, latents: from `compact.freeze_with_latents`.

    Returns:
        "shape" of an image, "steps", "weights" (the float32 weights of all steps in order,
        base64), and "latents": of each layer its "name", the number of the "value" that it is a
        multiple of (0: the images; i: the output of step i - 1), the "scale" and "channels" of the
        features that are left, and the number of "features" with those that are gone.

    Raises:
        UsageError: the page has no such layer; the message names it.
    """
    numbers = {id(frozen.inputs[0]): 0}
    steps, weights = [], []
    for node in graph.nodes_of(frozen, frozen.outputs[0]):
        settings = _settings(node)
        held = _weights_of(node.layer)
        steps.append(
            {
                "name": node.layer.name,
                "layer": type(node.layer).__name__,
                "inputs": [numbers[i] for i in node.inputs],
                "settings": settings,
                "weights": [(name, value.shape) for name, value in held.items()],
            }
        )
        weights += held.values()
        numbers[node.output] = len(steps)
    return {
        "shape": frozen.inputs[0].shape[1:],
        "steps": steps,
        "weights": encoded(np.concatenate([np.ravel(one) for one in weights])),
        "latents": [
            {
                "name": name,
                "value": numbers[id(latent.tensor)],
                "scale": latent.scale.tolist(),
                "channels": latent.channels.tolist(),
                "features": latent.features,
            }
            for name, latent in latents.items()
        ],
    }


def encoded(values: np.ndarray) -> str:
    """Encodes float32 or uint8 values, in order, as base64; little-endian, as browsers have it."""
    wanted = np.uint8 if values.dtype == np.uint8 else np.dtype("<f4")
    return base64.b64encode(np.ascontiguousarray(values, wanted)).decode()


def _weights_of(layer: keras.layers.Layer) -> dict[str, np.ndarray]:
    return {weight.name: np.asarray(weight) for weight in layer.weights}


def _settings(node: graph.Node) -> dict[str, Any]:
    layer, kind = node.layer, type(node.layer)
    if kind not in FOLLOWED:
        raise _refused(layer, f"a {kind.__name__}")
    ranks = (2,) if kind is layers.Dense else (2, 4)
    if any(len(shape) not in ranks for shape in node.input_shapes):
        raise _refused(layer, f"a {kind.__name__} of an input {node.input_shapes[0]}")
    config = layer.get_config()
    if "activation" in config:
        config["activation"] = _activation(layer)
    for name, allowed in (_EVERYWHERE | FOLLOWED[kind].only).items():
        if name in config and config[name] not in allowed:
            raise _refused(layer, f"a {kind.__name__} whose {name} is {config[name]}")
    return {name: config[name] for name in FOLLOWED[kind].settings}


def _activation(layer: keras.layers.Layer) -> str:
    """Returns the name of a layer's activation; that of a user's function is no name of Keras."""
    function = layer.activation
    name = getattr(function, "__name__", type(function).__name__)
    own = name in ACTIVATIONS and function is not keras.activations.get(name)
    return f"{name} of a user" if own else name


def _refused(layer: keras.layers.Layer, reason: str) -> UsageError:
    return UsageError(
        f"--format=web shows no network with a layer like {layer.name}, {reason}; "
        "use another --format"
    )
