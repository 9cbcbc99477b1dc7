"""A Bayesian network as several networks drawn from its posterior."""

from collections.abc import Callable

import keras
import tensorflow as tf

from anpvs_tf import bayesian, noise
from anpvs_tf.attacks import objectives
from anpvs_tf.freezing import FrozenNetwork


def sampled_logits(
    network: keras.Model, draws: int, seed: tf.Tensor, frozen: FrozenNetwork | None = None
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Frozen networks drawn from the posterior, to be attacked together.

    Losses and gradients of attacks are means over the draws, decisions fall on the mean
    softmax, as with `attacks.composition.expectation`; but the draws stay the same.

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
        with keras.StatelessScope(bayesian.draw(network, noise.fold(seed, i))):
            folded.append(frozen.fold())
    return lambda images: tf.stack([frozen.apply(weights, images) for weights in folded])


def sampled_outputs(
    network: keras.Model, draws: int, seed: tf.Tensor
) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """The ensemble of the networks of `sampled_logits`, with latent features.

    Args: as of `sampled_logits`.

    Returns:
        images -> {"logits": log of the mean softmax, [batch, classes]; "<layer>": the
        features of all draws side by side, [batch, ..., draws * features], so that their
        mean movement is the mean over the draws}.
    """
    drawn = [bayesian.draw(network, noise.fold(seed, i)) for i in range(draws)]

    def outputs(images):
        found = []
        for weights in drawn:
            with keras.StatelessScope(weights):
                found.append(network(images, training=False))
        together = {
            name: tf.concat([one[name] for one in found], axis=-1)
            for name in found[0]
            if name != "logits"
        }
        logits = tf.stack([one["logits"] for one in found])
        return {"logits": objectives.logits_of(lambda _: logits, images), **together}

    return outputs
