"""The gate of the variational information bottleneck (Dai et al., ICML 2018)."""

import keras
import numpy as np
import tensorflow as tf

from anpvs_tf.common import randomness
from anpvs_tf.networks.gate import Gate

# Of log sigma^2: sigma = 2e-9 is no noise, and sigma = 148 keeps masks finite in float16.
LOG_VARIANCE_MIN, LOG_VARIANCE_MAX = -40.0, 10.0


@keras.saving.register_keras_serializable("anpvs_tf")
class InformationBottleneckGate(Gate):
    """A gate that drowns a feature in noise when the feature is not worth its information.

    z = h (mu + sigma epsilon), epsilon ~ N(0, 1) for each example and feature; 0 where the
    feature is pruned (the authors' gate passes it on in training). The KL
    is 1/2 log(1 + mu^2 / sigma^2): the information that a Gaussian channel of that
    signal-to-noise ratio lets through. The importance is the ratio mu^2 / sigma^2 itself. mu is the
    absolute value of the parameter `gate_mu`, which loses nothing (see `Gate.mean`).

    Args:
        initial_mu: initial value of mu.
        initial_log_variance: initial value of log sigma^2; between -40 and 10.
        prune_threshold: not negative; features with mu^2 / sigma^2 at or below it are
            pruned. At 1, the authors' choice, noise and signal are equally strong.

    The others are `Gate`'s. The initial values are those of the authors' code, without
    its jitter of 0.01.

    Raises:
        ValueError: for a prune_threshold or initial_log_variance out of range.
    """

    def __init__(
        self,
        initial_mu: float = 1.0,
        initial_log_variance: float = -9.0,
        prune_threshold: float = 1.0,
        **kwargs,
    ):
        super().__init__(prune_threshold, **kwargs)
        if not prune_threshold >= 0:
            raise ValueError(f"prune_threshold must not be negative; received {prune_threshold}")
        if not LOG_VARIANCE_MIN <= initial_log_variance <= LOG_VARIANCE_MAX:
            raise ValueError(
                f"initial_log_variance must lie in [{LOG_VARIANCE_MIN:g}, {LOG_VARIANCE_MAX:g}]; "
                f"received {initial_log_variance}"
            )
        self.initial_mu = initial_mu
        self.initial_log_variance = initial_log_variance

    def build(self, input_shape: tuple) -> None:
        super().build(input_shape)
        self.raw_mu = self.parameter("gate_mu", self.initial_mu)
        self.raw_log_variance = self.parameter("gate_log_variance", self.initial_log_variance)

    def log_variance(self) -> tf.Tensor:
        """Returns log sigma^2, float32 [features]."""
        raw = tf.convert_to_tensor(self.raw_log_variance)
        return tf.clip_by_value(raw, LOG_VARIANCE_MIN, LOG_VARIANCE_MAX)

    def feature_kl(self) -> tf.Tensor:
        return 0.5 * tf.math.log1p(self.importance())

    def mean(self) -> tf.Tensor:
        return tf.abs(tf.convert_to_tensor(self.raw_mu))

    def importance(self) -> tf.Tensor:
        return tf.square(self.mean()) * tf.exp(-self.log_variance())

    def sample_mask(self, batch_size: int | tf.Tensor) -> tf.Tensor:
        seed = randomness.layer_seed(self.name, self.seed_generator)
        sigma = tf.exp(0.5 * self.log_variance())
        # Otherwise training could rely on features that deployment and attacks leave out.
        is_open = self.is_open()

        def masks(examples, first):
            drawn = randomness.normal([examples, self.features], seed, first)
            return tf.where(is_open, self.mean() + sigma * drawn, 0.0)

        return randomness.per_example(masks, batch_size)

    def close(self, which: np.ndarray) -> None:
        # Where the gradients of the absolute value and of the clipped value are 0.
        self.raw_mu.assign(np.where(which, 0.0, self.raw_mu))
        self.raw_log_variance.assign(np.where(which, LOG_VARIANCE_MIN - 1, self.raw_log_variance))

    def open_all(self) -> None:
        self.raw_mu.assign(np.ones(self.features))
        self.raw_log_variance.assign(np.full(self.features, LOG_VARIANCE_MIN))

    def get_config(self) -> dict:
        return super().get_config() | {
            "initial_mu": self.initial_mu,
            "initial_log_variance": self.initial_log_variance,
        }
