"""The frozen network as a Keras model of its own: small, plain, ready to ship.

`frozen.FrozenNetwork` plans the steps of the frozen network. Training runs
them on the live variables; here each step becomes Keras layers that hold a
copy of the folded weights.
"""

import dataclasses

import keras
import numpy as np

from anpvs_tf.networks import graph
from anpvs_tf.pruning.compact_layers import Affine, Constant, Select
from anpvs_tf.pruning.frozen import FrozenNetwork

__all__ = ["Affine", "Constant", "Copies", "Latent", "Select", "freeze", "freeze_with_latents"]


@dataclasses.dataclass(frozen=True)
class Latent:
    """A latent layer of a network, as its compact network computes it.

    Feature `channels[i]` of the layer is `scale[i]` times channel i of `tensor`, plus a constant.
    The other features are gone: they were constant, or nothing read them.

    Attributes:
        tensor: of the compact network, [batch, ..., channels].
        channels: int [channels], in ascending order.
        scale: float32 [channels].
        features: of the latent layer, those that are gone included.
    """

    tensor: keras.KerasTensor
    channels: np.ndarray
    scale: np.ndarray
    features: int


def freeze(network: keras.Model, prune: bool = True) -> keras.Model:
    """Makes the compact float32 network: images [batch, H, W, C] in [0, 1] -> logits.

    It computes the same as `network` in inference, from weights of its own: later
    changes of `network` do not reach it.

    Args:
        network: as in `FrozenNetwork`.
        prune: leave out the features that are pruned; without, only fold.

    Raises:
        UsageError: a layer that cannot be frozen, or a network of which a whole
            layer is pruned.
    """
    return freeze_with_latents(network, prune)[0]


def freeze_with_latents(
    network: keras.Model, prune: bool = True
) -> tuple[keras.Model, dict[str, Latent]]:
    """Makes the compact network of `freeze`, and says where the latent layers are in it.

    Raises:
        UsageError: as of `freeze`.
    """
    frozen = FrozenNetwork(network, prune)
    images = keras.Input(network.inputs[0].shape[1:], name="images")
    tensors = {frozen.image: images}
    copies = Copies()
    for step, folded in zip(frozen.steps, frozen.fold(), strict=True):
        weights = [weight.numpy() for weight in folded]
        tensors[step.output] = step.build([tensors[i] for i in step.inputs], weights, copies)
    latents = {}
    for name, value in frozen.latents.items():
        scale = np.ones(len(value.channels)) if value.scale is None else value.scale()
        latents[name] = Latent(
            tensors[value.source],
            value.channels,
            np.asarray(scale, np.float32),
            network.output[name].shape[-1],
        )
    compact = keras.Model(images, tensors[frozen.logits], name=f"{network.name}_frozen")
    return compact, latents


class Copies:
    """The layers of a compact network, each with a name of its own."""

    def __init__(self):
        self._names: set[str] = set()

    def add(
        self, layer: keras.layers.Layer, x, weights: list[np.ndarray] = ()
    ) -> keras.KerasTensor:
        """Applies a new layer to one or several symbolic tensors, and gives it its weights."""
        layer.name = self._unused(layer.name)
        output = layer(x)
        layer.set_weights(list(weights))
        return output

    def repeat(self, node: graph.Node, x: list) -> keras.KerasTensor:
        """Repeats a call as it stands, by a copy of its layer, weights included."""
        if not isinstance(node.layer, keras.layers.Layer):
            return node.call(x)
        copy = type(node.layer).from_config(node.layer.get_config() | {"dtype": "float32"})
        copy.name = self._unused(copy.name)
        output = node.call(x, copy)
        graph.copy_state(node.layer, copy)
        return output

    def _unused(self, name: str) -> str:
        """Returns `name`, numbered if it is taken (a layer may be called more than once)."""
        number, found = 1, name
        while found in self._names:
            number += 1
            found = f"{name}_{number}"
        self._names.add(found)
        return found
