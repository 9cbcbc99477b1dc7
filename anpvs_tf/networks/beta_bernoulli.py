"""The beta-Bernoulli gate of the paper (Section 3, Eq. 7 to 9)."""

import keras
import numpy as np
import tensorflow as tf

from anpvs_tf.common import randomness
from anpvs_tf.networks import kumaraswamy
from anpvs_tf.networks.gate import Gate


@keras.saving.register_keras_serializable("anpvs_tf")
class BetaBernoulliGate(Gate):
    """A gate whose probability of being open is learned.

    The probability pi_k of feature k has the posterior Kumaraswamy(a_k, b_k) and
    the prior Beta(prior, 1). In training, pi is drawn once per call and a mask
    per example and feature (Eq. 7, a relaxed Bernoulli):
    m = sigmoid((logit(pi) + logit(u)) / temperature). The KL is Eq. 8. Mean of the
    mask and importance are both E[pi], in (0, 1).

    Args:
        initial_a_raw: initial value of a_raw; -1 gives E[pi] = 0.2385, 2 gives 0.6802.
        initial_b_raw: initial value of b_raw; 0.5413 gives b = 1.
        temperature: tau of Eq. 7, positive.
        prior: alpha / K of the Beta prior, positive.
        prune_threshold: in [0, 1); features with E[pi] at or below it are pruned.

    The others are `Gate`'s.

    Raises:
        ValueError: for a temperature, prior or prune_threshold out of range.
    """

    def __init__(
        self,
        initial_a_raw: float = -1.0,
        initial_b_raw: float = 0.5413,
        temperature: float = 0.1,
        prior: float = 1e-4,
        prune_threshold: float = 1e-3,
        **kwargs,
    ):
        super().__init__(prune_threshold, **kwargs)
        if not temperature > 0:
            raise ValueError(f"temperature must be positive; received {temperature}")
        if not prior > 0:
            raise ValueError(f"prior must be positive; received {prior}")
        if not 0 <= prune_threshold < 1:
            raise ValueError(f"prune_threshold must lie in [0, 1); received {prune_threshold}")
        self.initial_a_raw = initial_a_raw
        self.initial_b_raw = initial_b_raw
        self.temperature = temperature
        self.prior = prior

    def build(self, input_shape: tuple) -> None:
        super().build(input_shape)
        self.a_raw = self.parameter("gate_a_raw", self.initial_a_raw)
        self.b_raw = self.parameter("gate_b_raw", self.initial_b_raw)

    def concentrations(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns (a, b) of the posterior, float32 [features], positive."""
        a_raw, b_raw = tf.convert_to_tensor(self.a_raw), tf.convert_to_tensor(self.b_raw)
        return kumaraswamy.concentrations(a_raw, b_raw)

    def feature_kl(self) -> tf.Tensor:
        return kumaraswamy.kl_to_beta(*self.concentrations(), self.prior)

    def mean(self) -> tf.Tensor:
        return kumaraswamy.mean(*self.concentrations())

    def importance(self) -> tf.Tensor:
        return self.mean()

    def sample_mask(self, batch_size: int | tf.Tensor) -> tf.Tensor:
        seed = randomness.layer_seed(self.name, self.seed_generator)
        smallest = kumaraswamy.UNIFORM_MIN
        v = randomness.uniform([self.features], randomness.fold(seed, 0), smallest, 1.0)
        logit_pi = kumaraswamy.sample_logit(*self.concentrations(), v)
        u_seed = randomness.fold(seed, 1)

        def masks(examples, first):
            u = randomness.uniform([examples, self.features], u_seed, smallest, 1.0, first)
            return tf.sigmoid((logit_pi + tf.math.log(u) - tf.math.log1p(-u)) / self.temperature)

        return randomness.per_example(masks, batch_size)

    def close(self, which: np.ndarray) -> None:
        # The prior itself, Beta(prior, 1): E[pi] is far below the threshold, and the KL at rest.
        self.a_raw.assign(np.where(which, np.log(np.expm1(self.prior)), self.a_raw))
        self.b_raw.assign(np.where(which, np.log(np.expm1(1.0)), self.b_raw))

    def open_all(self) -> None:
        # E[pi] = a / (1 + a) for b = 1.
        self.a_raw.assign(np.full(self.features, 1e9))
        self.b_raw.assign(np.full(self.features, np.log(np.expm1(1.0))))

    def get_config(self) -> dict:
        return super().get_config() | {
            "initial_a_raw": self.initial_a_raw,
            "initial_b_raw": self.initial_b_raw,
            "temperature": self.temperature,
            "prior": self.prior,
        }
