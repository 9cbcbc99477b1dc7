"""Attacks as lists of stages, restarts and targets among them, and expectation."""

import numpy as np
import pytest
import tensorflow as tf

from anpvs_tf.attacks import apgd, pgd
from anpvs_tf.attacks.registry import ATTACKS, Stage, stages, worst_case
from anpvs_tf.attacks.settings import AttackSettings
from anpvs_tf.attacks.stochastic import expectation
from anpvs_tf.common import randomness

SEED = randomness.seed_of(0)
RNG = np.random.default_rng(0)
WEIGHTS = tf.constant(RNG.normal(size=(12, 4)).astype(np.float32))
IMAGES = RNG.uniform(0.3, 0.7, (16, 2, 2, 3)).astype(np.float32)


def linear(images):
    return tf.reshape(images - 0.5, [-1, 12]) @ WEIGHTS


LABELS = tf.argmax(linear(IMAGES), axis=1).numpy()


def robust(attacked, labels=LABELS, logits_fn=linear):
    return (tf.argmax(logits_fn(attacked), axis=1) == labels).numpy()


def noises(restarts, epsilon):
    return stages("noise", AttackSettings(epsilon, classes=4, restarts=restarts, noise_draws=1))


def recorded(stage, seen):
    """A stage that appends the images that it gets to a list."""

    def run(logits_fn, images, labels, seed):
        seen.append(images.numpy())
        return stage.run(logits_fn, images, labels, seed)

    return Stage(stage.name, run)


def test_a_stage_gets_what_is_left_and_gives_what_it_gives_alone():
    seen, made = [], noises(5, 0.15)
    found = worst_case([recorded(s, seen) for s in made], linear, IMAGES, LABELS, SEED).numpy()
    assert len(seen[0]) == 16 > len(seen[-1])

    left, broken = np.arange(16), IMAGES.copy()
    for images, stage in zip(seen, made, strict=True):
        np.testing.assert_array_equal(images, IMAGES[left])
        attacked = stage.run(linear, IMAGES[left], LABELS[left], SEED).numpy()
        broken[left] = attacked
        left = left[robust(attacked, LABELS[left])]
    assert len(left) > 0
    np.testing.assert_array_equal(robust(found), np.isin(np.arange(16), left))
    done = np.setdiff1d(np.arange(16), left)
    np.testing.assert_allclose(found[done], broken[done], atol=1e-6)


def test_of_what_stays_robust_the_largest_margin_is_kept():
    def margin(images):
        logits = linear(images).numpy()
        own = logits[np.arange(16), LABELS]
        logits[np.arange(16), LABELS] = -np.inf
        return logits.max(axis=1) - own

    made = noises(8, 0.002)
    found = worst_case(made, linear, IMAGES, LABELS, SEED)
    draws = [margin(stage.run(linear, IMAGES, LABELS, SEED)) for stage in made]
    assert np.max(draws) < 0  # none is broken: all are in every draw
    np.testing.assert_allclose(margin(found), np.max(draws, axis=0), atol=1e-6)
    assert np.ptp(draws, axis=0).min() > 1e-4


def test_targets_are_the_most_likely_wrong_classes_in_turn():
    order = np.argsort(-linear(IMAGES).numpy(), axis=1)
    made = stages("apgd-t", AttackSettings(0.02, classes=4, steps=5))
    assert [stage.name for stage in made] == [f"apgd-t/target{i}" for i in (1, 2, 3)]
    for rank, stage in enumerate(made):
        alone = apgd(
            linear,
            IMAGES,
            LABELS,
            randomness.fold(SEED, stage.name),
            epsilon=0.02,
            loss="dlr_targeted",
            steps=5,
            targets=order[:, rank + 1],
        )
        found = stage.run(linear, IMAGES, LABELS, SEED)
        np.testing.assert_allclose(found, alone, atol=1e-6)
    assert len(stages("apgd-t", AttackSettings(0.1, classes=4, targets=2))) == 2


def test_nothing_is_attacked_when_nothing_is_left():
    seen = []
    made = [recorded(stage, seen) for stage in noises(3, 0.1)]
    wrong = (LABELS + 1) % 4
    np.testing.assert_array_equal(worst_case(made, linear, IMAGES, wrong, SEED), IMAGES)
    assert worst_case(made, None, IMAGES[:0], LABELS[:0], SEED).shape == (0, 2, 2, 3)
    assert not seen


def test_expectation_breaks_what_a_single_draw_misses():
    """The gradient drowns in noise that does not change the value."""
    direction = RNG.normal(size=(192, 1)).astype(np.float32)
    images = np.full([8, 8, 8, 3], 0.5, np.float32)
    # Half of what the best perturbation of 0.3 gains.
    lead = 0.15 * np.abs(direction).sum()
    labels = np.zeros(8, np.int64)

    def noisy(images):
        pixels = tf.reshape(images, [-1, 192])
        noise = tf.random.normal([192, 1], stddev=10.0)
        gain = (pixels - 0.5) @ direction + (pixels - tf.stop_gradient(pixels)) @ noise
        return tf.concat([0 * gain, gain - lead], axis=1)

    settings = {"epsilon": 0.3, "step_size": 0.1, "steps": 12, "loss": "margin"}
    single = pgd(noisy, images, labels, SEED, **settings)
    assert robust(single, labels, noisy).all()
    expected = pgd(expectation(noisy, 300), images, labels, SEED, **settings)
    assert not robust(expected, labels, noisy).any()


