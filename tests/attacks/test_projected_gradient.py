"""PGD against problems whose answer is known."""

import numpy as np
import pytest
import tensorflow as tf

from anpvs_tf.attacks import pgd, threat_model
from anpvs_tf.common import randomness

SEED = randomness.seed_of(0)
WEIGHTS = tf.constant(np.random.default_rng(0).normal(size=(12, 2)).astype(np.float32))


def linear(images):
    return tf.reshape(images, [-1, 12]) @ WEIGHTS


def images_of(examples=50, low=0.3, high=0.7):
    pixels = np.random.default_rng(1).uniform(low, high, (examples, 2, 2, 3))
    return tf.constant(pixels.astype(np.float32))


def test_linf_finds_the_optimum_of_a_linear_model():
    images, labels = images_of(), tf.zeros([50], tf.int64)
    attacked = pgd(linear, images, labels, SEED, epsilon=0.1, step_size=0.02, steps=20)
    direction = tf.sign(WEIGHTS[:, 1] - WEIGHTS[:, 0])
    expected = images + 0.1 * tf.reshape(direction, [1, 2, 2, 3])
    np.testing.assert_allclose(attacked, expected, atol=1e-6)


def test_l2_finds_the_optimum_of_a_linear_model():
    images, labels = images_of(), tf.ones([50], tf.int64)
    attacked = pgd(linear, images, labels, SEED, epsilon=0.1, step_size=0.05, steps=60, norm="l2")
    direction = WEIGHTS[:, 0] - WEIGHTS[:, 1]
    expected = images + 0.1 * tf.reshape(direction / tf.norm(direction), [1, 2, 2, 3])
    np.testing.assert_allclose(attacked, expected, atol=1e-4)


@pytest.mark.parametrize("norm", threat_model.NORMS)
@pytest.mark.parametrize("epsilon", [0.05, 0.6])
def test_stays_in_the_ball_and_in_the_pixel_range(norm, epsilon):
    images, labels = images_of(low=0.0, high=1.0), tf.zeros([50], tf.int64)
    attacked = pgd(
        linear, images, labels, SEED, epsilon=epsilon, step_size=epsilon, steps=5, norm=norm
    ).numpy()
    threat_model.assert_in_threat_model(images.numpy(), attacked, epsilon, norm)
    difference = (attacked - images.numpy()).reshape(50, -1)
    assert np.linalg.norm(difference, np.inf if norm == "linf" else 2, axis=1).max() > 0.5 * epsilon


def test_the_assertion_catches_an_attack_that_leaves():
    images = np.full([2, 2, 2, 3], 0.5, np.float32)
    with pytest.raises(AssertionError, match="left the linf ball"):
        threat_model.assert_in_threat_model(images, images + 0.11, 0.1, "linf")
    with pytest.raises(AssertionError, match="left the l2 ball"):
        threat_model.assert_in_threat_model(images, images + 0.11, 0.1, "l2")
    with pytest.raises(AssertionError, match="pixel range"):
        threat_model.assert_in_threat_model(images * 2, images * 2 + 0.05, 0.1, "linf")


@pytest.mark.parametrize(("norm", "power"), [("linf", 1.0), ("l2", 1 / 12)])
def test_random_start_is_uniform_in_the_ball(norm, power):
    draws = threat_model.random_in_ball(tf.constant([4000, 2, 2, 3]), SEED, 0.2, norm)
    if norm == "linf":
        fractions = np.abs(draws.numpy().reshape(-1)) / 0.2
    else:
        fractions = threat_model.length(draws, norm).numpy().ravel() / 0.2
    # P(fraction <= t) = t^(1/power); Kolmogorov-Smirnov at the 1e-4 level.
    order = np.sort(fractions)
    distance = np.abs(order ** (1 / power) - np.arange(1, len(order) + 1) / len(order)).max()
    assert distance < 2.23 / np.sqrt(len(order))


@pytest.mark.parametrize("norm", threat_model.NORMS)
def test_starts_on_the_sphere(norm):
    draws = threat_model.random_on_sphere(tf.constant([50, 2, 2, 3]), SEED, 0.2, norm)
    np.testing.assert_allclose(threat_model.length(draws, norm), 0.2, rtol=1e-5)
    correlations = np.corrcoef(draws.numpy().reshape(50, 12))
    assert np.abs(correlations[~np.eye(50, dtype=bool)]).mean() < 0.3


def test_the_start_is_a_function_of_the_seed():
    images, labels = images_of(), tf.zeros([50], tf.int64)
    settings = {"epsilon": 0.1, "step_size": 0.01, "steps": 1}
    first = pgd(linear, images, labels, SEED, **settings)
    np.testing.assert_array_equal(first, pgd(linear, images, labels, SEED, **settings))
    other = pgd(linear, images, labels, randomness.seed_of(1), **settings)
    assert np.abs(first - other).max() > 0.01


def test_without_random_start_one_step_is_fgsm():
    images, labels = images_of(), tf.zeros([50], tf.int64)
    attacked = pgd(
        linear, images, labels, SEED, epsilon=0.1, step_size=0.1, steps=1, random_start=False
    )
    expected = images + 0.1 * tf.reshape(tf.sign(WEIGHTS[:, 1] - WEIGHTS[:, 0]), [1, 2, 2, 3])
    np.testing.assert_allclose(attacked, expected, atol=1e-6)


def test_a_zero_gradient_moves_nothing():
    images, labels = images_of(), tf.zeros([50], tf.int64)

    def constant(x):
        return tf.zeros([50, 2]) + 0.0 * tf.reduce_sum(x)

    for norm in threat_model.NORMS:
        attacked = pgd(
            constant,
            images,
            labels,
            SEED,
            epsilon=0.1,
            step_size=0.1,
            steps=3,
            norm=norm,
            random_start=False,
        )
        np.testing.assert_array_equal(attacked, images)


def test_unknown_norm():
    with pytest.raises(ValueError, match="l1"):
        pgd(
            linear,
            images_of(),
            tf.zeros([50], tf.int64),
            SEED,
            epsilon=0.1,
            step_size=0.1,
            steps=1,
            norm="l1",
        )
