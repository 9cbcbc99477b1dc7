"""Bayesian layers: the KL, what a draw is, who shares it, and what inference makes of it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import special, stats

from anpvs_tf.common import randomness
from anpvs_tf.methods import batch_statistics
from anpvs_tf.networks import bayesian
from anpvs_tf.networks.architectures import lenet5
from anpvs_tf.networks.bayesian import BayesianBatchNormalization, BayesianConv2D, BayesianDense
from anpvs_tf.pruning import compact
from anpvs_tf.pruning.frozen import FrozenNetwork

CONVOLUTIONS = [
    {"strides": 2, "padding": "same"},
    {"dilation_rate": 2, "padding": "valid"},
    {"groups": 2, "padding": "same", "use_bias": False},
]


def small_network(dtype="float32"):
    """A convolution, a batch normalisation and two dense layers."""
    make = {"dtype": dtype}
    images = keras.Input((6, 6, 2))
    x = keras.layers.Conv2D(4, 3, padding="same", name="conv", **make)(images)
    x = keras.layers.BatchNormalization(name="norm", **make)(x)
    x = latent = keras.layers.ReLU(name="relu", **make)(x)
    x = keras.layers.Flatten(name="flatten", **make)(x)
    x = keras.layers.Dense(5, activation="relu", name="dense", **make)(x)
    logits = keras.layers.Dense(3, name="logits", dtype="float32")(x)
    return keras.Model(images, {"logits": logits, "conv": latent})


def randomised(network, seed=0):
    """The same network with weights that no initialiser makes."""
    draw = np.random.default_rng(seed)
    for variable in network.weights:
        if not variable.dtype.startswith(("int", "uint")):
            values = draw.normal(0.1, 0.3, variable.shape)
            variable.assign(np.abs(values) + 0.1 if "variance" in variable.name else values)
    return network


def images_of(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def in_scope(layer, inputs, seed=1, **scope):
    with randomness.scope(randomness.seed_of(seed), **scope):
        return layer(inputs, training=True).numpy()


# ---- The KL divergence ----


def test_kl_is_that_of_normals_summed_over_all_layers():
    network = randomised(bayesian.convert(small_network(), 0.7, -2.0))
    expected, count = 0.0, 0
    for layer in network.layers:
        held = {variable.name: variable.numpy() for variable in layer.weights}
        for name in held:
            if f"{name}_rho" in held:
                sigma = np.logaddexp(0.0, held[f"{name}_rho"])
                posterior = tfp.distributions.Normal(held[name], sigma.astype("float32"))
                prior = tfp.distributions.Normal(0.0, 0.7)
                expected += np.sum(tfp.distributions.kl_divergence(posterior, prior))
                count += held[name].size
    # Kernel and bias of the convolution and both dense layers, scale and offset of the norm.
    assert count == (72 + 4) + (4 + 4) + (720 + 5) + (15 + 3)
    total = sum(float(layer.kl()) for layer in bayesian.layers_of(network))
    assert total == pytest.approx(expected, rel=1e-5)


def test_kl_counts_every_weight_once():
    # Where all means are 0 and all sigma = 1/2 with prior 1: log 2 + 1/8 - 1/2 a weight.
    network = bayesian.convert(lenet5((16, 16, 1), 10), 1.0, float(np.log(np.expm1(0.5))))
    for layer in bayesian.layers_of(network):
        for mean in layer.means().values():
            mean.assign(tf.zeros_like(mean))
    weights = (25 + 1) * 20 + (500 + 1) * 50 + (50 + 1) * 500 + (500 + 1) * 10
    total = sum(float(layer.kl()) for layer in bayesian.layers_of(network))
    assert total == pytest.approx(weights * (np.log(2) - 3 / 8), rel=1e-5)


def test_kl_and_its_gradient_are_finite_and_right_at_extremes():
    rho = tf.constant([-1e4, -100.0, -20.1, -19.9, 0.0, 50.0, 1e4, 1e8])
    mean = tf.constant([0.0, 3.0, -1e4, 1e-30, 1.0, 2.0, 0.0, 1e8])
    with tf.GradientTape() as tape:
        tape.watch([mean, rho])
        kl = bayesian.kl_to_prior(mean, rho, 0.1)
    by_mean, by_rho = tape.gradient(kl, [mean, rho])
    r, m = rho.numpy().astype(np.float64), mean.numpy().astype(np.float64)
    sigma = np.logaddexp(0.0, r)
    log_sigma = np.where(r < -700, r, np.log(np.maximum(sigma, 1e-320)))
    expected = np.log(0.1) - log_sigma + (sigma**2 + m**2) / 0.02 - 0.5
    np.testing.assert_allclose(kl, expected, rtol=1e-5)
    np.testing.assert_allclose(by_mean, m / 0.01, rtol=1e-5)
    ratio = np.where(r < -30, 1.0, special.expit(r) / np.maximum(sigma, 1e-320))
    np.testing.assert_allclose(by_rho, sigma * special.expit(r) / 0.01 - ratio, rtol=1e-4)


# ---- What a draw is ----


@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_convolution_has_the_mean_and_variance_of_its_posterior(options):
    layer = BayesianConv2D(4, 3, name="layer", **options)
    layer.build((None, 7, 8, 2))
    randomised(layer)
    x = images_of(1, 7, 8, 2)
    _check_moments(layer, x, keras.layers.Conv2D(4, 3, **options))


def test_dense_has_the_mean_and_variance_of_its_posterior():
    layer = BayesianDense(4, name="layer")
    layer.build((None, 3, 5))
    _check_moments(randomised(layer), images_of(1, 3, 5), keras.layers.Dense(4))


def _check_moments(layer, x, plain, examples=16, seeds=400):
    """Mean of sum_j x_j w_j + b: that of the means; variance: sum_j x_j^2 sigma_j^2 + sigma_b^2."""
    plain.build(x.shape)
    scales = [variable for variable in layer.weights if bayesian.is_scale(variable)]
    plain.set_weights([np.logaddexp(0.0, rho.numpy()) ** 2 for rho in scales])
    variance, mean = plain(x**2).numpy()[0], layer(x).numpy()[0]

    @tf.function
    def draws(seed):
        with randomness.scope(seed):
            return layer(tf.repeat(x, examples, axis=0), training=True)

    found = np.stack([draws(randomness.seed_of(i)).numpy() for i in range(seeds)])
    # The examples of a batch share a perturbation: only the seeds are independent.
    for values, expected in (
        (found.mean(axis=1), mean),
        (np.square(found - mean).mean(axis=1), variance),
    ):
        error = values.std(axis=0) / np.sqrt(seeds)
        assert np.max(np.abs(values.mean(axis=0) - expected) / error) < 5.5
    assert np.max(error / variance) < 0.1  # or the test could not fail


def test_every_example_has_one_kernel_drawn_from_the_posterior():
    layer = BayesianDense(60, name="layer", use_bias=False)
    layer.build((None, 50))
    randomised(layer)
    # Row j of example i's kernel is what the unit vector j gives at place i.
    rows = [
        in_scope(layer, np.repeat(unit[np.newaxis], 3, axis=0)) for unit in np.eye(50, dtype="f4")
    ]
    kernels = np.stack(rows, axis=1)
    standard = (kernels - layer.kernel.numpy()) / layer.stddev("kernel").numpy()
    for one in standard:
        assert stats.kstest(one.ravel(), "norm").pvalue > 1e-3
    # The examples share the sizes; each flips signs by input and by output feature.
    np.testing.assert_allclose(np.abs(standard[0]), np.abs(standard[1]), atol=1e-4)
    flipped = standard[0] * standard[1] > 0
    for axis in (0, 1):
        assert 0.2 < np.mean(flipped != np.take(flipped, [0], axis=axis)) < 0.8


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (BayesianConv2D(3, 3, padding="same", name="layer"), (4, 5, 5, 2)),
        (BayesianDense(3, name="layer"), (4, 6)),
    ],
)
def test_images_that_share_a_draw_go_through_the_same_weights(layer, shape):
    # Affine with one kernel and one bias: noise on the activations would not be.
    a, b = images_of(*shape, seed=1), images_of(*shape, seed=2)
    layer.build(shape)
    randomised(layer)
    sums = in_scope(layer, a) + in_scope(layer, b)
    expected = in_scope(layer, a + b) + in_scope(layer, np.zeros_like(a))
    np.testing.assert_allclose(sums, expected, atol=1e-4)
    both = in_scope(layer, np.concatenate([a, b]), copies=2)
    np.testing.assert_allclose(both[:4], in_scope(layer, a), atol=1e-5)
    np.testing.assert_allclose(both[4:], in_scope(layer, b), atol=1e-5)


def test_batch_normalisation_draws_scale_and_offset_for_each_example():
    layer, plain = BayesianBatchNormalization(name="layer"), keras.layers.BatchNormalization()
    x = images_of(2000, 3, 2)
    layer.build(x.shape), plain.build(x.shape)
    randomised(layer)
    for name in ("gamma", "beta", "moving_mean", "moving_variance"):
        getattr(plain, name).assign(getattr(layer, name))
    outputs = in_scope(layer, x)
    means = plain(x, training=True).numpy()
    normalised = (means - plain.beta.numpy()) / plain.gamma.numpy()
    # Two places of an example tell its scale and its offset.
    scale = (outputs[:, 0] - outputs[:, 1]) / (normalised[:, 0] - normalised[:, 1])
    offset = outputs[:, 0] - scale * normalised[:, 0]
    np.testing.assert_allclose(outputs[:, 2], scale * normalised[:, 2] + offset, atol=0.05)
    for name, found in (("gamma", scale), ("beta", offset)):
        mean, stddev = getattr(layer, name).numpy(), layer.stddev(name).numpy()
        assert stats.kstest(((found - mean) / stddev).ravel(), "norm").pvalue > 1e-3
    for name in ("moving_mean", "moving_variance"):
        np.testing.assert_allclose(getattr(layer, name), getattr(plain, name), rtol=1e-5)
    np.testing.assert_allclose(layer(x[:9]), plain(x[:9]), rtol=1e-5)


# ---- Who shares it ----


def test_noise_belongs_to_the_seed_the_layer_and_the_place_in_the_global_batch():
    network = randomised(bayesian.convert(small_network()))
    x = np.repeat(images_of(1, 6, 6, 2), 6, axis=0)

    def logits(inputs, seed=1, **scope):
        with randomness.scope(randomness.seed_of(seed), **scope):
            # Without the norm's batch statistics, which other examples move.
            network.get_layer("norm").trainable = False
            return network(inputs, training=True)["logits"].numpy()

    whole = logits(x)
    assert len(np.unique(whole[:, 0])) == 6
    np.testing.assert_array_equal(whole, logits(x))
    assert not np.any(whole == logits(x, seed=2))
    pairs = logits(np.concatenate([x, x]), copies=2)
    np.testing.assert_allclose(pairs[:6], whole, atol=1e-5)
    np.testing.assert_allclose(pairs[6:], whole, atol=1e-5)
    parts = [logits(x[:3], replica=i, replicas=2) for i in range(2)]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)
    # Layers of one shape draw noise of their own.
    first, second = (BayesianDense(2, name=name, kernel_initializer="ones") for name in "ab")
    assert not np.any(in_scope(first, images_of(4, 2)) == in_scope(second, images_of(4, 2)))
    # Outside a scope: Keras's convention, a seed that advances.
    assert not np.any(first(x[:, 0, 0], training=True) == first(x[:, 0, 0], training=True))


# ---- Inference, precision, files ----


def test_conversion_keeps_the_network_and_makes_all_weights_variational():
    plain = randomised(small_network())
    network = bayesian.convert(plain, 0.1, -5.0)
    x = images_of(4, 6, 6, 2)
    for name, expected in plain(x).items():
        np.testing.assert_array_equal(network(x)[name], expected)
    trained = network.trainable_variables
    scales = [variable for variable in trained if bayesian.is_scale(variable)]
    assert len(scales) == len(trained) / 2 == len(plain.trainable_variables)
    np.testing.assert_allclose(scales[0], -5.0)
    noisy = in_scope(lambda *a, **k: network(*a, **k)["logits"], x)
    assert np.all(np.abs(noisy - plain(x, training=True)["logits"]) > 1e-6)


def test_gated_networks_can_be_converted():
    plain = lenet5((16, 16, 1), 10, gate="beta_bernoulli")
    network = bayesian.convert(plain)
    x = images_of(2, 16, 16, 1)
    np.testing.assert_allclose(network(x)["logits"], plain(x)["logits"], atol=1e-6)
    assert len(bayesian.layers_of(network)) == 4


def test_freezing_takes_the_posterior_means():
    network = randomised(bayesian.convert(small_network()))
    x = images_of(5, 6, 6, 2)
    expected = network(x, training=False)["logits"]
    np.testing.assert_allclose(FrozenNetwork(network)(x), expected, atol=1e-5)
    model = compact.freeze(network)
    np.testing.assert_allclose(model(x), expected, atol=1e-5)
    kinds = {type(layer) for layer in model.layers if layer.weights}
    assert kinds == {keras.layers.Conv2D, keras.layers.Dense}
    assert model.count_params() == compact.freeze(small_network()).count_params()


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_keeps_scales_and_kl_in_float32(dtype):
    network = randomised(bayesian.convert(small_network(dtype)))
    with randomness.scope(randomness.seed_of(1)), tf.GradientTape() as tape:
        outputs = network(images_of(8, 6, 6, 2), training=True)
        kl = tf.add_n([layer.kl() for layer in bayesian.layers_of(network)])
        loss = tf.reduce_mean(outputs["logits"]) + kl
    assert outputs["conv"].dtype == dtype.removeprefix("mixed_")
    assert kl.dtype == "float32"
    for variable in network.trainable_variables:
        assert variable.dtype == "float32"
    for gradient in tape.gradient(loss, network.trainable_variables):
        tf.debugging.assert_all_finite(gradient, "gradient")
        assert np.any(gradient != 0)
    reference = bayesian.convert(small_network())
    reference.set_weights(network.get_weights())
    exact = sum(float(layer.kl()) for layer in bayesian.layers_of(reference))
    assert float(kl) == pytest.approx(exact, rel=1e-6)


def test_saves_and_loads(tmp_path):
    network = randomised(bayesian.convert(small_network(), 0.3, -4.0))
    network.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x = images_of(4, 6, 6, 2)

    def logits(one):
        return in_scope(lambda *a, **k: one(*a, **k)["logits"], x)

    np.testing.assert_array_equal(logits(loaded), logits(network))
    held = bayesian.layers_of(loaded)[0].get_config()
    assert held["prior_stddev"] == 0.3 and held["initial_rho"] == -4.0
    fresh = bayesian.convert(small_network(), 0.3)
    network.save_weights(tmp_path / "w.weights.h5")
    fresh.load_weights(tmp_path / "w.weights.h5")
    np.testing.assert_array_equal(logits(fresh), logits(network))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"prior_stddev.*0\.0"):
        BayesianDense(3, prior_stddev=0.0)
    with pytest.raises(ValueError, match="channels_first"):
        BayesianConv2D(3, 3, data_format="channels_first")
    with pytest.raises(ValueError, match="axis"):
        BayesianBatchNormalization(axis=1).build((None, 4, 4, 3))


def test_what_replicas_agree_on_is_the_statistics_and_not_the_seed():
    network = bayesian.convert(small_network(), 1.0, -3.0)
    norm = network.get_layer("norm")
    found = batch_statistics.moving(network)
    assert [v.path for v in found] == [norm.moving_mean.path, norm.moving_variance.path]
