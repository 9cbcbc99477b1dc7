"""The adversary of training: PGD or N-FGSM against the network as it would be deployed now."""

import functools
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from anpvs_tf.attacks.fast_gradient_sign import noisy_fgsm
from anpvs_tf.attacks.projected_gradient import pgd
from anpvs_tf.common import randomness
from anpvs_tf.methods.hyperparameters import Objective
from anpvs_tf.methods.registry import Method
from anpvs_tf.networks.gate import gates_of
from anpvs_tf.pruning.admm import WeightPruning
from anpvs_tf.pruning.frozen import FrozenNetwork, sampled_logits

# Standard deviation of the noise with which TRADES' attack starts beside the clean image.
TRADES_START = 0.001


class Crafting:
    """Crafts adversarial examples for the training step of a network.

    Args:
        network, method, objective, pruning: as of `RobustClassifier`.
        compiled: crafting is one function that XLA compiles; the images agree but for rounding.

    Attributes:
        frozen: the network that is attacked.
        features: {gate's name: bool [features], those that `frozen` was made with}, for
            checkpoints: a resumed run crafts on the same network.
    """

    def __init__(
        self,
        network: keras.Model,
        method: Method,
        objective: Objective,
        pruning: WeightPruning | None = None,
        compiled: bool = False,
    ):
        self.network = network
        self.method = method
        self.objective = objective
        self.pruning = pruning
        self.compiled = compiled
        # Dense until `refreeze`: exact whatever the gates do meanwhile.
        self.frozen = self._freeze(prune=False)
        self.features = {
            name: tf.Variable(is_open, trainable=False, name=f"{name}_crafting")
            for name, is_open in self.frozen.open_gates.items()
        }

    def _freeze(self, **choice) -> FrozenNetwork:
        dtype = next(layer.compute_dtype for layer in self.network.layers if layer.weights)
        # Weights that are zero now may move, but not those that were cut.
        support = self.pruning.support() if self.pruning else {}
        return FrozenNetwork(self.network, dtype=dtype, support=support, **choice)

    def refreeze(self) -> bool:
        """Makes the crafting network anew if the gates have changed enough.

        Returns:
            Whether it changed, so that a `tf.function` of `train_step` is stale: a
            feature that it lacks is open again, or leaving out what is pruned now
            saves three tenths of its work (a new trace takes seconds).
        """
        if not gates_of(self.network):
            return False
        frozen = self._freeze(prune=True)
        missing = any(
            np.any(is_open & ~self.frozen.open_gates[name])
            for name, is_open in frozen.open_gates.items()
        )
        if not missing and frozen.multiplications > 0.7 * self.frozen.multiplications:
            return False
        self.frozen = frozen
        for name, is_open in frozen.open_gates.items():
            self.features[name].assign(is_open)
        return True

    def follow_pruning(self) -> None:
        """Leaves out the weights that have just been cut; the features stay."""
        self.frozen = self._freeze(open_gates=self.frozen.open_gates)

    def restore(self) -> None:
        """Makes the crafting network that `features`, read from a checkpoint, describe."""
        features = {name: held.numpy() for name, held in self.features.items()}
        self.frozen = self._freeze(open_gates=features)

    def craft(
        self, images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor, warmth: tf.Tensor
    ) -> tf.Tensor:
        """Crafts adversarial images.

        Args:
            warmth: factor of the attack's radius and of its step, in [0, 1].
        """
        # Weights are folded outside: a function compiled by XLA then reads no variable.
        attack = functools.partial(self._attack, self._attacked(seed))
        if self.compiled:
            attack = tf.function(attack, autograph=False, jit_compile=True)
        return attack(images, labels, seed, warmth)

    def _attack(
        self,
        logits_fn: Callable[[tf.Tensor], tf.Tensor],
        images: tf.Tensor,
        labels: tf.Tensor,
        seed: tf.Tensor,
        warmth: tf.Tensor,
    ) -> tf.Tensor:
        objective = self.objective
        epsilon = warmth * objective.epsilon * objective.train_epsilon_scale
        choices = {}
        if self.method.trades:
            shape = images.shape[1:]
            draw = randomness.per_example(
                lambda n, first: randomness.normal([n, *shape], seed, first), tf.shape(images)[0]
            )
            choices = {"loss": "kl", "start": images + TRADES_START * draw}
        if objective.train_attack == "n_fgsm":
            choices.pop("start", None)  # N-FGSM's own start is farther from the clean image.
            return noisy_fgsm(
                logits_fn,
                images,
                labels,
                seed,
                epsilon=epsilon,
                norm=objective.norm,
                **choices,
            )
        return pgd(
            logits_fn,
            images,
            labels,
            seed,
            epsilon=epsilon,
            step_size=warmth * objective.step_size,
            steps=objective.attack_steps,
            norm=objective.norm,
            **choices,
        )

    def _attacked(self, seed: tf.Tensor) -> Callable[[tf.Tensor], tf.Tensor]:
        """Returns images -> logits of the frozen network, or of draws from its posterior."""
        frozen, draws = self.frozen, self.objective.crafting_draws
        if draws:
            return sampled_logits(self.network, draws, randomness.fold(seed, "posterior"), frozen)
        weights = frozen.fold()
        return lambda images: frozen.apply(weights, images)
