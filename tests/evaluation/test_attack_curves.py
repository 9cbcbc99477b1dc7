"""The course of an attack: what each step does, and that a look at it changes nothing."""

import dataclasses

import numpy as np
import tensorflow as tf

from anpvs_tf.attacks import losses, registry
from anpvs_tf.attacks.settings import AttackSettings
from anpvs_tf.common import randomness
from anpvs_tf.data.loading import Split
from anpvs_tf.data.sources import SOURCES
from anpvs_tf.evaluation import attack_curves
from anpvs_tf.evaluation.attack_run import AttackRun
from anpvs_tf.evaluation.attacked_model import Subject

RNG = np.random.default_rng(3)
WEIGHTS = tf.constant(RNG.normal(size=(36, 10)), tf.float32)
IMAGES = RNG.integers(0, 256, (40, 6, 6, 1), np.uint8)
SETTINGS = AttackSettings(epsilon=0.05, steps=8, step_size=0.01, classes=10)


def logits(images):
    return tf.tanh(tf.reshape(images - 0.5, [-1, 36]) @ WEIGHTS)


# Five of the labels are wrong.
LABELS = np.argmax(logits(tf.constant(IMAGES / 255.0, tf.float32)), axis=1)
LABELS[:5] = (LABELS[:5] + 1) % 10
SPLIT = Split(IMAGES, LABELS)
SUBJECT = Subject("toy", SOURCES["digits"], "digest", logits)


def run_of(attack, settings=SETTINGS):
    stages = registry.stages(attack, settings)
    return AttackRun(
        SUBJECT, SPLIT, stages, epsilon=0.05, norm="linf", seed=4, batch_size=16
    ), registry.stages(attack, settings)[0]


def fooled_after(steps):
    """The share that PGD of fewer steps breaks: the same iterates, ended earlier."""
    run, _ = run_of("pgd", dataclasses.replace(SETTINGS, steps=steps))
    return 1.0 - float(np.mean(run.run().robust))


def test_each_step_of_pgd_breaks_what_an_attack_of_so_many_steps_does():
    loss, broken = attack_curves.of_stage(*run_of("pgd"), SPLIT)
    assert (len(loss), len(broken)) == (8, 9)
    for steps in (4, 8):
        # A wrong example may be right at an iterate; a figure counts it as broken in any case.
        assert -5 / 40 <= broken[steps] - fooled_after(steps) <= 0
    assert loss == sorted(loss) and broken[0] < broken[4] < broken[8]


def test_examples_that_leave_stay_broken():
    run, stage = run_of("apgd-ce")
    _, broken = attack_curves.of_stage(run, stage, SPLIT)
    assert broken[0] >= 5 / 40
    assert broken[-1] == 1.0 - np.mean(run.run().robust) > 5 / 40
    assert len(broken) == 8 + 2  # The start, the steps, and what is returned.


def test_an_attack_without_such_steps_has_no_course():
    settings = dataclasses.replace(SETTINGS, queries=10)
    assert attack_curves.of_stage(*run_of("square", settings), SPLIT) == ([], [])


def test_a_look_changes_nothing_and_ends():
    images, labels = tf.constant(IMAGES / 255.0, tf.float32), tf.constant(LABELS)
    seen, seed = [], randomness.seed_of(0, "a")

    def attacked():
        return registry.stages("apgd-ce", SETTINGS)[0].run(logits, images, labels, seed).numpy()

    before = attacked()
    with losses.observed(lambda *found: seen.append(found)):
        watched = attacked()
    count = len(seen)
    assert count == 9
    np.testing.assert_array_equal(before, watched)
    np.testing.assert_array_equal(before, attacked())
    assert len(seen) == count
