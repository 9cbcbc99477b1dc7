"""Layers that learn which features to keep, and dropout that pairs share."""

import keras
import tensorflow as tf

from anpvs_tf import kumaraswamy, noise


def _batch_shape(inputs: tf.Tensor) -> list:
    """The shape of `inputs`: Python numbers where known, else scalar tensors."""
    dynamic = tf.shape(inputs)
    return [dynamic[i] if n is None else n for i, n in enumerate(inputs.shape)]


@keras.saving.register_keras_serializable("anpvs_tf")
class BetaBernoulliGate(keras.layers.Layer):
    """Multiplies each feature by a gate whose probability of being open is learned.

    The probability pi_k of feature k has the posterior Kumaraswamy(a_k, b_k) and
    the prior Beta(prior, 1). In training, pi is drawn once per call and a mask
    per example and feature (Eq. 7, a relaxed Bernoulli):
    m = sigmoid((logit(pi) + logit(u)) / temperature). In inference the mask is
    E[pi], and 0 where E[pi] <= prune_threshold: such a feature is *pruned*.

    The KL divergence to the prior (Eq. 8) is added with `add_loss`, times
    `kl_weight`; `RobustClassifier` takes it from `kl()` and weights it itself.

    Input and output: [batch, ..., features]; the gate acts on the last axis.

    Args:
        initial_a_raw: initial value of a_raw; -1 gives E[pi] = 0.2385, 2 gives 0.6802.
        initial_b_raw: initial value of b_raw; 0.5413 gives b = 1.
        temperature: tau of Eq. 7, positive.
        prior: alpha / K of the Beta prior, positive.
        prune_threshold: in [0, 1); features with E[pi] at or below it are pruned.
        kl_weight: factor of the KL term in `add_loss`; beta / (training examples)
            makes a plain Keras `fit` minimise Eq. 5.
        seed: integer for draws outside a `noise.scope`.

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
        kl_weight: float = 1.0,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
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
        self.prune_threshold = prune_threshold
        self.kl_weight = kl_weight
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.supports_masking = True

    def build(self, input_shape: tuple) -> None:
        # float32 and no autocast whatever the policy: log-space values need the mantissa.
        def weight(name, value):
            return self.add_weight(
                name=name,
                shape=(input_shape[-1],),
                initializer=keras.initializers.Constant(value),
                dtype="float32",
                autocast=False,
            )

        self.a_raw = weight("gate_a_raw", self.initial_a_raw)
        self.b_raw = weight("gate_b_raw", self.initial_b_raw)

    def concentrations(self) -> tuple[tf.Tensor, tf.Tensor]:
        """(a, b) of the posterior, float32 [features], positive."""
        a_raw, b_raw = tf.convert_to_tensor(self.a_raw), tf.convert_to_tensor(self.b_raw)
        return kumaraswamy.concentrations(a_raw, b_raw)

    def kl(self) -> tf.Tensor:
        """KL divergence from the posterior to the prior, summed over features, in nats."""
        return tf.reduce_sum(kumaraswamy.kl_to_beta(*self.concentrations(), self.prior))

    def probability(self) -> tf.Tensor:
        """E[pi], float32 [features], in (0, 1)."""
        return kumaraswamy.mean(*self.concentrations())

    def mean_mask(self) -> tf.Tensor:
        """The mask of inference: E[pi], and exactly 0 where the feature is pruned."""
        probability = self.probability()
        return tf.where(probability > self.prune_threshold, probability, 0.0)

    def sample_mask(self, batch_size: int | tf.Tensor) -> tf.Tensor:
        """Draws masks (Eq. 7): float32 [batch_size, features], in [0, 1]."""
        features = self.a_raw.shape[0]
        seed = noise.layer_seed(self.name, self.seed_generator)
        smallest = kumaraswamy.UNIFORM_MIN
        v = tf.random.stateless_uniform([features], noise.fold(seed, 0), smallest, 1.0)
        logit_pi = kumaraswamy.sample_logit(*self.concentrations(), v)
        u_seed = noise.fold(seed, 1)

        def masks(examples):
            u = tf.random.stateless_uniform([examples, features], u_seed, smallest, 1.0)
            return tf.sigmoid((logit_pi + tf.math.log(u) - tf.math.log1p(-u)) / self.temperature)

        return noise.per_example(masks, batch_size)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        self.add_loss(self.kl_weight * self.kl())
        if not training:
            return inputs * tf.cast(self.mean_mask(), inputs.dtype)
        shape = _batch_shape(inputs)
        mask = tf.cast(self.sample_mask(shape[0]), inputs.dtype)
        return inputs * tf.reshape(mask, [shape[0]] + [1] * (len(shape) - 2) + [shape[-1]])

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return input_shape

    def get_config(self) -> dict:
        return super().get_config() | {
            "initial_a_raw": self.initial_a_raw,
            "initial_b_raw": self.initial_b_raw,
            "temperature": self.temperature,
            "prior": self.prior,
            "prune_threshold": self.prune_threshold,
            "kl_weight": self.kl_weight,
            "seed": self.seed,
        }


@keras.saving.register_keras_serializable("anpvs_tf")
class PairedDropout(keras.layers.Layer):
    """Dropout whose mask is shared by the copies of an example in a `noise.scope`.

    Keras's own dropout draws the clean and the adversarial copy of an example
    different masks, which would count as vulnerability what is only noise.

    Args:
        rate: share of the values that is dropped, in [0, 1).
        seed: integer for draws outside a `noise.scope`.

    Raises:
        ValueError: for a rate out of range.
    """

    def __init__(self, rate: float, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"rate must lie in [0, 1); received {rate}")
        self.rate = rate
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.supports_masking = True

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        if not training or self.rate == 0:
            return inputs
        seed = noise.layer_seed(self.name, self.seed_generator)
        batch_size, *shape = _batch_shape(inputs)
        keep = noise.per_example(
            lambda n: tf.random.stateless_uniform([n, *shape], seed) >= self.rate, batch_size
        )
        scale = tf.constant(1 / (1 - self.rate), inputs.dtype)
        return tf.where(keep, inputs * scale, tf.zeros([], inputs.dtype))

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return input_shape

    def get_config(self) -> dict:
        return super().get_config() | {"rate": self.rate, "seed": self.seed}


def gates_of(network: keras.Model) -> list[BetaBernoulliGate]:
    """The gates of a network, in the order of its layers."""
    return [layer for layer in network.layers if isinstance(layer, BetaBernoulliGate)]
