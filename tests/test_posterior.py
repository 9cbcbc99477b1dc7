"""Networks drawn from a posterior: as functions to attack, and as an ensemble to evaluate."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from anpvs_tf import bayesian, noise, posterior, runs, subjects
from anpvs_tf.errors import UsageError
from anpvs_tf.networks import lenet5

SEED = noise.seed_of(5)


@pytest.fixture(scope="module")
def network():
    return bayesian.convert(lenet5((16, 16, 1), 10), 1.0, -3.0)


@pytest.fixture(scope="module")
def images():
    return tf.random.stateless_uniform([6, 16, 16, 1], [0, 0])


def plain_networks(network, draws):
    """Ordinary networks that hold the weights of each draw."""
    made = []
    for i in range(draws):
        plain = lenet5((16, 16, 1), 10)
        for mean, values in bayesian.draw(network, noise.fold(SEED, i)):
            layer = plain.get_layer(mean.path.split("/")[-2])
            getattr(layer, mean.name).assign(values)
        made.append(plain)
    return made


def test_draws_come_from_the_posterior_of_every_weight(network):
    before = [w.numpy() for w in network.weights]
    draws = [bayesian.draw(network, noise.seed_of(i)) for i in range(200)]
    standard = []
    for tensors in zip(*draws, strict=True):
        mean, values = tensors[0][0], np.stack([values for _, values in tensors])
        # softplus(-3), for all weights.
        standard.append(((values - mean.numpy()) / 0.0485873).reshape(len(values), -1)[:, :20])
    assert len(standard) == 8
    assert stats.kstest(np.concatenate(standard, axis=1).ravel(), "norm").pvalue > 1e-3
    correlation = np.corrcoef(np.concatenate(standard, axis=1).T) - np.eye(150)
    assert np.abs(correlation).max() < 6 / np.sqrt(200)
    for weight, held in zip(network.weights, before, strict=True):
        np.testing.assert_array_equal(weight, held)


def test_sampled_logits_are_those_of_the_drawn_networks(network, images):
    logits = posterior.sampled_logits(network, 3, SEED)
    expected = [plain(images)["logits"] for plain in plain_networks(network, 3)]
    np.testing.assert_allclose(logits(images), np.stack(expected), atol=1e-4)
    # In a graph too, where the weights are drawn anew at each call.
    compiled = tf.function(lambda x, seed: posterior.sampled_logits(network, 3, seed)(x))
    np.testing.assert_allclose(compiled(images, SEED), np.stack(expected), atol=1e-4)
    assert not np.any(np.isclose(compiled(images, noise.seed_of(6)), expected, atol=1e-4))


def test_the_ensemble_and_its_gradient_are_means_over_the_drawn_networks(network, images):
    outputs = posterior.sampled_outputs(network, 3, SEED)
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


def finished_run(path, network, method="at"):
    """A run directory as training leaves it, but for its metrics."""
    from anpvs_tf import settings

    run = runs.RunDirectory(path)
    run.begin(settings.resolve({"dataset": "digits", "method": method}), [])
    run.write_weights(network)
    run.write_results([{"efficiency": {}}])
    return run


def test_a_bayesian_run_is_evaluated_as_means_or_as_an_ensemble(
    network, images, tmp_path, monkeypatch
):
    run = finished_run(tmp_path / "run", network)
    monkeypatch.setattr(runs, "build_network", lambda *a: bayesian.convert(lenet5((16, 16, 1), 10)))
    means = subjects.of_run(run)
    np.testing.assert_allclose(means.logits(images), network(images)["logits"], atol=1e-4)
    few, many = (subjects.of_run(run, posterior_draws=n) for n in (2, 3))
    again = subjects.of_run(run, posterior_draws=3)
    assert many.logits(images).shape == (6, 10)
    np.testing.assert_array_equal(many.logits(images), again.logits(images))
    np.testing.assert_allclose(many.logits(images), many.outputs(images)["logits"], atol=1e-4)
    np.testing.assert_allclose(tf.reduce_sum(tf.exp(many.logits(images)), axis=1), 1, rtol=1e-5)
    assert len({subject.digest for subject in (means, few, many)}) == 3
    assert many.digest == again.digest
    assert "3 posterior draws" in many.name and many.posterior_draws == 3


def test_only_bayesian_runs_have_draws(tmp_path):
    run = finished_run(tmp_path / "run", lenet5((16, 16, 1), 10))
    with pytest.raises(UsageError, match="trained by at.*--method=at_bnn"):
        subjects.of_run(run, posterior_draws=2)
