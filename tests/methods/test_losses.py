"""Loss terms by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from anpvs_tf.methods import losses
from anpvs_tf.networks import architectures


def test_cross_entropy_by_hand():
    logits = tf.constant([[0.0, np.log(3.0)], [0.0, 0.0]], tf.bfloat16)
    # softmax = [1/4, 3/4], [1/2, 1/2]
    expected = (np.log(4) + np.log(2)) / 2
    value = losses.cross_entropy(tf.constant([0, 1]), logits)
    assert value.dtype == tf.float32
    assert float(value) == pytest.approx(expected, rel=5e-3)  # bfloat16 inputs


def test_smoothed_labels_agree_with_keras():
    logits, labels = np.random.default_rng(1).normal(size=(5, 4)), np.array([0, 3, 1, 1, 2])
    smoothed = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2)
    expected = float(smoothed(np.eye(4)[labels], logits))
    assert float(losses.cross_entropy(labels, logits, 0.2)) == pytest.approx(expected, rel=1e-5)


def test_vulnerability_by_hand():
    clean = [tf.constant([[1.0, 2.0], [3.0, 4.0]]), tf.ones([2, 1, 1, 4])]
    adversarial = [tf.constant([[1.5, 2.0], [3.0, 1.0]]), tf.zeros([2, 1, 1, 4])]
    # Layer 1 moves by 0.5, 0, 0, 3: mean 3.5 / 4, sum per example 3.5 / 2. Layer 2: 1, 4.
    assert float(losses.vulnerability(clean, adversarial)) == pytest.approx((3.5 / 4 + 1) / 2)
    assert float(losses.vulnerability(clean, adversarial, "sum")) == pytest.approx(
        (3.5 / 2 + 4) / 2
    )
    with pytest.raises(ValueError, match="median"):
        losses.vulnerability(clean, adversarial, "median")


def test_every_latent_layer_carries_gradient():
    network = architectures.lenet5((28, 28, 1), 10)
    images = tf.random.stateless_uniform([4, 28, 28, 1], [0, 1])
    moved = tf.clip_by_value(images + 0.1, 0, 1)
    for layer in ("conv1", "conv2", "dense1"):
        with tf.GradientTape() as tape:
            value = losses.layer_vulnerability(network(images)[layer], network(moved)[layer])
        gradient = tape.gradient(value, network.get_layer(layer).kernel)
        assert float(tf.reduce_max(tf.abs(gradient))) > 0


def test_vulnerabilitys_gradient_agrees_with_a_finite_difference():
    network = architectures.lenet5((28, 28, 1), 10)
    images = tf.random.stateless_uniform([2, 28, 28, 1], [0, 1])
    # Not a multiple of the images: the same units would be open, and no bias would matter.
    moved = images**2
    bias = network.get_layer("conv2").bias

    def value():
        clean, adversarial = network(images), network(moved)
        keys = [k for k in clean if k != "logits"]
        return losses.vulnerability([clean[k] for k in keys], [adversarial[k] for k in keys])

    with tf.GradientTape() as tape:
        start = value()
    analytic = tape.gradient(start, bias).numpy()
    assert np.abs(analytic).max() > 1e-3
    channel, h = int(np.argmax(np.abs(analytic))), 1e-3
    step = np.zeros(50, np.float32)
    step[channel] = h
    bias.assign(step)
    up = float(value())
    bias.assign(-step)
    down = float(value())
    assert (up - down) / (2 * h) == pytest.approx(analytic[channel], rel=0.05)


def test_squared_norm_by_hand():
    assert float(losses.squared_norm([tf.constant([3.0]), tf.constant([[4.0]])])) == 12.5
