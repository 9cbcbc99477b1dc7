"""Layers whose weights have a Gaussian posterior (Blundell et al. 2015; Liu et al. 2019).

The variables that a layer inherits hold the posterior's means; beside each lies
`<name>_rho`, with the standard deviations softplus(rho). In inference a layer
computes with the means, as its parent does: code that handles the parent (freezing,
export, a warm start) handles the network of the posterior means.
"""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from anpvs_tf.common import randomness
from anpvs_tf.common.errors import UsageError
from anpvs_tf.networks.gate import Gate

# softplus(rho) is exp(rho) in float32 from here on down.
_RHO_EXPONENTIAL = -20.0


def kl_to_prior(mean: tf.Tensor, rho: tf.Tensor, prior_stddev: float) -> tf.Tensor:
    """Computes KL(N(mean, softplus(rho)^2) || N(0, prior_stddev^2)) in nats, elementwise.

    Args:
        mean, rho: float32 of one shape. Finite, with finite gradients, for any rho below 1e18.
    """
    # Where softplus underflows, its logarithm is rho.
    safe = tf.math.softplus(tf.maximum(rho, _RHO_EXPONENTIAL))
    log_stddev = tf.where(rho < _RHO_EXPONENTIAL, rho, tf.math.log(safe))
    squares = (tf.square(tf.math.softplus(rho)) + tf.square(mean)) / (2.0 * prior_stddev**2)
    return np.log(prior_stddev) - log_stddev + squares - 0.5


