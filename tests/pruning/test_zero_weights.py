"""Networks with zero weights, frozen: the same function without the features that vanish."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_networks import logits_and_gradient

from anpvs_tf.common.errors import UsageError
from anpvs_tf.methods.hyperparameters import Objective
from anpvs_tf.methods.optimizer import GroupedAdam
from anpvs_tf.methods.registry import METHODS
from anpvs_tf.methods.robust_classifier import RobustClassifier
from anpvs_tf.networks import architectures, bayesian
from anpvs_tf.networks.beta_bernoulli import BetaBernoulliGate
from anpvs_tf.pruning import admm, efficiency
from anpvs_tf.pruning.admm import WeightPruning
from anpvs_tf.pruning.compact import freeze
from anpvs_tf.pruning.frozen import FrozenNetwork

layers = keras.layers


def padded():
    """Padded convolutions with biases, depthwise ones, sums and concatenations."""
    images = keras.Input((12, 12, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(images)
    y = layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(x))
    y = layers.DepthwiseConv2D(3, padding="same", activation="relu")(y)
    x = layers.Add()([x, layers.Conv2D(8, 3, padding="same")(layers.ReLU()(y))])
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Concatenate()([x, layers.Conv2D(6, 3, padding="same", activation="sigmoid")(x)])
    x = layers.Conv2D(10, 3, strides=2)(layers.ZeroPadding2D(1)(x))
    x = layers.Flatten()(layers.MaxPooling2D()(layers.LeakyReLU()(x)))
    x = layers.Dense(20, activation="elu")(x)
    return keras.Model(images, {"logits": layers.Dense(5)(x)})


NETWORKS = {
    "padded": padded,
    "lenet5": lambda: architectures.lenet5((20, 20, 1), 4),
    "vgg16": lambda: architectures.vgg16((32, 32, 3), 10),
}


def randomise(network, structure, ratio, rng):
    """Random weights and statistics; kernels, also depthwise ones, with zeros."""
    for layer in network.layers:
        for weight in layer.weights:
            name = weight.name
            if name == "kernel":
                kernel = rng.normal(0, np.sqrt(2 / np.prod(weight.shape[:-1])), weight.shape)
                if layer.name != "logits" and weight.shape[-1] > 5:
                    kernel *= admm.kept(kernel, ratio, structure)
                if isinstance(layer, layers.DepthwiseConv2D):
                    kernel[:, :, ::3] = 0.0
                weight.assign(kernel)
            elif name in ("gamma", "moving_variance"):
                weight.assign(rng.uniform(0.5, 2, weight.shape))
            elif name in ("bias", "beta", "moving_mean"):
                weight.assign(rng.normal(0, 0.3, weight.shape))


def assert_same(network, others, tolerance=2e-5):
    rng = np.random.default_rng(9)
    images = tf.constant(rng.random((3, *network.inputs[0].shape[1:])), tf.float32)
    expected = logits_and_gradient(lambda x: network(x, training=False), images)
    for other in others:
        for found, wanted in zip(logits_and_gradient(other, images), expected, strict=True):
            assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("name", "structure", "ratio"),
    [
        (name, structure, ratio)
        for name in ("padded", "lenet5")
        for structure, ratio in (("irregular", 0.9), ("column", 0.9), ("filter", 0.6))
    ]
    + [("vgg16", "filter", 0.7)],
)
def test_same_logits_and_input_gradient(name, structure, ratio):
    network = NETWORKS[name]()
    # An irregular 90 % of a dense layer: some rows and columns are all zero, most are not.
    randomise(network, structure, ratio, np.random.default_rng(2))
    frozen, dense = FrozenNetwork(network), FrozenNetwork(network, prune=False)
    assert_same(network, [frozen, freeze(network)])
    share = frozen.multiplications / dense.multiplications
    # A filter leaves with what reads it; a column only if the whole channel has none left.
    limits = {"filter": 0.4, "column": 0.95, "irregular": 1.0}
    assert share < limits[structure] or name == "padded"


def test_what_vanishes_by_hand():
    network = architectures.lenet5((28, 28, 1), 10)
    randomise(network, "irregular", 0.0, np.random.default_rng(0))
    conv1, conv2, dense1 = (network.get_layer(n) for n in ("conv1", "conv2", "dense1"))
    kernel = conv1.kernel.numpy()
    kernel[..., 5:] = 0.0  # 5 features are left; the others are relu(bias).
    conv1.kernel.assign(kernel)
    kernel = conv2.kernel.numpy()
    kernel[:, :, 3:] = 0.0  # Nobody reads the features 3 and 4.
    kernel[..., 10:] = 0.0
    conv2.kernel.assign(kernel)
    kernel = dense1.kernel.numpy()
    kernel[:, 40:] = 0.0
    kernel[:50] = 0.0  # The first place of the 4 x 4 counts nowhere.
    kernel[np.arange(800) % 50 == 0] = 0.0  # Nor does the first channel anywhere.
    dense1.kernel.assign(kernel)

    frozen = FrozenNetwork(network)
    shapes = [tuple(weights[0].shape) for weights in frozen.fold() if weights]
    assert shapes == [(5, 5, 1, 3), (5, 5, 3, 9), (144, 40), (40, 10)]
    compact = freeze(network)
    assert [w.shape for w in compact.weights if len(w.shape) > 1] == [
        (5, 5, 1, 3),
        (5, 5, 3, 9),
        (135, 40),
        (40, 10),
    ]
    assert_same(network, [frozen, compact])
    # Every feature but those that vanish.
    assert efficiency.active_features(network) == {
        "conv1": [3, 20],
        "conv2": [9, 50],
        "dense1": [40, 500],
    }
    weights = efficiency.nonzero_weights(network)
    assert weights["conv2"] == [25 * 3 * 10, 25 * 20 * 50]
    assert weights["logits"] == [5000, 5000]
    costs = efficiency.costs(compact, freeze(network, prune=False))
    assert costs["flops"][1] == 4_615_940
    assert costs["feature_map_values"] == [24 * 24 * 3 + 8 * 8 * 9 + 40, 24 * 24 * 20 + 3200 + 500]


def test_scales_of_zero_make_constants():
    images = keras.Input((8, 8, 1))
    x = layers.Conv2D(6, 3, padding="same", use_bias=False, name="conv")(images)
    x = layers.ReLU()(layers.BatchNormalization(name="bn")(x))
    x = layers.Flatten()(layers.Conv2D(4, 3, padding="same")(x))
    network = keras.Model(images, {"logits": layers.Dense(3, name="logits")(x)})
    randomise(network, "irregular", 0.0, np.random.default_rng(1))
    bn = network.get_layer("bn")
    bn.gamma.assign([0.0, 1.0, 0.0, 0.0, 1.0, 1.0])
    bn.beta.assign([0.0, 0.1, 0.7, -0.3, 0.2, 0.1])
    frozen = FrozenNetwork(network)
    assert frozen.fold()[0][0].shape == (3, 3, 1, 3)
    assert_same(network, [frozen, freeze(network)])


def test_one_constant_logit_is_computed_and_a_constant_network_refused():
    network = architectures.lenet5((20, 20, 1), 4)
    kernel = network.get_layer("logits").kernel
    kernel.assign(kernel.numpy() * [1, 0, 1, 1])
    assert_same(network, [FrozenNetwork(network), freeze(network)])
    kernel.assign(np.zeros(kernel.shape))
    with pytest.raises(UsageError, match="the network is constant"):
        FrozenNetwork(network)


def test_posterior_means_of_zero_are_not_zero_weights():
    images = keras.Input((4,))
    x = bayesian.BayesianDense(3, kernel_initializer="zeros", name="dense")(images)
    network = keras.Model(images, {"logits": layers.Dense(2)(x)})
    assert FrozenNetwork(network).fold()[0][0].shape == (4, 3)


def test_zeros_that_may_move_stay_in_the_crafting_network():
    """A residual branch often begins with a scale of zero."""
    images = keras.Input((8, 8, 2))
    y = BetaBernoulliGate(name="gate")(layers.ReLU()(layers.Conv2D(4, 3, padding="same")(images)))
    y = layers.Conv2D(2, 3, padding="same")(y)
    y = layers.BatchNormalization(gamma_initializer="zeros")(y)
    x = layers.Flatten()(layers.Add()([images, y]))
    network = keras.Model(images, {"logits": layers.Dense(3)(x)})
    objective = Objective(epsilon=0.1, step_size=0.1, attack_steps=1, train_examples=10)
    classifier = RobustClassifier(network, METHODS["anp"], objective)
    assert FrozenNetwork(network).multiplications < 0.1 * classifier.crafting.frozen.multiplications
    assert not classifier.crafting.refreeze()


@pytest.mark.parametrize("name", ["batch_norm", "lenet5"])
def test_the_crafting_network_loses_what_is_cut_and_stays_exact(name):
    if name == "lenet5":
        network = NETWORKS[name]()
    else:
        images = keras.Input((12, 12, 1))
        x = layers.Conv2D(10, 3, padding="same", use_bias=False)(images)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.Conv2D(12, 3, padding="same")(x)
        x = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.BatchNormalization()(x)))
        network = keras.Model(images, {"logits": layers.Dense(4)(x)})
    rng = np.random.default_rng(3)
    randomise(network, "irregular", 0.0, rng)
    images = tf.constant(rng.random((8, *network.inputs[0].shape[1:])), tf.float32)
    labels = tf.constant(np.arange(8) % 4)
    optimizer = GroupedAdam(1e-2)
    optimizer.build(network.trainable_variables)
    constraint = WeightPruning(
        network, 0.5, "filter", admm_epochs=1, interval=1, rho=0.1, rho_growth=1.0
    )

    def train():
        with tf.GradientTape() as tape:
            logits = network(images, training=True)["logits"]
            loss = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        variables = network.trainable_variables
        gradients = tape.gradient(loss, variables)
        optimizer.apply(constraint.mask_gradients(gradients, variables), variables)

    before = FrozenNetwork(network, support=constraint.support())
    assert not constraint.begin_epoch(1, optimizer)
    train()
    assert constraint.begin_epoch(2, optimizer)
    after = FrozenNetwork(network, support=constraint.support())
    # All layers but the first and the last lose half of their inputs and of their outputs.
    assert after.multiplications < 0.35 * before.multiplications
    if name == "batch_norm":
        # Pruned features are known to be zero, so that no bias depends on the place.
        assert all(w.shape.rank == 1 for weights in after.fold() for w in weights[1:2])
    for _ in range(3):
        train()
    assert_same(network, [before, after])
