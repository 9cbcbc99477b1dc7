"""Layers that learn which features to keep: the common base, and the beta-Bernoulli gate."""

import keras
import numpy as np
import tensorflow as tf

from anpvs_tf import kumaraswamy, noise


class Gate(keras.layers.Layer):
    """Multiplies each feature by a mask whose distribution is learned.

    In training the mask is drawn for each example and feature; in inference it is
    `mean_mask()`, which is 0 where a feature is *pruned*. A gate with `trainable =
    False` is frozen, as Keras's BatchNormalization is: its mask is `mean_mask()` in
    training too, and it adds no KL divergence.

    The KL divergence to the prior is added with `add_loss`, times `kl_weight`;
    `RobustClassifier` takes it from `kl()` and weights it itself.

    Input and output: [batch, ..., features]; the gate acts on the last axis.

    A kind of gate defines `kl`, `mean`, `importance`, `sample_mask`, `close`, and
    makes its parameters with `parameter` in `build`.

    Args:
        prune_threshold: features whose `importance()` is at or below it are pruned.
        kl_weight: factor of the KL term in `add_loss`; beta / (training examples)
            makes a plain Keras `fit` minimise Eq. 5.
        seed: integer for draws outside a `noise.scope`.

    Attributes:
        features: size of the last axis, once built.
    """

    def __init__(
        self, prune_threshold: float, kl_weight: float = 1.0, seed: int | None = None, **kwargs
    ):
        super().__init__(**kwargs)
        self.prune_threshold = prune_threshold
        self.kl_weight = kl_weight
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.supports_masking = True

    def build(self, input_shape: tuple) -> None:
        self.features = input_shape[-1]

    def parameter(self, name: str, value: float) -> keras.Variable:
        """Makes a parameter [features]; `name` begins with "gate_", by which optimizers know it."""
        # float32 and no autocast whatever the policy: log-space values need the mantissa.
        return self.add_weight(
            name=name,
            shape=(self.features,),
            initializer=keras.initializers.Constant(value),
            dtype="float32",
            autocast=False,
        )

    def kl(self) -> tf.Tensor:
        """KL divergence from the posterior to the prior, summed over features, in nats."""
        raise NotImplementedError

    def mean(self) -> tf.Tensor:
        """Mean of the mask before pruning, float32 [features], not negative.

        A negative mask would only turn the sign of its readers' weights, and a maximum
        pooling lets through no factor that is negative: `FrozenNetwork` relies on that.
        """
        raise NotImplementedError

    def importance(self) -> tf.Tensor:
        """What decides pruning, float32 [features], not negative; it ranks a gate's features."""
        raise NotImplementedError

    def sample_mask(self, batch_size: int | tf.Tensor) -> tf.Tensor:
        """Draws masks: float32 [batch_size, features]."""
        raise NotImplementedError

    def close(self, which: np.ndarray) -> None:
        """Sets the parameters of the features `which` (bool [features]): pruned for good.

        Their masks are 0 in training too, within rounding, and no gradient opens them.
        """
        raise NotImplementedError

    def mean_mask(self) -> tf.Tensor:
        """The mask of inference: `mean()`, and exactly 0 where the feature is pruned."""
        return tf.where(self.importance() > self.prune_threshold, self.mean(), 0.0)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        if self.trainable:
            self.add_loss(self.kl_weight * self.kl())
        if not (training and self.trainable):
            return inputs * tf.cast(self.mean_mask(), inputs.dtype)
        batch_size, *places, features = keras.ops.shape(inputs)
        mask = tf.cast(self.sample_mask(batch_size), inputs.dtype)
        return inputs * tf.reshape(mask, [batch_size] + [1] * len(places) + [features])

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return input_shape

    def get_config(self) -> dict:
        return super().get_config() | {
            "prune_threshold": self.prune_threshold,
            "kl_weight": self.kl_weight,
            "seed": self.seed,
        }


def gates_of(network: keras.Model) -> list[Gate]:
    """The gates of a network, in the order of its layers."""
    return [layer for layer in network.layers if isinstance(layer, Gate)]


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
        """(a, b) of the posterior, float32 [features], positive."""
        a_raw, b_raw = tf.convert_to_tensor(self.a_raw), tf.convert_to_tensor(self.b_raw)
        return kumaraswamy.concentrations(a_raw, b_raw)

    def kl(self) -> tf.Tensor:
        return tf.reduce_sum(kumaraswamy.kl_to_beta(*self.concentrations(), self.prior))

    def mean(self) -> tf.Tensor:
        return kumaraswamy.mean(*self.concentrations())

    def importance(self) -> tf.Tensor:
        return self.mean()

    def sample_mask(self, batch_size: int | tf.Tensor) -> tf.Tensor:
        seed = noise.layer_seed(self.name, self.seed_generator)
        smallest = kumaraswamy.UNIFORM_MIN
        v = tf.random.stateless_uniform([self.features], noise.fold(seed, 0), smallest, 1.0)
        logit_pi = kumaraswamy.sample_logit(*self.concentrations(), v)
        u_seed = noise.fold(seed, 1)

        def masks(examples):
            u = tf.random.stateless_uniform([examples, self.features], u_seed, smallest, 1.0)
            return tf.sigmoid((logit_pi + tf.math.log(u) - tf.math.log1p(-u)) / self.temperature)

        return noise.per_example(masks, batch_size)

    def close(self, which: np.ndarray) -> None:
        # The prior itself, Beta(prior, 1): E[pi] is far below the threshold, and the KL at rest.
        self.a_raw.assign(np.where(which, np.log(np.expm1(self.prior)), self.a_raw))
        self.b_raw.assign(np.where(which, np.log(np.expm1(1.0)), self.b_raw))

    def get_config(self) -> dict:
        return super().get_config() | {
            "initial_a_raw": self.initial_a_raw,
            "initial_b_raw": self.initial_b_raw,
            "temperature": self.temperature,
            "prior": self.prior,
        }