class BayesianLayer:
    """The part that all Bayesian layers add to their Keras parents.

    In training every example has weights of its own, a draw from the posterior that
    all its copies in a `randomness.scope` share: the clean and the adversarial image go
    through the same network, and only the attack tells their features apart. Kernels and
    biases are drawn by flipout (Wen et al. 2018): the batch shares one perturbation, whose
    signs each example flips for its own input and output features. That costs a second
    convolution or product, and spares the gradient the variance of one draw for the whole
    batch. (Local reparametrisation costs the same, but its noise belongs to no weights
    that two images could share.) Scales and offsets are drawn for each example.

    Args:
        prior_stddev: of the prior N(0, prior_stddev^2) of every weight, positive.
        initial_rho: initial value of each rho; -3 is a standard deviation of 0.0486.
        seed: integer for draws outside a `randomness.scope`.
        The others are the parent's.

    Raises:
        ValueError: for a prior_stddev out of range.
    """

    VARIATIONAL: tuple[str, ...] = ("kernel", "bias")

    def __init__(
        self,
        *args,
        prior_stddev: float = 1.0,
        initial_rho: float = -3.0,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        if not prior_stddev > 0:
            raise ValueError(f"prior_stddev must be positive; received {prior_stddev}")
        self.prior_stddev = prior_stddev
        self.initial_rho = initial_rho
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, input_shape: tuple) -> None:
        super().build(input_shape)
        for name, mean in self.means().items():
            # float32 and no autocast whatever the policy: the KL needs the mantissa.
            rho = self.add_weight(
                name=f"{name}_rho",
                shape=mean.shape,
                initializer=keras.initializers.Constant(self.initial_rho),
                dtype="float32",
                autocast=False,
            )
            setattr(self, f"{name}_rho", rho)

    def means(self) -> dict[str, keras.Variable]:
        """Returns the posterior's means, by name."""
        found = {name: getattr(self, name, None) for name in self.VARIATIONAL}
        return {name: mean for name, mean in found.items() if mean is not None}

    def stddev(self, name: str) -> tf.Tensor:
        """Returns the posterior's standard deviations of a weight, float32."""
        return tf.math.softplus(tf.convert_to_tensor(getattr(self, f"{name}_rho")))

    def kl(self) -> tf.Tensor:
        """Sums the KL divergence from the posterior to the prior over all weights, in nats."""
        terms = [
            kl_to_prior(_float32(mean), _float32(getattr(self, f"{name}_rho")), self.prior_stddev)
            for name, mean in self.means().items()
        ]
        return tf.add_n([tf.reduce_sum(term) for term in terms])

    def draw(self, seed: tf.Tensor) -> list[tuple[keras.Variable, tf.Tensor]]:
        """Draws all weights once: (the variable of the means, its values in this draw)."""
        return [
            (mean, _float32(mean) + self._deviation(name, seed))
            for name, mean in self.means().items()
        ]

    def _deviation(self, name: str, seed: tf.Tensor) -> tf.Tensor:
        """Draws a weight's deviation from its mean, float32."""
        stddev = self.stddev(name)
        return stddev * randomness.normal(stddev.shape, randomness.fold(seed, name))

    def _of_each_example(self, name: str, seed: tf.Tensor, inputs: tf.Tensor) -> tf.Tensor:
        """Draws a vector for every example, float32 [batch, 1, ..., features]."""
        stddev = self.stddev(name)
        seed = randomness.fold(seed, name)

        def draw(examples, first):
            return randomness.normal([examples, *stddev.shape], seed, first)

        deviation = stddev * randomness.per_example(draw, tf.shape(inputs)[0])
        return _beside(_float32(getattr(self, name)) + deviation, inputs)

    def _flipout(
        self, inputs: tf.Tensor, linear: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    ) -> tf.Tensor:
        """Computes linear(inputs, kernel) plus bias, activated, with each example's own weights.

        Example i has the kernel mean + deviation * (r_i s_i^T) and the bias mean +
        deviation * s_i, with signs r_i of its input features and s_i of its output features.
        """
        seed = randomness.layer_seed(self.name, self.seed_generator)
        dtype = inputs.dtype

        def signs(side, features):
            def draw(examples, first):
                shape, own = [examples, features], randomness.fold(seed, side)
                return randomness.integers(shape, own, 0, 2, first) * 2 - 1

            return tf.cast(
                _beside(randomness.per_example(draw, tf.shape(inputs)[0]), inputs), dtype
            )

        def affine(x, weights):
            y = linear(x, tf.cast(weights["kernel"], dtype))
            return tf.nn.bias_add(y, tf.cast(weights["bias"], dtype)) if self.use_bias else y

        means = self.means()
        deviations = {name: self._deviation(name, seed) for name in means}
        flipped = affine(inputs * signs("input", inputs.shape[-1]), deviations)
        outputs = affine(inputs, means)
        outputs += flipped * signs("output", outputs.shape[-1])
        return outputs if self.activation is None else self.activation(outputs)

    def get_config(self) -> dict:
        return super().get_config() | {
            "prior_stddev": self.prior_stddev,
            "initial_rho": self.initial_rho,
            "seed": self.seed,
        }

    # Keras's convolution and dense layer save their kernel and bias only.

    def save_own_variables(self, store: dict) -> None:
        keras.layers.Layer.save_own_variables(self, store)

    def load_own_variables(self, store: dict) -> None:
        keras.layers.Layer.load_own_variables(self, store)


@keras.saving.register_keras_serializable("anpvs_tf")
class BayesianConv2D(BayesianLayer, keras.layers.Conv2D):
    """`keras.layers.Conv2D` (channels last) with a Gaussian posterior; see `BayesianLayer`."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.data_format != "channels_last":
            raise ValueError(f"data_format must be channels_last; received {self.data_format!r}")

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        return self._flipout(inputs, self.convolution_op) if training else super().call(inputs)


@keras.saving.register_keras_serializable("anpvs_tf")
class BayesianDense(BayesianLayer, keras.layers.Dense):
    """`keras.layers.Dense` with a Gaussian posterior; see `BayesianLayer`."""

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        return self._flipout(inputs, keras.ops.matmul) if training else super().call(inputs)


@keras.saving.register_keras_serializable("anpvs_tf")
class BayesianBatchNormalization(BayesianLayer, keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` of the last axis with a Gaussian posterior.

    See `BayesianLayer`; variational are scale and offset. The statistics are the batch's.
    """

    VARIATIONAL = ("gamma", "beta")

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.renorm:
            raise ValueError("renorm is not supported")

    def build(self, input_shape: tuple) -> None:
        if self.axis not in (-1, len(input_shape) - 1):
            raise ValueError(f"axis must be the last one; received {self.axis}")
        super().build(input_shape)

    def call(
        self, inputs: tf.Tensor, training: bool = False, mask: tf.Tensor | None = None
    ) -> tf.Tensor:
        if not (training and self.trainable):
            return super().call(inputs, training=training, mask=mask)
        x = tf.cast(inputs, tf.float32)
        mean, variance = self._moments(x, mask)
        for moving, now in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + now * (1.0 - self.momentum))
        seed = randomness.layer_seed(self.name, self.seed_generator)
        scale, offset = (
            self._of_each_example(name, seed, x) if name in self.means() else None
            for name in self.VARIATIONAL
        )
        outputs = tf.nn.batch_normalization(x, mean, variance, offset, scale, self.epsilon)
        return tf.cast(outputs, self.compute_dtype)


