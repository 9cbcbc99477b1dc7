"""The posterior against SciPy's numerics, TFP's distribution and METHOD's published numbers."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import integrate, special

from anpvs_tf.networks import kumaraswamy


def expected_probability(a, b):
    # pi^(a-1) is singular at 0; with t = pi^a the integral is smooth.
    value, _ = integrate.quad(lambda t: t ** (1 / a) * b * (1 - t) ** (b - 1), 0, 1)
    return value


def expected_kl(a, b, prior):
    # E_q[log q - log p] in u = 1 - (1 - t)^b, uniform under q.
    def integrand(u):
        log_one_minus_t = np.log1p(-u) / b
        log_t = np.log(-np.expm1(log_one_minus_t))
        log_pi = log_t / a
        log_q = np.log(a * b) + (a - 1) * log_pi + (b - 1) * log_one_minus_t
        return log_q - (np.log(prior) + (prior - 1) * log_pi)

    value, _ = integrate.quad(integrand, 0, 1, limit=400)
    return value


@pytest.mark.parametrize(("a", "b"), [(0.313, 1.0), (2.127, 1.0), (0.05, 3.0), (8.0, 0.4)])
def test_mean_and_kl_agree_with_quadrature(a, b):
    assert float(kumaraswamy.mean(tf.constant(a), tf.constant(b))) == pytest.approx(
        expected_probability(a, b), rel=1e-4
    )
    kl = kumaraswamy.kl_to_beta(tf.constant(a), tf.constant(b), 1e-4)
    assert float(kl) == pytest.approx(expected_kl(a, b, 1e-4), rel=1e-4)


@pytest.mark.parametrize(
    ("a_raw", "probability", "kl"), [(-1.0, 0.2385, 7.050), (2.0, 0.6802, 8.965)]
)
def test_published_initial_values(a_raw, probability, kl):
    a, b = kumaraswamy.concentrations(tf.constant(a_raw), tf.constant(0.5413))
    assert float(b) == pytest.approx(1.0, abs=1e-4)
    assert float(kumaraswamy.mean(a, b)) == pytest.approx(probability, abs=5e-5)
    assert float(kumaraswamy.kl_to_beta(a, b, 1e-4)) == pytest.approx(kl, abs=5e-4)


@pytest.mark.parametrize(("a", "b"), [(0.313, 1.0), (2.0, 5.0), (6.0, 0.3)])
def test_samples_follow_tfps_distribution(a, b):
    u = tf.random.stateless_uniform([4000], [1, 2], kumaraswamy.UNIFORM_MIN, 1.0)
    logits = kumaraswamy.sample_logit(tf.constant(a), tf.constant(b), u)
    pi = tf.sigmoid(tf.cast(logits, tf.float64))
    # The draw is the quantile of u, so TFP's distribution function gives u back.
    cdf = tfp.distributions.Kumaraswamy(np.float64(a), np.float64(b)).cdf(pi)
    np.testing.assert_allclose(cdf, u, atol=1e-4)


def test_concentrations_are_clipped_softplus():
    a, b = kumaraswamy.concentrations(tf.constant([-30.0, 0.0, 60.0]), tf.constant([-30.0, 0, 60]))
    lowest = np.log1p(np.exp(-10.0))
    np.testing.assert_allclose(a, [lowest, np.log(2), 60.0], rtol=1e-5)
    np.testing.assert_allclose(b, [lowest, np.log(2), 50.0], rtol=1e-5)


def test_everything_is_finite_at_every_extreme():
    raw_a = [-100.0, -10.0, -5.0, 0.0, 5.0, 20.0, 100.0]
    raw_b = [-100.0, -10.0, -5.0, 0.0, 5.0, 50.0, 100.0]
    draws = [kumaraswamy.UNIFORM_MIN, 1e-4, 0.5, 1 - 1e-4, 1 - 2.0**-24]
    grid = np.array(list(itertools.product(raw_a, raw_b, draws)), np.float32)
    a_raw, b_raw, u = (tf.constant(column) for column in grid.T)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([a_raw, b_raw])
        a, b = kumaraswamy.concentrations(a_raw, b_raw)
        values = {
            "logit": kumaraswamy.sample_logit(a, b, u),
            "mean": kumaraswamy.mean(a, b),
            "kl": kumaraswamy.kl_to_beta(a, b, 1e-4),
        }
    for name, value in values.items():
        tf.debugging.assert_all_finite(value, name)
        for gradient in tape.gradient(value, [a_raw, b_raw]):
            tf.debugging.assert_all_finite(gradient, f"gradient of {name}")
    assert np.all((values["mean"].numpy() >= 0) & (values["mean"].numpy() <= 1))


def test_logit_is_exact_where_the_probability_is_not():
    # pi = (1 - (1-u)^(1/b))^(1/a) in float64 with logarithms, for a that underflows in float32.
    a, b, u = 1e-4, 1.0, 0.3
    log_pi = np.log(u) / a
    assert np.exp(log_pi) == 0
    logit = kumaraswamy.sample_logit(tf.constant(a), tf.constant(b), tf.constant(u))
    assert float(logit) == pytest.approx(log_pi, rel=1e-5)


def test_gradient_of_the_sample_agrees_with_a_finite_difference():
    u = 0.37

    def logit64(a, b):
        pi = (1 - (1 - u) ** (1 / b)) ** (1 / a)
        return special.logit(pi)

    a, b, h = 0.7, 1.8, 1e-6
    ta, tb = tf.constant(a), tf.constant(b)
    with tf.GradientTape() as tape:
        tape.watch([ta, tb])
        value = kumaraswamy.sample_logit(ta, tb, tf.constant(u))
    gradients = tape.gradient(value, [ta, tb])
    np.testing.assert_allclose(
        gradients,
        [
            (logit64(a + h, b) - logit64(a - h, b)) / (2 * h),
            (logit64(a, b + h) - logit64(a, b - h)) / (2 * h),
        ],
        rtol=1e-4,
    )
