"""What every attack promises, whatever it does."""

import numpy as np
import pytest
import tensorflow as tf

from anpvs_tf.attacks import apgd, fab, fgsm, pgd, random_noise, square, threat_model
from anpvs_tf.attacks.registry import stages
from anpvs_tf.attacks.settings import AttackSettings
from anpvs_tf.common import randomness
from anpvs_tf.common.errors import UsageError

SEED = randomness.seed_of(0)
RNG = np.random.default_rng(0)
FIRST = RNG.normal(size=(75, 6)).astype(np.float32)
SECOND = 3 * RNG.normal(size=(6, 4)).astype(np.float32)
IMAGES = RNG.uniform(0, 1, (8, 5, 5, 3)).astype(np.float32)
# The others differ from these in their loss only.
GEOMETRIES = ["pgd", "fgsm", "noise", "apgd-ce", "fab-t", "square"]
SEARCHES = ["pgd-latent", "fgsm", "noise", "apgd-t", "fab-t", "square"]


def network(images):
    hidden = tf.tanh(tf.reshape(images - 0.5, [-1, 75]) @ FIRST)
    return {"logits": hidden @ SECOND, "hidden": hidden}


LABELS = tf.argmax(network(IMAGES)["logits"], axis=1).numpy()


def first_stage(name, epsilon, norm="linf"):
    settings = AttackSettings(epsilon, norm, classes=4, steps=7, queries=25, noise_draws=3)
    return stages(name, settings)[0]


@pytest.mark.parametrize("epsilon", [0.05, 0.6])
@pytest.mark.parametrize("norm", threat_model.NORMS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_stays_in_the_ball_and_in_the_pixel_range(name, norm, epsilon):
    attacked = first_stage(name, epsilon, norm).run(network, IMAGES, LABELS, SEED).numpy()
    threat_model.assert_in_threat_model(IMAGES, attacked, epsilon, norm)
    assert attacked.dtype == np.float32
    if name != "fab-t":  # which may find nothing in the ball
        difference = (attacked - IMAGES).reshape(8, -1)
        order = np.inf if norm == "linf" else 2
        assert np.linalg.norm(difference, order, axis=1).max() > 0.4 * epsilon


@pytest.mark.parametrize("name", SEARCHES)
def test_seeds_neighbours_and_batch_sizes(name):
    # Small enough that some examples stay robust, so that there is something to compare.
    stage = first_stage(name, 0.02)
    attacked = stage.run(network, IMAGES, LABELS, SEED).numpy()
    np.testing.assert_array_equal(attacked, stage.run(network, IMAGES, LABELS, SEED))
    if name not in ("fgsm", "fab-t"):
        other = stage.run(network, IMAGES, LABELS, randomness.seed_of(1))
        assert np.abs(attacked - other).max() > 0

    neighbours = np.concatenate([IMAGES[:3], 1 - IMAGES[3:]])
    labels = np.concatenate([LABELS[:3], (LABELS[3:] + 1) % 4])
    again = stage.run(network, neighbours, labels, SEED)
    np.testing.assert_allclose(again[:3], attacked[:3], atol=1e-5)

    few = stage.run(network, IMAGES[:1], LABELS[:1], SEED)
    np.testing.assert_allclose(few, attacked[:1], atol=1e-5)


def marked(images):
    """Class 0 has a lead: a large one, or a tiny one where the first pixel is white."""
    logits = network(images)["logits"]
    hard = logits + tf.constant([60.0, 0.0, 0.0, 0.0])
    slope = tf.reshape(images - 0.5, [-1, 75]) @ FIRST[:, :1]
    easy = tf.concat(
        [slope - 0.5 * FIRST[0, 0] + 0.02, 0 * slope, 0 * slope - 1, logits[:, 3:] - 99], 1
    )
    return tf.where((images[:, 0, 0, 0] > 0.5)[:, None], easy, hard)


@pytest.mark.parametrize("name", ["apgd-dlr", "fab-t", "square"])
def test_examples_that_leave_change_nothing_for_the_others(name):
    hard = IMAGES.copy()
    hard[:, 0, 0, 0] = 0.0
    mixed = hard.copy()
    mixed[::2] = 0.5
    mixed[::2, 0, 0, 0] = 1.0
    zeros = np.zeros(8, np.int64)
    assert (tf.argmax(marked(mixed), axis=1) == 0).numpy().all()
    stage = stages(name, AttackSettings(0.05, classes=4, steps=30, queries=60))[0]
    found = stage.run(marked, mixed, zeros, SEED)
    broken = tf.argmax(marked(found), axis=1).numpy() != 0
    np.testing.assert_array_equal(broken, [True, False] * 4)
    without = stage.run(marked, hard, zeros, SEED)
    np.testing.assert_allclose(found[1::2], without[1::2], atol=1e-6)
    threat_model.assert_in_threat_model(mixed, found.numpy(), 0.05, "linf")


def never_empty(images):
    """The network, but it fails at an empty batch, as convolutions of oneDNN do."""
    some = tf.debugging.Assert(tf.shape(images)[0] > 0, ["the model was called on no images"])
    with tf.control_dependencies([some] if some is not None else []):
        return network(tf.identity(images))


@pytest.mark.parametrize(
    ("name", "norm"),
    [("apgd-ce", "linf"), ("fab-t", "linf"), ("square", "linf"), ("square", "l2")],
)
def test_what_is_wrong_unperturbed_is_returned_as_it_is(name, norm):
    stage, wrong = first_stage(name, 0.6, norm), (LABELS + 1) % 4
    for examples in (8, 1):
        attacked = stage.run(never_empty, IMAGES[:examples], wrong[:examples], SEED)
        np.testing.assert_array_equal(attacked, IMAGES[:examples])
    # Of a batch that is wrong but for one, that one is attacked, until none is left.
    mixed = np.concatenate([wrong[:7], LABELS[7:]])
    attacked = stage.run(never_empty, IMAGES, mixed, SEED)
    np.testing.assert_array_equal(attacked[:7], IMAGES[:7])
    assert np.argmax(network(attacked)["logits"][7]) != LABELS[7]


def settings_of(attack):
    settings = {"epsilon": 0.1}
    if attack is pgd:
        settings |= {"step_size": 0.1, "steps": 1}
    if attack is fab:
        settings |= {"targets": LABELS}
    return settings


ATTACKS = [apgd, fab, fgsm, pgd, random_noise, square]


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_empty_batch_is_returned_and_images_outside_0_to_1_are_refused(attack):
    def untouched(images):
        raise AssertionError("the model was called")

    none = attack(untouched, IMAGES[:0], LABELS[:0], SEED, **settings_of(attack))
    assert none.shape == (0, 5, 5, 3)
    with pytest.raises(UsageError, match="divide them by 255"):
        attack(untouched, 255 * IMAGES, LABELS, SEED, **settings_of(attack))


def test_a_stage_refuses_images_outside_0_to_1():
    with pytest.raises(UsageError, match="map black to 0"):
        first_stage("pgd", 0.1).run(network, 2 * IMAGES - 1, LABELS, SEED)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize(
    ("bad", "message"),
    [({"norm": "l1"}, "l1"), ({"epsilon": 0.0}, "epsilon"), ({"epsilon": float("nan")}, "nan")],
)
def test_bad_input(attack, bad, message):
    with pytest.raises(ValueError, match=message):
        attack(network, IMAGES, LABELS, SEED, **settings_of(attack) | bad)
