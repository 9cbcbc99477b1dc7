"""Networks drawn from a posterior: as functions to attack, and as an ensemble to evaluate."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from anpvs_tf.attacks.settings import AttackSettings
from anpvs_tf.common import randomness
from anpvs_tf.common.errors import UsageError
from anpvs_tf.data import loading
from anpvs_tf.evaluation import assessment, attacked_model
from anpvs_tf.networks import bayesian
from anpvs_tf.networks.architectures import lenet5
from anpvs_tf.pruning import compact
from anpvs_tf.pruning.frozen import FrozenNetwork, sampled_logits
from anpvs_tf.runs import directory, resolution
from anpvs_tf.runs.finished_run import open_run
from anpvs_tf.serving import model_card, verification

SEED = randomness.seed_of(5)


@pytest.fixture(scope="module")
def network():
    return bayesian.convert(lenet5((28, 28, 1), 10), 1.0, -3.0)


@pytest.fixture(scope="module")
def images():
    return tf.random.stateless_uniform([6, 28, 28, 1], [0, 0])


def plain_networks(network, draws):
    """Ordinary networks that hold the weights of each draw."""
    made = []
    for i in range(draws):
        plain = lenet5((28, 28, 1), 10)
        for mean, values in bayesian.draw(network, randomness.fold(SEED, i)):
            layer = plain.get_layer(mean.path.split("/")[-2])
            getattr(layer, mean.name).assign(values)
        made.append(plain)
    return made


def test_draws_come_from_the_posterior_of_every_weight():
    features = keras.Input((4,))
    plain = keras.Model(features, keras.layers.Dense(5)(keras.layers.Dense(6)(features)))
    network = bayesian.convert(plain, 1.0, -3.0)
    before = [w.numpy() for w in network.weights]
    standard = []
    for i in range(60):
        pairs = bayesian.draw(network, randomness.seed_of(i))
        # softplus(-3) is the standard deviation of all weights.
        one = [(values.numpy() - mean.numpy()).ravel() / 0.0485873 for mean, values in pairs]
        standard.append(np.concatenate(one))
    standard = np.stack(standard)
    assert standard.shape[1] == (4 + 1) * 6 + (6 + 1) * 5
    assert stats.kstest(standard.ravel(), "norm").pvalue > 1e-3
    correlation = np.corrcoef(standard.T) - np.eye(standard.shape[1])
    assert np.abs(correlation).max() < 6 / np.sqrt(len(standard))
    for weight, held in zip(network.weights, before, strict=True):
        np.testing.assert_array_equal(weight, held)


def test_sampled_logits_are_those_of_the_drawn_networks(network, images):
    logits = sampled_logits(network, 3, SEED)
    expected = [plain(images)["logits"] for plain in plain_networks(network, 3)]
    np.testing.assert_allclose(logits(images), np.stack(expected), atol=1e-4)
    # In a graph too, where the weights are drawn anew at each call.
    frozen = FrozenNetwork(network)

    @tf.function(autograph=False)
    def compiled(x, seed):
        return sampled_logits(network, 3, seed, frozen)(x)

    np.testing.assert_allclose(compiled(images, SEED), np.stack(expected), atol=1e-4)
    assert not np.any(np.isclose(compiled(images, randomness.seed_of(6)), expected, atol=1e-4))


def test_the_ensemble_and_its_gradient_are_means_over_the_drawn_networks(network, images):
    outputs = attacked_model.sampled_outputs(network, 3, SEED)
    drawn = plain_networks(network, 3)

    def gradient(probabilities):
        with tf.GradientTape() as tape:
            tape.watch(images)
            total = tf.reduce_sum(probabilities(images)[:, 2])
        return tape.gradient(total, images)

    def mean_softmax(x):
        return tf.add_n([tf.nn.softmax(plain(x)["logits"]) for plain in drawn]) / 3

    np.testing.assert_allclose(
        tf.exp(outputs(images)["logits"]), mean_softmax(images), rtol=1e-3, atol=1e-6
    )
    np.testing.assert_allclose(
        gradient(lambda x: tf.exp(outputs(x)["logits"])), gradient(mean_softmax), atol=1e-5
    )
    moved = np.abs(outputs(images)["dense1"] - outputs(1 - images)["dense1"]).mean()
    each = [np.abs(p(images)["dense1"] - p(1 - images)["dense1"]).mean() for p in drawn]
    assert moved == pytest.approx(np.mean(each), rel=1e-4)


def finished_run(path, network, method):
    """A run directory as training leaves it, but for its metrics."""
    run = directory.RunDirectory(path)
    run.begin(resolution.resolve({"dataset": "digits", "method": method}), [])
    run.write_weights(network)
    run.write_results([{"efficiency": {}}])
    return open_run(run.path)


def test_a_bayesian_run_is_evaluated_as_means_or_as_an_ensemble(network, images, tmp_path):
    run = finished_run(tmp_path / "run", network, "at_bnn")
    means = attacked_model.of_run(run)
    np.testing.assert_allclose(means.logits(images), network(images)["logits"], atol=1e-4)
    few, many = (attacked_model.of_run(run, posterior_draws=n) for n in (2, 3))
    again = attacked_model.of_run(run, posterior_draws=3)
    assert many.logits(images).shape == (6, 10)
    np.testing.assert_array_equal(many.logits(images), again.logits(images))
    np.testing.assert_allclose(many.logits(images), many.outputs(images)["logits"], atol=1e-4)
    np.testing.assert_allclose(tf.reduce_sum(tf.exp(many.logits(images)), axis=1), 1, rtol=1e-5)
    assert len({subject.digest for subject in (means, few, many)}) == 3
    assert many.digest == again.digest
    assert "3 posterior draws" in many.name
    # Its records say so, and a card of the export, which is of the means, leaves them out.
    split = loading.load("digits").test.take(10)
    attacks = [("fgsm", AttackSettings(epsilon=0.05))]

    def assess(subject):
        conditions = assessment.Conditions(
            subject, split, tmp_path / "evaluation", seed=0, batch_size=10
        )
        return assessment.assess(conditions, attacks)

    (record,) = assess(many)
    assert record["posterior_draws"] == 3 and record["model"] == many.name
    (plain,) = assess(means)
    assert "posterior_draws" not in plain
    evaluations = [record | {"robust_accuracy": 0.4321}]
    run = dataclasses.replace(run, trained=plain, evaluations=evaluations)
    report = verification.Report(examples=1, accuracy=1.0, exported={})
    card = model_card.text(run, compact.freeze(network), "saved_model", 1, report)
    assert "| fgsm |" in card and "43.21%" not in card


def test_only_bayesian_runs_have_draws(tmp_path):
    run = finished_run(tmp_path / "run", lenet5((28, 28, 1), 10), "at")
    with pytest.raises(UsageError, match=r"trained by at,.*--method=at_bnn"):
        attacked_model.of_run(run, posterior_draws=2)
