"""The evaluator on networks whose answers are known."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from anpvs_tf.data.loading import Split
from anpvs_tf.evaluation.evaluator import Evaluator, PgdAttack


def threshold_network():
    """Two classes, split by the one pixel's value at 0.5; one latent feature: twice the pixel."""
    images = keras.Input((1, 1, 1))
    latent = keras.layers.Dense(1, name="double", use_bias=False)(keras.layers.Flatten()(images))
    logits = keras.layers.Dense(2, name="logits")(latent)
    network = keras.Model(images, {"logits": logits, "double": latent})
    network.get_layer("double").set_weights([np.array([[2.0]])])
    network.get_layer("logits").set_weights([np.array([[-1.0, 1.0]]), np.array([1.0, -1.0])])
    return network


# Pixels 0.1 ... 0.9 (as uint8), class 1 above one half; the last label is wrong.
PIXELS = np.round(np.linspace(0.1, 0.9, 9) * 255).astype(np.uint8).reshape(9, 1, 1, 1)
SPLIT = Split(PIXELS, np.array([0, 0, 0, 0, 1, 1, 1, 1, 0]))


@pytest.mark.parametrize("batch_size", [2, 9, 100])
def test_counts_every_example_once(batch_size):
    # Epsilon 0.15 flips 0.4 (102/255), 0.5 (128/255) and 0.6 (153/255); 0.9 is wrong anyway.
    evaluate = Evaluator(threshold_network(), PgdAttack(0.15, 0.05, 20), batch_size)
    seen = []
    result = evaluate(SPLIT, seed=0, progress=lambda done, total: seen.append((done, total)))
    assert result.examples == 9
    assert seen[-1] == (9, 9)
    assert result.clean_accuracy == pytest.approx(8 / 9)
    assert result.robust_accuracy == pytest.approx(5 / 9)
    # The attack moves the latent feature by 2 * 0.15, and the last by 2 * (1 - 230 / 255).
    expected = (8 * 0.3 + 2 * (1 - 230 / 255)) / 9
    assert result.vulnerability == pytest.approx(expected, abs=1e-4)
    assert result.layer_vulnerability == {"double": pytest.approx(expected, abs=1e-4)}


def test_accuracy_falls_to_zero_at_a_large_epsilon_and_to_clean_at_none():
    network = threshold_network()
    big = Evaluator(network, PgdAttack(1.0, 0.5, 10), 9)(SPLIT, 0)
    assert big.robust_accuracy == 0.0
    small = Evaluator(network, PgdAttack(1e-6, 1e-6, 10), 9)(SPLIT, 0)
    assert small.robust_accuracy == small.clean_accuracy


def test_the_attack_starts_at_random():
    # A network with a flat gradient except near its edge: a start decides.
    images = keras.Input((1, 1, 1))
    x = keras.layers.Flatten()(images)
    x = keras.layers.Dense(1, name="step", activation="relu")(x)
    network = keras.Model(images, {"logits": keras.layers.Dense(2, name="logits")(x), "step": x})
    network.get_layer("step").set_weights([np.array([[100.0]]), np.array([-54.0])])
    network.get_layer("logits").set_weights([np.array([[0.0, 1.0]]), np.array([1.0, 0.0])])
    split = Split(np.full([400, 1, 1, 1], 128, np.uint8), np.zeros(400, int))
    accuracy = Evaluator(network, PgdAttack(0.1, 0.01, 5), 400)(split, 0).robust_accuracy
    # Above 0.54 (0.038 from the pixel) a start finds the gradient: P = (0.1 - 0.038) / 0.2.
    p = (0.1 - (0.54 - 128 / 255)) / 0.2
    assert accuracy == pytest.approx(1 - p, abs=5 * 0.5 / 20)


def test_an_attack_that_leaves_the_ball_is_noticed(monkeypatch):
    from anpvs_tf.evaluation import evaluator

    def cheating(logits_fn, images, labels, seed, **settings):
        return tf.clip_by_value(images + 0.2, 0, 1)

    monkeypatch.setattr(evaluator, "pgd", cheating)
    with pytest.raises(AssertionError, match="left the linf ball"):
        Evaluator(threshold_network(), PgdAttack(0.15, 0.05, 2), 9)(SPLIT, 0)
