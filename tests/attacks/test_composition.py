"""Restarts, targets, expectation, and attacks as lists of stages."""

import numpy as np
import pytest
import tensorflow as tf

from anpvs_tf.attacks import apgd, composition, fab, pgd, random_noise
from anpvs_tf.attacks.registry import ATTACKS, stages
from anpvs_tf.attacks.settings import AttackSettings
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


def recorded(attack, seen):
    """`attack`, run eagerly, which appends its arguments to a list."""

    def recording(logits_fn, images, labels, seed, **settings):
        seen.append({"images": images.numpy(), "seed": seed.numpy(), **settings})
        return attack(logits_fn, images, labels, seed, **settings)

    return recording


def test_a_restart_sees_what_is_left_and_gives_what_it_gives_alone():
    seen = []
    wrapped = composition.restarts(recorded(random_noise, seen), 5)
    found = wrapped(linear, IMAGES, LABELS, SEED, epsilon=0.15).numpy()
    assert [len(call["images"]) for call in seen] == sorted(
        [len(call["images"]) for call in seen], reverse=True
    )
    assert len(seen[0]["images"]) > len(seen[-1]["images"]) > 0

    left, broken = np.arange(16), IMAGES.copy()
    for i, call in enumerate(seen):
        np.testing.assert_array_equal(call["images"], IMAGES[left])
        np.testing.assert_array_equal(call["seed"], randomness.fold(SEED, i))
        attacked = random_noise(
            linear, IMAGES[left], LABELS[left], randomness.fold(SEED, i), epsilon=0.15
        ).numpy()
        broken[left] = attacked
        left = left[robust(attacked, LABELS[left])]
    assert len(left) > 0
    np.testing.assert_array_equal(robust(found), np.isin(np.arange(16), left))
    done = np.setdiff1d(np.arange(16), left)
    np.testing.assert_allclose(found[done], broken[done], atol=1e-6)


def test_restarts_keep_the_largest_margin_of_what_stays_robust():
    def margin(images):
        logits = linear(images).numpy()
        own = logits[np.arange(16), LABELS]
        logits[np.arange(16), LABELS] = -np.inf
        return logits.max(axis=1) - own

    wrapped = composition.restarts(random_noise, 8)
    found = wrapped(linear, IMAGES, LABELS, SEED, epsilon=0.002)
    draws = [
        margin(random_noise(linear, IMAGES, LABELS, randomness.fold(SEED, i), epsilon=0.002))
        for i in range(8)
    ]
    assert np.max(draws) < 0  # none is broken: all are in every draw
    np.testing.assert_allclose(margin(found), np.max(draws, axis=0), atol=1e-6)
    assert np.ptp(draws, axis=0).min() > 1e-4


def test_targets_are_the_most_likely_wrong_classes_in_turn():
    seen = []

    def nothing(logits_fn, images, labels, seed, *, targets):
        return images

    composition.targets(recorded(nothing, seen), 9)(linear, IMAGES, LABELS, SEED)
    order = np.argsort(-linear(IMAGES).numpy(), axis=1)
    assert len(seen) == 3
    for rank, call in enumerate(seen):
        np.testing.assert_array_equal(call["targets"], order[:, rank + 1])
        np.testing.assert_array_equal(call["seed"], randomness.fold(SEED, rank))
    seen.clear()
    composition.targets(recorded(nothing, seen), 2)(linear, IMAGES, LABELS, SEED)
    assert len(seen) == 2


def test_nothing_is_attacked_when_nothing_is_left():
    seen = []
    wrapped = composition.restarts(recorded(random_noise, seen), 3)
    wrong = (LABELS + 1) % 4
    np.testing.assert_array_equal(wrapped(linear, IMAGES, wrong, SEED, epsilon=0.1), IMAGES)
    assert not seen


def test_composition_inside_a_compiled_function():
    wrapped = composition.targets(fab, 3)
    settings = {"epsilon": 0.05, "steps": 20}
    eager = wrapped(linear, IMAGES, LABELS, SEED, **settings)
    compiled = tf.function(
        lambda images, labels: wrapped(linear, images, labels, SEED, **settings),
        autograph=False,
        input_signature=[
            tf.TensorSpec([None, 2, 2, 3], tf.float32),
            tf.TensorSpec([None], tf.int64),
        ],
    )
    np.testing.assert_allclose(compiled(IMAGES, LABELS), eager, atol=1e-6)
    assert 0 < robust(eager).sum() < 16
    assert compiled(IMAGES[:0], LABELS[:0]).shape == (0, 2, 2, 3)


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
    expected = pgd(composition.expectation(noisy, 300), images, labels, SEED, **settings)
    assert not robust(expected, labels, noisy).any()


def test_expectation_draws_anew_and_keeps_the_structure():
    def noisy(images):
        logits = linear(images) + tf.random.normal([])
        return {"logits": logits, "latent": tf.cast(images, tf.float16)}

    for draws in (1, 4):
        found = tf.function(composition.expectation(noisy, draws))(IMAGES)
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
    for wrapper in (composition.restarts, composition.targets, composition.expectation):
        with pytest.raises(ValueError, match="at least 1"):
            wrapper(pgd, 0)


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
    drawn = composition.expectation(noisy, 8)
    settings = {"epsilon": 0.05, "steps": 20}
    attacked = apgd(drawn, images, labels, randomness.seed_of(0), **settings)
    plain = pgd(drawn, images, labels, randomness.seed_of(0), step_size=0.01, **settings)
    accuracy, by_pgd, before = (
        float(tf.reduce_mean(tf.cast(tf.argmax(mean(x), 1) == labels, tf.float32)))
        for x in (attacked, plain, tf.constant(images))
    )
    assert before == 1.0 and by_pgd < 0.8
    assert accuracy <= by_pgd + 0.05
