"""The frozen network: a gated network as it is deployed.

Every normalisation, batch normalisation and gate mean is folded into the
neighbouring kernels and biases, and pruned features are gone from the kernels
that make them and the kernels that read them. In exact arithmetic the frozen
network computes the gated network's logits and input gradient in evaluation
mode.

`FrozenNetwork` reads the live variables, so a training step can fold once and
then run the small network many times.
"""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from anpvs_tf.common import randomness
from anpvs_tf.networks import bayesian, graph
from anpvs_tf.networks.gate import gates_of
from anpvs_tf.pruning import live_channels
from anpvs_tf.pruning.channels import Support, each_constant_once
from anpvs_tf.pruning.folding import Folding


class FrozenNetwork:
    """A functional network, frozen: images -> logits on the live variables.

    Args:
        network: a functional Keras model with one input, images [batch, H, W, C];
            its output is the logits, or a dict of which "logits" is one. Layers
            of no known kind (`graph.KINDS`) keep all channels in front of them.
        prune: leave out the features that are pruned now: by a gate, or because zero
            weights make them constant or no layer reads them. Without, every feature
            stays and its gate is folded.
        open_gates: {gate's name: bool [features]}, the features that stay, instead of
            those that are open now.
        support: where weights may differ from zero, instead of where they do now.
        dtype: in which the network computes; the logits are float32.

    Raises:
        UsageError: a layer that cannot be frozen, by name, or a network all of
            whose paths are pruned.

    Attributes:
        latents: {latent layer: its `Value`}, of the network's other outputs. A layer that the
            logits do not depend on is absent, and one whose kernel took in layers behind it.
    """

    def __init__(
        self,
        network: keras.Model,
        prune: bool = True,
        dtype: str = "float32",
        open_gates: dict[str, np.ndarray] | None = None,
        support: Support | None = None,
    ):
        self.dtype = dtype
        self.image = id(network.inputs[0])
        nodes = graph.nodes_of(network, graph.logits_of(network))
        if support is None:
            support = live_channels.nonzero(nodes) if prune and open_gates is None else {}
        if open_gates is None:
            open_gates = {
                gate.name: np.asarray(gate.mean_mask()) > 0
                if prune
                else np.ones(gate.features, bool)
                for gate in gates_of(network)
            }
        self.open_gates = open_gates
        channels = network.inputs[0].shape[-1]
        known = live_channels.analyse(
            nodes, self.image, network.inputs[0].shape, open_gates, support=support
        )
        folding = Folding(nodes, self.image, channels, known)
        self.steps, self.logits = folding.steps, folding.logits
        found = {name: folding.values.get(i) for name, i in graph.latents_of(network).items()}
        self.latents = {name: one for name, one in found.items() if one and one.linear is None}

    @property
    def multiplications(self) -> int:
        """Multiply-adds of one image in convolutions and dense layers."""
        return sum(step.multiplications for step in self.steps)

    def fold(self) -> list[list[tf.Tensor]]:
        """Computes the frozen weights from the live variables, a list for each step."""
        with each_constant_once():
            return [[tf.cast(v(), self.dtype) for v in step.weights] for step in self.steps]

    def apply(self, weights: list[list[tf.Tensor]], images: tf.Tensor) -> tf.Tensor:
        """Computes logits, float32 [batch, classes], of float32 images in [0, 1].

        Args:
            weights: from `fold`.
            images: [batch, H, W, C].
        """
        tensors = {self.image: tf.cast(images, self.dtype)}
        for step, folded in zip(self.steps, weights, strict=True):
            tensors[step.output] = step.run([tensors[i] for i in step.inputs], folded)
        return tf.cast(tensors[self.logits], tf.float32)

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        """Folds the weights and applies the network to images."""
        return self.apply(self.fold(), images)


def sampled_logits(
    network: keras.Model, draws: int, seed: tf.Tensor, frozen: FrozenNetwork | None = None
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Freezes networks drawn from the posterior, to be attacked together.

    Losses and gradients of attacks are means over the draws, decisions fall on the mean
    softmax, as with `attacks.stochastic.expectation`; but the draws stay the same.

    Args:
        network: functional, of layers that `FrozenNetwork` supports, some Bayesian.
        draws: number of networks, at least 1; draw i does not depend on it.
        seed: int32, shape [2].
        frozen: a `FrozenNetwork` of `network`; needed inside a `tf.function`, where none can
            be made.

    Returns:
        images [batch, H, W, C] -> logits, float32 [draws, batch, classes].
    """
    frozen = frozen or FrozenNetwork(network)
    folded = []
    for i in range(draws):
        with keras.StatelessScope(bayesian.draw(network, randomness.fold(seed, i))):
            folded.append(frozen.fold())
    return lambda images: tf.stack([frozen.apply(weights, images) for weights in folded])
