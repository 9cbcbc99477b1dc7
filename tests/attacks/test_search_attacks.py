"""PGD with other losses, FGSM, noise, APGD and Square on problems whose answer is known."""

import numpy as np
import pytest
import tensorflow as tf

from anpvs_tf.attacks import apgd, fab, fgsm, pgd, random_noise, square
from anpvs_tf.attacks.auto_pgd import checkpoints
from anpvs_tf.attacks.square_attack import pyramids, sides
from anpvs_tf.common import randomness

SEED = randomness.seed_of(0)
RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(48, 2)).astype(np.float32)
IMAGES = RNG.uniform(0.3, 0.7, (20, 4, 4, 3)).astype(np.float32)
ZEROS = tf.zeros([20], tf.int64)
DIRECTION = WEIGHTS[:, 1] - WEIGHTS[:, 0]
# Keeps class 0 ahead whatever an attack of epsilon 0.2 does.
OFFSET = (IMAGES.reshape(20, 48) @ DIRECTION).max() + 0.2 * np.abs(DIRECTION).sum() + 0.1
UP = np.sign(DIRECTION).reshape(4, 4, 3)


def linear(images):
    return tf.reshape(images, [-1, 48]) @ WEIGHTS + [OFFSET, 0.0]


def gain(adversarial, norm, epsilon):
    """How much of the largest possible rise of the margin an attack reached, [batch]."""
    rise = np.reshape(adversarial - IMAGES, [20, 48]) @ DIRECTION
    return rise / (epsilon * np.linalg.norm(DIRECTION, 1 if norm == "linf" else 2))