def test_expectation_draws_anew_and_keeps_the_structure():
    def noisy(images):
        logits = linear(images) + tf.random.normal([])
        return {"logits": logits, "latent": tf.cast(images, tf.float16)}

    for draws in (1, 4):
        found = tf.function(expectation(noisy, draws))(IMAGES)
        assert found["logits"].shape == (draws, 16, 4)
        assert found["latent"].shape == (draws, 16, 2, 2, 3)
        assert found["latent"].dtype == tf.float16
        offsets = (found["logits"] - linear(IMAGES))[:, 0, 0].numpy()
        assert len(np.unique(offsets)) == draws


def test_stages_of_autoattack():
    names = [stage.name for stage in stages("autoattack", AttackSettings(0.1))]
    each = [f"target{i}" for i in range(1, 10)]
    expected = [
        "apgd-ce",
        *[f"apgd-t/{target}" for target in each],
        *[f"fab-t/{target}" for target in each],
        "square",
    ]
    assert names == expected
    few = [stage.name for stage in stages("autoattack", AttackSettings(0.1, classes=2))]
    assert few == ["apgd-ce", "apgd-t/target1", "fab-t/target1", "square"]
    rand = [stage.name for stage in stages("autoattack-rand", AttackSettings(0.1, restarts=2))]
    assert rand == [f"apgd-{loss}/restart{i}" for loss in ("ce", "dlr") for i in (1, 2)]


@pytest.mark.parametrize("attack", ATTACKS)
def test_stage_names_are_unique_and_name_their_attack(attack):
    names = [stage.name for stage in stages(attack, AttackSettings(0.1, restarts=2))]
    assert len(set(names)) == len(names) > 0
    if not attack.startswith("autoattack"):
        assert {name.split("/")[0] for name in names} == {attack}


def test_stages_on_a_shrinking_set_trace_twice():
    traces = []

    def counted(images):
        traces.append(images.shape)
        return linear(images)

    made = stages("pgd", AttackSettings(0.05, restarts=3, steps=3, classes=4))
    first = made[0].run(counted, IMAGES, LABELS, SEED)
    once = len(traces)
    second = made[1].run(counted, IMAGES[:9], LABELS[:9], SEED)
    assert len(traces) == 2 * once
    for count in (5, 1, 16):
        made[2].run(counted, IMAGES[:count], LABELS[:count], SEED)
    assert len(traces) == 2 * once
    assert np.abs(first[:9] - second).max() > 0  # restarts differ under one seed


@pytest.mark.parametrize("classes", [2, 3])
def test_autoattack_on_few_classes(classes):
    def few(images):
        return linear(images)[:, :classes]

    labels = tf.argmax(few(IMAGES), axis=1).numpy()
    settings = AttackSettings(0.3, classes=classes, steps=10, queries=40)
    for stage in stages("autoattack", settings):
        assert not robust(stage.run(few, IMAGES, labels, SEED), labels, few).all()


def test_bad_settings():
    with pytest.raises(ValueError, match="pgdd"):
        stages("pgdd", AttackSettings(0.1))
    for bad in ({"epsilon": -1.0}, {"norm": "l1"}, {"steps": 0}, {"classes": 1}, {"draws": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            AttackSettings(**{"epsilon": 0.1, **bad})
    with pytest.raises(ValueError, match="at least 1"):
        expectation(linear, 0)


def test_a_stochastic_model_is_not_called_broken_by_one_lucky_draw():
    generator = tf.random.Generator.from_seed(0)
    rng = np.random.default_rng(5)
    weights = tf.constant(rng.normal(size=(12, 4)).astype(np.float32))
    images = rng.uniform(0.3, 0.7, (200, 2, 2, 3)).astype(np.float32)

    def mean(x):
        return 10.0 * tf.reshape(x - 0.5, [-1, 12]) @ weights

    def noisy(x):
        logits = mean(x)
        return logits + generator.normal(tf.shape(logits), stddev=20.0)

    labels = tf.argmax(mean(tf.constant(images)), axis=1)
    drawn = expectation(noisy, 8)
    settings = {"epsilon": 0.05, "steps": 20}
    attacked = apgd(drawn, images, labels, randomness.seed_of(0), **settings)
    plain = pgd(drawn, images, labels, randomness.seed_of(0), step_size=0.01, **settings)
    accuracy, by_pgd, before = (
        float(tf.reduce_mean(tf.cast(tf.argmax(mean(x), 1) == labels, tf.float32)))
        for x in (attacked, plain, tf.constant(images))
    )
    assert before == 1.0 and by_pgd < 0.8
    assert accuracy <= by_pgd + 0.05
