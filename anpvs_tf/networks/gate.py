"""Layers that learn which features to keep: the common base, and the beta-Bernoulli gate."""

import contextlib
import contextvars
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

_frozen: contextvars.ContextVar[tf.Tensor | None] = contextvars.ContextVar("frozen", default=None)


@contextlib.contextmanager
def frozen_where(frozen: tf.Tensor | None) -> Iterator[None]:
    """Lets gates called inside act in training by their mean, without a gradient, if `frozen`.

    Args:
        frozen: bool scalar, decided in the graph; None changes nothing.
    """
    token = _frozen.set(frozen)
    try:
        yield
    finally:
        _frozen.reset(token)


class Gate(keras.layers.Layer):
    """Multiplies each feature by a mask whose distribution is learned.

    In training the mask is drawn for each example and feature; in inference it is
    `mean_mask()`, which is 0 where a feature is *pruned*. A gate with `trainable =
    False` is frozen, as Keras's BatchNormalization is: its mask is `mean_mask()` in
    training too, and it adds no KL divergence.

    The KL divergence to the prior is added with `add_loss`, times `kl_weight`;
    `RobustClassifier` takes it from `kl()` and weights it itself.

    Input and output: [batch, ..., features]; the gate acts on the last axis.

    A kind of gate defines `feature_kl`, `mean`, `importance`, `sample_mask`, `close`,
    `open_all`, and makes its parameters with `parameter` in `build`.

    Args:
        prune_threshold: features whose `importance()` is at or below it are pruned.
        kl_weight: factor of the KL term in `add_loss`; beta / (training examples)
            makes a plain Keras `fit` minimise Eq. 5.
        seed: integer for draws outside a `randomness.scope`.
        min_active: the number of features, those of the largest importance, that are never pruned
            and add no KL divergence; of equal ones those that come first. Not negative; of a
            gate with fewer features it keeps all.

    Attributes:
        features: size of the last axis, once built.
    """

    def __init__(
        self,
        prune_threshold: float,
        kl_weight: float = 1.0,
        seed: int | None = None,
        min_active: int = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.prune_threshold = prune_threshold
        self.kl_weight = kl_weight
        self.seed = seed
        self.min_active = min_active
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

    def feature_kl(self) -> tf.Tensor:
        """Computes each feature's KL divergence from posterior to prior, in nats, [features]."""
        raise NotImplementedError

    def kl(self) -> tf.Tensor:
        """Sums the KL divergence, in nats, over the features that `min_active` does not keep."""
        values = self.feature_kl()
        if self.min_active:
            values = tf.where(self.kept(), 0.0, values)
        return tf.reduce_sum(values)

    def mean(self) -> tf.Tensor:
        """Computes the mean of the mask before pruning, float32 [features], not negative.

        A negative mask would only turn the sign of its readers' weights, and a maximum
        pooling lets through no factor that is negative: `FrozenNetwork` relies on that.
        """
        raise NotImplementedError

    def importance(self) -> tf.Tensor:
        """Returns the value that decides pruning and ranks features, float32 [features], >= 0."""
        raise NotImplementedError

    def sample_mask(self, batch_size: int | tf.Tensor) -> tf.Tensor:
        """Draws masks: float32 [batch_size, features]."""
        raise NotImplementedError

    def close(self, which: np.ndarray) -> None:
        """Sets the parameters of the features `which` (bool [features]): pruned for good.

        Their masks are 0 in training too, within rounding, and no gradient opens them.
        """
        raise NotImplementedError

    def open_all(self) -> None:
        """Sets the parameters so that every feature passes unchanged, within rounding."""
        raise NotImplementedError

    def mean_mask(self) -> tf.Tensor:
        """Returns the mask of inference: `mean()`, and exactly 0 where the feature is pruned."""
        return tf.where(self.is_open(), self.mean(), 0.0)

    def kept(self) -> tf.Tensor:
        """Says which features `min_active` keeps, bool [features]."""
        count = min(self.min_active, self.features)
        if not count:
            return tf.zeros([self.features], bool)
        # Of equal values, top_k takes those of the lower index.
        best = tf.math.top_k(self.importance(), count).indices
        return tf.reduce_any(tf.one_hot(best, self.features, True, False, dtype=bool), axis=0)

    def is_open(self) -> tf.Tensor:
        """Says which features are not pruned, bool [features]."""
        above = self.importance() > self.prune_threshold
        return above | self.kept() if self.min_active else above

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        if self.trainable:
            # A gate that several layers share is called by each, and counts once.
            calls = max(1, len(self._inbound_nodes))
            self.add_loss(self.kl_weight / calls * self.kl())
        if not (training and self.trainable):
            return inputs * tf.cast(self.mean_mask(), inputs.dtype)
        batch_size, *places, features = keras.ops.shape(inputs)
        mask = self.sample_mask(batch_size)
        if (frozen := _frozen.get()) is not None:
            mask = tf.where(frozen, tf.stop_gradient(self.mean_mask()), mask)
        mask = tf.cast(mask, inputs.dtype)
        return inputs * tf.reshape(mask, [batch_size] + [1] * len(places) + [features])

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return input_shape

    def get_config(self) -> dict:
        return super().get_config() | {
            "prune_threshold": self.prune_threshold,
            "kl_weight": self.kl_weight,
            "seed": self.seed,
            "min_active": self.min_active,
        }


def gates_of(network: keras.Model) -> list[Gate]:
    """Returns the gates of a network, in the order of its layers."""
    return [layer for layer in network.layers if isinstance(layer, Gate)]