_COUNTERPARTS = {
    keras.layers.Conv2D: BayesianConv2D,
    keras.layers.Dense: BayesianDense,
    keras.layers.BatchNormalization: BayesianBatchNormalization,
}
LAYERS = tuple(_COUNTERPARTS.values())


def convert(
    network: keras.Model, prior_stddev: float = 1.0, initial_rho: float = -3.0
) -> keras.Model:
    """Returns a copy of a functional network whose weights have Gaussian posteriors.

    Convolutions, dense layers and batch normalisations become Bayesian, the logits'
    too; other layers stay as they are. The posterior means are the network's weights.

    Args:
        prior_stddev, initial_rho: as in `BayesianLayer`.

    Raises:
        UsageError: a layer with weights to train that has no Bayesian counterpart, by name.
    """
    for layer in network.layers:
        deterministic = isinstance(layer, Gate) or not layer.trainable_weights
        if not deterministic and type(layer) not in _COUNTERPARTS:
            known = ", ".join(one.__name__ for one in _COUNTERPARTS)
            raise UsageError(
                f"layer {layer.name!r} of type {type(layer).__name__} has no Bayesian counterpart: "
                f"of the layers with weights, {known} have one; choose another method"
            )

    def counterpart(layer):
        settings = {"prior_stddev": prior_stddev, "initial_rho": initial_rho}
        kind = _COUNTERPARTS.get(type(layer))
        if kind is None:
            return type(layer).from_config(layer.get_config())
        return kind.from_config(layer.get_config() | settings)

    bayesian = keras.models.clone_model(network, clone_function=counterpart)
    for layer in network.layers:
        if not layer.weights:
            continue
        held = {variable.name: variable for variable in layer.weights}
        for variable in bayesian.get_layer(layer.name).weights:
            if variable.name in held:
                variable.assign(held[variable.name])
    return bayesian


def layers_of(network: keras.Model) -> list[BayesianLayer]:
    """Returns the Bayesian layers of a network, in order."""
    return [layer for layer in network.layers if isinstance(layer, BayesianLayer)]


def is_scale(variable) -> bool:
    """Says whether a variable is a rho (by name: replicas have no `path`)."""
    return "_rho" in variable.name


def draw(network: keras.Model, seed: tf.Tensor) -> list[tuple[keras.Variable, tf.Tensor]]:
    """Draws all weights of a network once from the posterior.

    Inside `keras.StatelessScope(draw(network, seed))` the network, and any code that reads its
    variables, computes in inference with these weights for all images; gradients flow.

    Args:
        seed: int32, shape [2].
    """
    return [
        pair
        for layer in layers_of(network)
        for pair in layer.draw(randomness.fold(seed, layer.name))
    ]


def _float32(variable: keras.Variable) -> tf.Tensor:
    return tf.cast(tf.convert_to_tensor(variable), tf.float32)


def _beside(values: tf.Tensor, inputs: tf.Tensor) -> tf.Tensor:
    """Reshapes [batch, features] to [batch, 1, ..., features], of the rank of `inputs`."""
    batch, features = tf.shape(values)[0], values.shape[-1]
    return tf.reshape(values, [batch] + [1] * (inputs.shape.rank - 2) + [features])
