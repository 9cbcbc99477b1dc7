"""Records of evaluations, and whether the self-checks see what they are there for."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from anpvs_tf.attacks import registry
from anpvs_tf.attacks.settings import AttackSettings
from anpvs_tf.common.errors import UsageError
from anpvs_tf.data.loading import Split
from anpvs_tf.data.sources import SOURCES
from anpvs_tf.evaluation import assessment, self_checks
from anpvs_tf.evaluation.attacked_model import Subject
from anpvs_tf.runs import console, records
from anpvs_tf.runs.result_record import ResultRecord

MNIST = SOURCES["mnist"]
RNG = np.random.default_rng(0)
WEIGHTS = tf.constant(RNG.normal(size=(49, 10)).astype(np.float32))
IMAGES = RNG.integers(60, 196, (60, 7, 7, 1)).astype(np.uint8)


def linear(images):
    return tf.reshape(images - 0.5, [-1, 49]) @ WEIGHTS


SPLIT = Split(IMAGES, np.argmax(linear(tf.constant(IMAGES / 255, tf.float32)), axis=1))
HONEST = Subject("honest", MNIST, "honest", linear, lambda images: {"logits": linear(images)})


def attack(name, epsilon=0.02, **settings):
    return name, AttackSettings(epsilon=epsilon, **settings)


def assess(subject, attacks, tmp_path, **more):
    more = {"split": SPLIT, **more}
    conditions = assessment.Conditions(
        subject, directory=tmp_path / "evaluation", seed=0, batch_size=25, **more
    )
    return list(assessment.assess(conditions, attacks))


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (7, 10), (500, 1000), (359, 359)])
def test_wilson_intervals(successes, trials):
    # The shares p from which what was found is 1.96 standard deviations away: the equation's roots.
    found, z2, n = successes / trials, 1.959963984540054**2, trials
    roots = np.sort(np.roots([1 + z2 / n, -2 * found - z2 / n, found**2]))
    np.testing.assert_allclose(assessment.wilson(successes, trials), roots, atol=1e-9)


def test_records_and_the_worst_case(tmp_path):
    attacks = [
        attack("pgd", steps=10, step_size=0.01),
        attack("fgsm"),
        attack("noise"),
        attack("fgsm", epsilon=0.05),
    ]
    pgd, fgsm, noise, worst, larger = assess(HONEST, attacks, tmp_path)
    for record in (pgd, fgsm, noise, worst, larger):
        assert record.keys() <= ResultRecord.__annotations__.keys()
    assert pgd["attack"] == {
        "name": "pgd",
        "steps": 10,
        "step_size": 0.01,
        "restarts": 1,
        "draws": 1,
    }
    assert pgd["threat_model"] == {"norm": "linf", "epsilon": 0.02}
    assert pgd["clean_accuracy"] == 1.0 and pgd["examples"] == 60
    # On a linear model one step is all but the optimum.
    assert larger["robust_accuracy"] < fgsm["robust_accuracy"] < 1
    assert pgd["robust_accuracy"] == pytest.approx(fgsm["robust_accuracy"], abs=0.05)
    assert noise["robust_accuracy"] > fgsm["robust_accuracy"]
    assert worst["attack"]["name"] == "worst-case" and len(worst["attack"]["of"]) == 3
    files = [np.load(tmp_path / record["per_example"]) for record in (pgd, fgsm, noise)]
    robust = [(f["broken_by"] < 0) & (f["clean_predictions"] == f["labels"]) for f in files]
    assert worst["robust_accuracy"] == np.mean(np.logical_and.reduce(robust))
    assert worst["interval"] == assessment.wilson(int(np.sum(robust[0] & robust[1])), 60)
    text = console.evaluation_table([pgd, fgsm, noise, worst, larger])
    assert (
        "pgd (10 steps, of 0.01, 1 start(s))" in text and "worst case of pgd, fgsm, noise" in text
    )


def test_no_evaluation_replaces_the_file_of_another(tmp_path):
    attacks = [attack("fgsm"), attack("pgd", steps=2), attack("pgd", steps=3)]
    attacks += [attack("pgd", steps=2, restarts=2), attack("fgsm", epsilon=0.0200001)]
    assess(HONEST, attacks, tmp_path)
    assert len(list((tmp_path / "evaluation").iterdir())) == 5
    # Fewer examples, another model, another source.
    other = dataclasses.replace(HONEST, digest="other")
    assess(HONEST, [attack("fgsm")], tmp_path, split=SPLIT.take(10))
    assess(other, [attack("fgsm")], tmp_path)
    for source in (HONEST, other):
        assess(HONEST, [attack("transfer")], tmp_path, sources=[source])
    assert len(list((tmp_path / "evaluation").iterdir())) == 9


def test_records_are_replaced_by_repetitions_only():
    checked = {"model": "a", "attack": {"name": "pgd"}, "reliable": False, "checks": ["failed"]}
    repeated = {"model": "a", "attack": {"name": "pgd"}, "date": "later"}
    other = {"model": "b", "attack": {"name": "pgd"}}
    # What the checks found stays.
    assert records.merged([checked, other], [repeated]) == [
        other,
        repeated | {"reliable": False, "checks": ["failed"]},
    ]
    assert records.merged([repeated], [checked]) == [checked]


def test_transferred_examples(tmp_path):
    other = tf.constant(RNG.normal(size=(49, 10)).astype(np.float32))
    stranger = dataclasses.replace(
        HONEST, name="stranger", logits=lambda x: tf.reshape(x, [-1, 49]) @ other
    )
    white, same, twice, _ = assess(
        HONEST,
        [attack("pgd"), attack("transfer"), attack("transfer", restarts=2)],
        tmp_path,
        sources=[HONEST],
    )
    assert same["attack"]["sources"] == ["honest"] and list(same["accuracy_after"]) == [
        "transfer/honest"
    ]
    assert white["robust_accuracy"] == pytest.approx(same["robust_accuracy"], abs=0.02)
    assert len(twice["accuracy_after"]) == 2
    assert twice["robust_accuracy"] <= same["robust_accuracy"]
    (black,) = assess(HONEST, [attack("transfer")], tmp_path / "other", sources=[stranger])
    assert black["robust_accuracy"] > white["robust_accuracy"] + 0.1
    foreign = dataclasses.replace(stranger, source=SOURCES["cifar10"])
    with pytest.raises(UsageError, match="trained on cifar10"):
        assess(HONEST, [attack("transfer")], tmp_path, sources=[foreign])


def checks_of(subject, transferred=None, reported=None, **settings):
    chosen = AttackSettings(epsilon=0.02, classes=10, steps=20, step_size=0.005, **settings)
    if reported is None:
        record = assessment.AttackRun(
            subject,
            SPLIT,
            registry.stages("apgd-ce", chosen),
            epsilon=0.02,
            norm="linf",
            seed=0,
            batch_size=60,
            draws=chosen.draws or 1,
        )
        reported = record.run().robust
    measured = self_checks.measure(
        subject, SPLIT, chosen, reported, transferred, seed=0, batch_size=60
    )
    return {check.name: check for check in self_checks.judge(measured)}


def test_an_honest_model_passes_every_check():
    checks = checks_of(dataclasses.replace(HONEST, simulated=linear), transferred=np.ones(60, bool))
    assert all(check.passed for check in checks.values()), checks
    assert set(checks) == {
        *("ball", "iterations", "convergence", "chance", "noise", "black box", "gradients"),
        *("deterministic", "frozen", "simulation"),
    }


def test_masked_gradients_are_found_out():
    # The softmax saturates in float32: the cross-entropy has no gradient anywhere.
    masked = Subject("masked", MNIST, "", lambda images: 1e6 * linear(images))
    checks = checks_of(masked, reported=np.ones(60, bool))
    assert not checks["gradients"].passed
    assert not checks["black box"].passed


def test_steps_in_the_input_are_found_out():
    # Rounded pixels: gradients are zero, noise and queries are not.
    def rounded(images):
        coarse = tf.stop_gradient(tf.round(images * 50) / 50)
        return linear(coarse) + 0.0 * linear(images)

    checks = checks_of(Subject("rounded", MNIST, "", rounded))
    assert not checks["gradients"].passed


def test_a_figure_that_is_not_converged_is_found_out():
    checks = checks_of(HONEST, reported=np.ones(60, bool))
    assert not checks["convergence"].passed


def test_transferred_examples_alone_are_not_called_unconverged():
    measured = self_checks.measure(
        HONEST, SPLIT, AttackSettings(epsilon=0.02), None, np.ones(60, bool), seed=0, batch_size=60
    )
    found = self_checks.judge(measured)
    assert "convergence" not in {check.name for check in found}
    assert all(check.passed for check in found)


def test_noise_that_beats_gradients_is_found_out():
    # The gradient points the wrong way.
    def backwards(images):
        return tf.stop_gradient(2 * linear(images)) - linear(images)

    assert not checks_of(Subject("backwards", MNIST, "", backwards))["noise"].passed


def test_black_boxes_that_beat_white_ones_are_found_out():
    assert not checks_of(HONEST, transferred=np.zeros(60, bool))["black box"].passed


def test_a_network_that_is_not_the_trained_one_is_found_out():
    other = dataclasses.replace(
        HONEST,
        outputs=lambda images: {"logits": linear(images) + 0.01 * linear(images)[:, ::-1]},
        simulated=lambda images: linear(images) + 0.5 * linear(images)[:, ::-1],
    )
    checks = checks_of(other)
    assert not checks["frozen"].passed and not checks["simulation"].passed


def test_a_stochastic_model_needs_expectation(tmp_path):
    generator = tf.random.Generator.from_seed(1)

    def noisy(images):
        return linear(images + generator.normal(tf.shape(images), stddev=0.05))

    subject = Subject("noisy", MNIST, "", noisy)
    (single,) = assess(subject, [attack("pgd", steps=3)], tmp_path)
    assert single["robust_accuracy"] is None and single["reliable"] is False
    assert "use --eot" in console.evaluation_table([single])
    (drawn,) = assess(subject, [attack("pgd", steps=3, draws=8)], tmp_path)
    assert 0 < drawn["robust_accuracy"] < 1
    (rand,) = assess(subject, [attack("autoattack-rand", steps=3)], tmp_path)
    assert rand["attack"]["draws"] == 20 and rand["robust_accuracy"] is not None
    assert not checks_of(subject, reported=np.ones(60, bool))["deterministic"].passed
    assert checks_of(subject, reported=np.ones(60, bool), draws=2)["deterministic"].passed