def test_checkpoints_are_the_papers():
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99, 100]
    assert checkpoints(1) == [1]
    assert checkpoints(10) == [3, 5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_apgd_finds_the_optimum_of_a_linear_model(norm, loss):
    found = apgd(linear, IMAGES, ZEROS, SEED, epsilon=0.2, norm=norm, loss=loss, steps=30)
    # Near the optimum, the cross-entropy of one step differs from the next in its last digits.
    np.testing.assert_allclose(gain(found, norm, 0.2), 1.0, atol=1e-3 if loss == "dlr" else 1e-2)


def test_apgd_returns_the_best_iterate_and_stops_halving_the_right_examples():
    """A ridge along which a step of 2 * epsilon jumps to and fro: only halving climbs it."""
    peak = tf.constant(RNG.uniform(-0.02, 0.02, (4, 4, 3)).astype(np.float32))

    def ridge(images):
        height = -tf.reduce_sum(tf.abs(images - IMAGES[:1] - peak), axis=[1, 2, 3])
        return tf.stack([tf.zeros_like(height), height], axis=1)

    images = np.repeat(IMAGES[:1], 3, axis=0)
    settings = {"epsilon": 0.1, "loss": "margin"}
    found = apgd(ridge, images, ZEROS[:3], SEED, steps=100, **settings)
    errors = np.abs(found - images - peak).mean(axis=(1, 2, 3))
    fixed = pgd(ridge, images, ZEROS[:3], SEED, steps=100, step_size=0.2, **settings)
    assert (np.abs(fixed - images - peak).mean(axis=(1, 2, 3)) > 0.03).all()
    assert (errors < 0.003).all()


def test_apgd_returns_an_iterate_that_fools_though_another_has_a_higher_loss():
    """On a line: from the middle it goes down, is fooled there, and sent up to a higher loss."""

    def line(images):
        at = tf.reduce_mean((images - 0.5) * UP, axis=[1, 2, 3])[:, None] / 0.1
        zero = tf.zeros_like(at)
        middle = tf.concat([1 + at, zero, zero], axis=1)
        below = tf.concat([-0.1 * at, zero + 0.5, zero - 5], axis=1)
        above = tf.concat([zero, zero - 0.01, zero - 0.01], axis=1)
        return tf.where(at < -0.5, below, tf.where(at > 0.2, above, middle))

    images = np.full([3, 4, 4, 3], 0.5, np.float32)
    down, up = line(images - 0.1 * UP), line(images + 0.1 * UP)
    ce = tf.nn.sparse_softmax_cross_entropy_with_logits
    assert (ce(ZEROS[:3], up) > ce(ZEROS[:3], down)).numpy().all()
    found = apgd(line, images, ZEROS[:3], SEED, epsilon=0.1, steps=10)
    np.testing.assert_allclose(found, images - 0.1 * UP, atol=1e-6)


def test_fgsm_is_one_step_from_the_image():
    found = fgsm(linear, IMAGES, ZEROS, SEED, epsilon=0.1, loss="margin")
    np.testing.assert_allclose(found, IMAGES + 0.1 * UP, atol=1e-6)


@pytest.mark.parametrize("loss", ["margin", "dlr"])
def test_pgd_with_another_loss(loss):
    found = pgd(linear, IMAGES, ZEROS, SEED, epsilon=0.1, step_size=0.05, steps=8, loss=loss)
    np.testing.assert_allclose(found, IMAGES + 0.1 * UP, atol=1e-6)


def test_pgd_latent_moves_the_features_that_the_cross_entropy_does_not_see():
    def network(images):
        pixels = tf.reshape(images, [-1, 48])
        return {"logits": pixels[:, :24] @ WEIGHTS[:24], "features": pixels[:, 24:]}

    settings = {"epsilon": 0.1, "step_size": 0.05, "steps": 8}
    found = pgd(network, IMAGES, ZEROS, SEED, loss="latent", gamma=1.0, **settings)
    moved = np.abs(np.reshape(found - IMAGES, [20, 48]))
    np.testing.assert_allclose(moved, 0.1, atol=1e-6)


def test_noise_keeps_the_worst_draw():
    few = random_noise(linear, IMAGES, ZEROS, SEED, epsilon=0.1, draws=1)
    many = random_noise(linear, IMAGES, ZEROS, SEED, epsilon=0.1, draws=200)
    assert (gain(many, "linf", 0.1) >= gain(few, "linf", 0.1)).all()
    assert gain(many, "linf", 0.1).mean() > gain(few, "linf", 0.1).mean() + 0.15


def test_square_sides_are_the_papers():
    # Shares 0.8, 0.4, 0.2, ... of 28 x 28 pixels, after 10, 50, 200, ... of 10,000 queries.
    side = sides(10_000, 28, 28, 0.8, True, "linf")
    assert [side[i] for i in (0, 10, 11, 50, 51, 200, 201, 9999)] == [25, 25, 18, 18, 13, 13, 9, 1]
    assert sides(1000, 28, 28, 0.8, True, "linf").tolist() == side[::10].tolist()
    assert sides(1000, 28, 28, 0.8, False, "linf").tolist() == side[:1000].tolist()
    odd = sides(10_000, 28, 28, 0.8, True, "l2")
    assert (odd % 2 == 1).all()
    assert odd.min() == 3


def test_the_l2_patch_is_a_pair_of_pyramids():
    # Side 5: above 2 x 5 around (1, 2), below 3 x 5 around (1, 2) of its own.
    heights = 1 + 1 / 4 + 1 / 9, 1 / 4 + 1 / 9, 1 / 9
    top, ring, edge = heights
    upper = np.array([[edge, ring, ring, ring, edge], [edge, ring, top, ring, edge]])
    lower = np.array([upper[0], upper[1], upper[0]])
    halves = [upper / np.linalg.norm(upper), -lower / np.linalg.norm(lower)]
    expected = np.concatenate(halves) / np.sqrt(2)
    for turned in (False, True):
        found = pyramids(tf.range(-1, 7), tf.range(-2, 6), 5, turned).numpy()
        inside = found[1:6, 2:7]
        np.testing.assert_allclose(inside.T if turned else inside, expected, rtol=1e-5)
        assert np.abs(found).sum() == pytest.approx(np.abs(inside).sum())


@pytest.mark.parametrize(("norm", "least"), [("linf", 0.97), ("l2", 0.5)])
def test_square_approaches_the_optimum_of_a_linear_model_without_gradients(
    norm, least, monkeypatch
):
    monkeypatch.setattr(tf, "GradientTape", None)
    found = square(linear, IMAGES, ZEROS, SEED, epsilon=0.2, norm=norm, queries=800)
    assert gain(found, norm, 0.2).min() > least


def test_square_does_not_waste_queries_on_what_is_in_place():
    """With one channel, half of the small squares would propose what is there already."""
    weights = RNG.normal(size=(36, 1)).astype(np.float32)

    def grey(images):
        rise = tf.reshape(images - 0.5, [-1, 36]) @ weights
        return tf.concat([0 * rise + 100, rise], axis=1)

    images = np.full([1, 6, 6, 1], 0.5, np.float32)
    gains = []
    for i in range(5):
        found = square(grey, images, ZEROS[:1], randomness.seed_of(i), epsilon=0.1, queries=80)
        gains.append(np.reshape(found - 0.5, 36) @ weights[:, 0] / (0.1 * np.abs(weights).sum()))
    assert np.mean(gains) > 0.8


def test_square_returns_the_first_image_that_fools():
    def near(images):
        return linear(images) - tf.constant([OFFSET, 0.0]) + tf.constant([3.0, 0.0])

    labels = tf.argmax(near(IMAGES), axis=1)
    settings = {"epsilon": 0.05, "rescale": False}
    few = square(near, IMAGES, labels, SEED, queries=5, **settings).numpy()
    more = square(near, IMAGES, labels, SEED, queries=19, **settings).numpy()
    broken = (tf.argmax(near(few), axis=1) != labels).numpy()
    assert 2 < broken.sum() < 20
    np.testing.assert_array_equal(few[broken], more[broken])


def test_masked_gradients_stop_pgd_but_not_the_others():
    """Logits times 1e4 saturate the softmax: the cross-entropy's gradient is exactly 0."""
    half = 0.5 * np.sum(WEIGHTS, axis=0)

    def masked(images):
        return 1e4 * (tf.reshape(images, [-1, 48]) @ WEIGHTS - half)

    labels = tf.argmax(masked(IMAGES), axis=1)
    margins = np.abs((IMAGES.reshape(20, 48) - 0.5) @ (WEIGHTS[:, 0] - WEIGHTS[:, 1]))
    reach = 0.1 * np.abs(WEIGHTS[:, 0] - WEIGHTS[:, 1]).sum()
    assert (margins < 0.9 * reach).all()  # so that all can be broken
    settings = {"epsilon": 0.1}

    def robust(adversarial):
        return float(np.mean(tf.argmax(masked(adversarial), axis=1) == labels))

    attacked = pgd(masked, IMAGES, labels, SEED, step_size=0.02, steps=20, **settings)
    assert robust(attacked) > 0.5
    assert robust(apgd(masked, IMAGES, labels, SEED, steps=20, loss="dlr", **settings)) == 0
    assert robust(fab(masked, IMAGES, labels, SEED, targets=1 - labels, **settings)) == 0
    assert robust(square(masked, IMAGES, labels, SEED, queries=500, **settings)) == 0
