"""The information-bottleneck gate: its KL, the statistics of its noise, pruning, extremes."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import integrate, optimize, stats

from anpvs_tf.common import randomness
from anpvs_tf.networks.information_bottleneck import InformationBottleneckGate


def built(mu, log_variance, **kwargs):
    gate = InformationBottleneckGate(name="gate", **kwargs)
    gate.build((None, len(mu)))
    gate.raw_mu.assign(mu)
    gate.raw_log_variance.assign(log_variance)
    return gate


@pytest.mark.parametrize(("mu", "sigma"), [(1.0, 0.0111), (0.7, 0.5), (0.05, 1.3), (-0.8, 0.4)])
def test_kl_is_the_divergence_from_the_best_prior(mu, sigma):
    # The paper's prior is N(0, s^2) with the s that the posterior likes best. For a feature
    # of size 1: integrate the divergence from N(mu, sigma^2), and look for that s.
    z = np.linspace(mu - 12 * sigma, mu + 12 * sigma, 4001)
    posterior = stats.norm(mu, sigma)

    def divergence(s):
        ratio = posterior.logpdf(z) - stats.norm.logpdf(z, 0, s)
        return integrate.simpson(posterior.pdf(z) * ratio, x=z)

    best = optimize.minimize_scalar(divergence, bounds=(0.1, 10), method="bounded").fun
    gate = built([mu], [2 * np.log(sigma)])
    assert float(gate.kl()) == pytest.approx(best, rel=1e-4, abs=1e-5)


def test_kl_sums_over_features():
    # Signal-to-noise ratios 3, 1 and 0: half of log 4, log 2 and log 1.
    gate = built([3.0, 0.5, 0.0], np.log([3.0, 0.25, 7.0]))
    assert float(gate.kl()) == pytest.approx(1.5 * np.log(2), rel=1e-5)


def test_statistics_of_the_noise():
    mu, sigma = np.array([1.0, 0.3, -0.5, 0.1]), np.array([0.011, 0.8, 0.5, 2.0])
    gate = built(mu, 2 * np.log(sigma), prune_threshold=0.0)
    n = 50_000
    with randomness.scope(randomness.seed_of(4)):
        outputs = gate(tf.fill([n, 4], 2.0), training=True).numpy()
    # Five standard errors of a mean, a standard deviation and a correlation.
    np.testing.assert_array_less(np.abs(outputs.mean(0) - 2 * abs(mu)), 5 * 2 * sigma / n**0.5)
    np.testing.assert_allclose(outputs.std(0), 2 * sigma, rtol=5 / (2 * n) ** 0.5)
    correlations = np.corrcoef(outputs.T)[np.triu_indices(4, 1)]
    assert np.abs(correlations).max() < 5 / n**0.5
    assert stats.kstest((outputs[:, 1] - 0.6) / 1.6, "norm").pvalue > 1e-3


def test_what_deployment_leaves_out_training_does_not_see_either():
    # Signal-to-noise ratios 4, 0.81, 1.21 and 0.25: the second and the last are pruned.
    gate = built([1.0, 0.9, -1.1, 0.5], 2 * np.log([0.5, 1.0, 1.0, 1.0]))
    with randomness.scope(randomness.seed_of(4)), tf.GradientTape() as tape:
        outputs = gate(tf.ones([100, 4]), training=True)
        loss = tf.reduce_sum(outputs**2)
    np.testing.assert_array_equal(outputs.numpy() == 0, [[False, True, False, True]] * 100)
    slopes = tape.gradient(loss, [gate.raw_mu, gate.raw_log_variance])
    np.testing.assert_array_equal(np.array(slopes) == 0, [[False, True, False, True]] * 2)


def test_begins_as_the_authors_gate_does():
    gate = InformationBottleneckGate()
    outputs = gate(tf.ones([2, 5]), training=False).numpy()
    np.testing.assert_array_equal(outputs, 1.0)
    # sigma^2 = e^-9, so the KL is half of log(1 + e^9).
    assert float(gate.kl()) == pytest.approx(5 * 4.5000617, rel=1e-6)


def test_prunes_at_the_threshold_and_never_makes_a_mask_negative():
    # Ratios 4, 1.02, 0.98, 4 and 0.01: none so near a threshold that rounding decides.
    mu, sigma = np.array([2.0, 1.01, 0.99, -1.0, 0.1]), np.array([1.0, 1.0, 1.0, 0.5, 1.0])
    outputs = built(mu, 2 * np.log(sigma))(tf.ones([1, 5]), training=False).numpy()
    np.testing.assert_allclose(outputs, [[2.0, 1.01, 0.0, 1.0, 0.0]], rtol=1e-6)
    outputs = built(mu, 2 * np.log(sigma), prune_threshold=0.5)(tf.ones([1, 5])).numpy()
    np.testing.assert_allclose(outputs, [[2.0, 1.01, 0.99, 1.0, 0.0]], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_extremes_give_finite_outputs_and_gradients_in_every_precision(dtype):
    mu = np.repeat([-100.0, -1e-9, 0.0, 1e-30, 1.0, 100.0], 5)
    gate = built(mu, np.tile([-1e3, -40.0, 0.0, 10.0, 1e3], 6), dtype=dtype)
    assert gate.raw_mu.dtype == gate.raw_log_variance.dtype == "float32"
    for seed in range(5):
        with randomness.scope(randomness.seed_of(seed)), tf.GradientTape() as tape:
            outputs = gate(tf.ones([32, 30]), training=True)
            loss = tf.reduce_sum(tf.cast(outputs, tf.float32)) + gate.kl()
        assert outputs.dtype == gate.compute_dtype
        tf.debugging.assert_all_finite(outputs, "outputs")
        for gradient in tape.gradient(loss, gate.trainable_variables):
            tf.debugging.assert_all_finite(gradient, "gradient")


def test_gradient_of_the_kl_by_hand():
    # d/d mu = mu / (mu^2 + sigma^2); d/d log sigma^2 = -1/2 mu^2 / (mu^2 + sigma^2).
    gate = built([2.0, -0.5], np.log([4.0, 0.75]))
    with tf.GradientTape() as tape:
        kl = gate.kl()
    by_mu, by_log_variance = tape.gradient(kl, [gate.raw_mu.value, gate.raw_log_variance.value])
    np.testing.assert_allclose(by_mu, [0.25, -0.5], rtol=1e-5)
    np.testing.assert_allclose(by_log_variance, [-0.25, -0.125], rtol=1e-5)


@pytest.mark.parametrize(
    ("argument", "value"), [("prune_threshold", -1.0), ("initial_log_variance", 11.0)]
)
def test_bad_arguments_are_named(argument, value):
    with pytest.raises(ValueError, match=f"{argument}.*{value}"):
        InformationBottleneckGate(**{argument: value})
