"""Attacks over a split: who is attacked when, what is known of each, what survives a stop."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from anpvs_tf.attacks import registry, threat_model
from anpvs_tf.attacks.registry import Stage
from anpvs_tf.attacks.settings import AttackSettings
from anpvs_tf.common import randomness
from anpvs_tf.common.errors import UsageError
from anpvs_tf.common.randomness import ExampleSeeds
from anpvs_tf.data.loading import Split
from anpvs_tf.data.sources import SOURCES
from anpvs_tf.evaluation import attack_run
from anpvs_tf.evaluation.attack_run import AttackRun
from anpvs_tf.evaluation.attacked_model import Subject

MNIST = SOURCES["mnist"]
# One pixel, classes split at 0.5; the labels of 0.1 and 0.9 are wrong.
VALUES = np.array([0.1, 0.3, 0.42, 0.46, 0.54, 0.58, 0.7, 0.9])
SPLIT = Split(
    np.round(VALUES * 255).astype(np.uint8).reshape(-1, 1, 1, 1), np.array([1, 0, 0, 0, 1, 1, 1, 0])
)


def logits(images):
    x = tf.reshape(images, [-1, 1])
    return tf.concat([0.5 - x, x - 0.5], axis=1) * 10.0


def outputs(images):
    return {"logits": logits(images), "double": 2.0 * tf.reshape(images, [-1, 1])}


SUBJECT = Subject("toy", MNIST, "digest", logits, outputs)


def pushing(name, distance, seen):
    """Moves every pixel towards the wrong side."""

    def run(logits_fn, images, labels, seed):
        seen.append((name, np.round(images.numpy().ravel(), 1).tolist()))
        sign = tf.cast(1 - 2 * labels, tf.float32)
        return tf.clip_by_value(images + distance * tf.reshape(sign, [-1, 1, 1, 1]), 0.0, 1.0)

    return Stage(name, run)


def run_of(stages, path=None, batch_size=3, subject=SUBJECT, identity="same", epsilon=0.1):
    return AttackRun(
        subject,
        SPLIT,
        stages,
        epsilon=epsilon,
        norm="linf",
        seed=0,
        batch_size=batch_size,
        path=path,
        identity=identity,
    )


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_each_stage_gets_what_is_left_and_all_is_counted(batch_size):
    seen = []
    stages = [pushing("small", 0.05, seen), pushing("large", 0.1, seen)]
    outcome = run_of(stages, batch_size=batch_size).run()
    attacked = {
        name: [v for n, values in seen if n == name for v in values] for name in ("small", "large")
    }
    assert attacked["small"] == pytest.approx([0.1, 0.3, 0.4, 0.5, 0.5, 0.6, 0.7, 0.9], abs=0.01)
    # 0.46 and 0.54 fell to the first stage; the wrong ones are not attacked again.
    assert attacked["large"] == pytest.approx([0.3, 0.4, 0.6, 0.7], abs=0.01)
    np.testing.assert_array_equal(outcome.broken_by[[2, 3, 4, 5]], [1, 0, 0, 1])
    np.testing.assert_array_equal(outcome.robust, [0, 1, 0, 0, 0, 0, 1, 0])
    assert outcome.accuracy_after() == {"small": 4 / 8, "large": 2 / 8}
    np.testing.assert_allclose(outcome.distances[[1, 3, 6]], [0.1, 0.05, 0.1], atol=1e-6)
    # Cross-entropy by hand: logits -/+ 10 (x - 0.5) at 76/255 + 0.1.
    x = 76 / 255 + 0.1
    assert outcome.losses[1] == pytest.approx(np.log1p(np.exp(20 * (x - 0.5))), rel=1e-4)
    # The first stage moves the feature of all eight by 2 * 0.05.
    assert outcome.vulnerability() == {"double": pytest.approx(0.1, abs=1e-6)}


@pytest.mark.parametrize("name", ["apgd-ce", "fab-t", "square"])
def test_attacks_in_batches_of_any_size_break_the_same(name):
    """Also where a batch is wrong as a whole: then the model is called on no empty batch."""

    def never_empty(images):
        some = tf.debugging.Assert(tf.shape(images)[0] > 0, ["the model was called on no images"])
        with tf.control_dependencies([some] if some is not None else []):
            return logits(tf.identity(images))

    stages = registry.stages(name, AttackSettings(0.1, classes=2, steps=10, queries=20))
    subject = dataclasses.replace(SUBJECT, logits=never_empty)
    for batch_size in (1, 3, 100):
        outcome = run_of(stages, batch_size=batch_size, subject=subject).run()
        np.testing.assert_array_equal(outcome.robust, [0, 1, 0, 0, 0, 0, 1, 0])


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ["noise", "pgd", "apgd-ce", "square"])
def test_what_is_drawn_for_an_example_does_not_depend_on_its_batch(name, norm):
    """On a network whose answer to a start depends on the start; one stage is given up half way."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (23, 6, 6, 1)).astype(np.uint8)
    hidden, out = (draw.normal(size=size).astype(np.float32) for size in ((36, 16), (16, 3)))

    def curved(x):
        return tf.sin(tf.reshape(x, [-1, 36]) @ hidden) @ out

    labels = np.argmax(curved(images / np.float32(255)), axis=1)
    labels[::5] = (labels[::5] + 1) % 3  # These are wrong as they are.
    split = Split(images, labels)
    subject = Subject("curved", MNIST, "digest", curved)
    # Steps so few that rounding has no time to grow.
    settings = AttackSettings(
        0.05, norm=norm, classes=3, steps=3, queries=9, draws=3, restarts=2, step_size=0.01
    )
    stages = registry.stages(name, settings)
    assert len(stages) > 1 or name in ("noise", "square")

    def of_size(batch_size):
        run = AttackRun(
            subject, split, stages, epsilon=0.05, norm=norm, seed=0, batch_size=batch_size
        )
        return run.run()

    whole = of_size(23)
    assert 0.1 < whole.robust.mean() < 0.8
    for batch_size in (1, 4, 10):
        outcome = of_size(batch_size)
        np.testing.assert_array_equal(outcome.broken_by, whole.broken_by)
        np.testing.assert_allclose(outcome.losses, whole.losses, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(outcome.distances, whole.distances, rtol=1e-3)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("draw", [threat_model.random_in_ball, threat_model.random_on_sphere])
def test_the_start_of_an_example_is_its_own(draw, norm):
    def of(*examples):
        seeds = ExampleSeeds(randomness.seed_of(3), tf.constant(examples))
        return draw(tf.constant([len(examples), 4, 3, 2]), seeds, 0.1, norm).numpy()

    three, other = of(7, 0, 9), of(9, 7)
    np.testing.assert_array_equal(other, three[[2, 0]])
    # None shares its draws with another; on the sphere of linf each has one of length epsilon.
    assert len(np.unique(three)) >= three.size - len(three)


def test_a_stopped_attack_goes_on_where_it_was(tmp_path):
    expected = run_of([pushing("small", 0.05, []), pushing("large", 0.1, [])]).run()

    seen = []
    stages = [pushing("small", 0.05, seen), pushing("large", 0.1, seen)]

    class Stopped(Exception):
        pass

    def stopping(after):
        def run(*arguments):
            if len(seen) >= after:
                raise Stopped
            return stages[len(seen) >= 3].run(*arguments)

        return run

    path = tmp_path / "evaluation" / "attack.npz"
    for after in (2, 4):
        with pytest.raises(Stopped):
            run_of([Stage(s.name, stopping(after)) for s in stages], path).run()
    found = run_of(stages, path).run()
    # Three batches of the first stage, two of the second, none of them twice.
    assert [name for name, _ in seen] == ["small"] * 3 + ["large"] * 2
    for name in ("broken_by", "losses", "distances", "clean_predictions"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert found.vulnerability() == expected.vulnerability()
    # Finished: nothing is attacked again, also with batches of another size.
    again = run_of(stages, path, batch_size=5).run()
    assert len(seen) == 5
    np.testing.assert_array_equal(again.robust, expected.robust)


def test_another_attack_or_a_damaged_file_begins_anew(tmp_path, capsys):
    seen, path = [], tmp_path / "attack.npz"
    stages = [pushing("small", 0.05, seen)]
    run_of(stages, path).run()
    run_of(stages, path, identity="other").run()
    assert len(seen) == 6
    path.write_bytes(path.read_bytes()[:100])
    run_of(stages, path, identity="other").run()
    assert len(seen) == 9
    assert "begins anew" in capsys.readouterr().out


def test_the_identity_knows_model_examples_and_settings():
    identity = attack_run.fingerprint([SUBJECT], SPLIT, {"steps": 1})
    assert identity == attack_run.fingerprint([SUBJECT], SPLIT, {"steps": 1})
    other = dataclasses.replace(SUBJECT, digest="other")
    assert identity != attack_run.fingerprint([other], SPLIT, {"steps": 1})
    assert identity != attack_run.fingerprint([SUBJECT, other], SPLIT, {"steps": 1})
    assert identity != attack_run.fingerprint([SUBJECT], SPLIT.take(7), {"steps": 1})
    assert identity != attack_run.fingerprint([SUBJECT], SPLIT, {"steps": 2})


def test_labels_out_of_range():
    run = run_of([])
    run.split = Split(SPLIT.images, SPLIT.labels + 9)
    with pytest.raises(UsageError, match="labels from 9 to 10; mnist has 10 classes"):
        run.run()


def test_leaving_the_ball_is_noticed():
    with pytest.raises(AssertionError, match="left the linf ball"):
        run_of([pushing("cheat", 0.11, [])]).run()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda images: tf.nn.softmax(logits(images)), "returns probabilities"),
        (lambda images: logits(images) / 0.0, "not finite"),
    ],
)
@pytest.mark.parametrize("draws", [1, 3])
def test_what_is_no_logits_is_refused(function, message, draws):
    run = run_of([pushing("small", 0.05, [])], subject=Subject("toy", MNIST, "", function))
    run.draws = draws
    with pytest.raises(UsageError, match=message):
        run.run()


def test_a_stochastic_model_decides_by_its_mean_softmax():
    generator = tf.random.Generator.from_seed(0)

    def noisy(images):
        # Right by 1 in four draws of five, wrong by 20 in the others: the mean softmax gives
        # the right class 0.58, where the mean logit would be wrong.
        good = generator.uniform([1, 1]) < 0.8
        margin = tf.where(good, 1.0, -20.0) * tf.ones([tf.shape(images)[0], 1])
        return tf.concat([margin + 3.0, tf.zeros_like(margin) + 3.0], axis=1)

    split = Split(SPLIT.images, np.zeros(8, int))
    run = AttackRun(
        Subject("noisy", MNIST, "", noisy),
        split,
        [],
        epsilon=0.1,
        norm="linf",
        seed=0,
        batch_size=8,
        draws=64,
    )
    assert run.run().correct.all()
