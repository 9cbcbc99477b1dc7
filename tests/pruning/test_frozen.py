"""The frozen network against the gated one: same logits, same input gradient."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from gate_states import KINDS, set_random
from small_networks import NETWORKS, lenet, logits_and_gradient, randomise, small_vgg

from anpvs_tf.common.errors import UsageError
from anpvs_tf.networks.beta_bernoulli import BetaBernoulliGate
from anpvs_tf.networks.gate import gates_of
from anpvs_tf.pruning.frozen import FrozenNetwork

layers = keras.layers


def assert_same(network, frozen, rng, tolerance=1e-5):
    images = tf.constant(rng.random((3, *network.inputs[0].shape[1:])), tf.float32)
    expected = logits_and_gradient(lambda x: network(x, training=False), images)
    for found, wanted in zip(logits_and_gradient(frozen, images), expected, strict=True):
        assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("share", "kind"),
    [*((share, KINDS[0]) for share in (0.0, 0.3, 0.9, None)), *((0.6, kind) for kind in KINDS)],
)
@pytest.mark.parametrize("name", NETWORKS)
def test_same_logits_and_input_gradient(name, share, kind):
    rng = np.random.default_rng(int(100 * (share or 1.7)))
    network = NETWORKS[name](kind)
    randomise(network, share, rng)
    frozen = FrozenNetwork(network)
    assert_same(network, frozen, rng)
    dense = FrozenNetwork(network, prune=False)
    assert_same(network, dense, rng)
    if share == 0.9:
        assert frozen.multiplications < 0.5 * dense.multiplications or name == "residual"


def test_removal_is_real():
    network = lenet()
    for gate, kept in zip(gates_of(network), (5, 10, 800, 40), strict=True):
        shut = np.arange(gate.features) >= kept
        gate.close(shut)
    frozen = FrozenNetwork(network)
    shapes = [tuple(weights[0].shape) for weights in frozen.fold() if weights]
    assert shapes == [(5, 5, 1, 5), (5, 5, 5, 10), (160, 40), (40, 10)]
    # Multiply-adds by hand: 24^2 * 25 * 5, 8^2 * 25 * 5 * 10, 160 * 40, 40 * 10.
    assert frozen.multiplications == 72_000 + 80_000 + 6_400 + 400


def test_follows_the_live_variables():
    rng = np.random.default_rng(0)
    network = small_vgg()
    randomise(network, 0.5, rng)
    frozen = FrozenNetwork(network)
    kernel = network.layers[2].kernel
    kernel.assign(kernel * 1.5)
    gate = gates_of(network)[0]
    gate.a_raw.assign(tf.where(gate.mean_mask() > 0, gate.a_raw + 0.7, gate.a_raw))
    assert_same(network, frozen, rng)


def test_gradient_reaches_the_live_variables():
    network = small_vgg()
    randomise(network, 0.3, np.random.default_rng(0))
    frozen = FrozenNetwork(network)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(frozen(tf.ones([1, 8, 8, 3])) ** 2)
    kernels = [v for v in network.trainable_variables if v.ndim > 1]
    assert all(g is not None for g in tape.gradient(loss, kernels))


def test_bfloat16_is_close():
    rng = np.random.default_rng(0)
    network = lenet()
    randomise(network, 0.3, rng)
    images = tf.constant(rng.random((3, 28, 28, 1)), tf.float32)
    exact = logits_and_gradient(FrozenNetwork(network), images)
    rounded = logits_and_gradient(FrozenNetwork(network, dtype="bfloat16"), images)
    # Eight bits of mantissa; where a maximum or a ReLU tips over, a gradient jumps.
    for wanted, found, limit in zip(exact, rounded, (0.03, 0.2), strict=True):
        assert np.linalg.norm(found - wanted) < limit * np.linalg.norm(wanted)


def test_a_whole_layer_pruned():
    network = lenet()
    gate = gates_of(network)[1]
    gate.close(np.ones(gate.features, bool))
    with pytest.raises(UsageError, match="every path from the image to the logits is pruned"):
        FrozenNetwork(network)
    # Around a residual branch there is another path: the branch becomes a constant.
    images = keras.Input((8, 8, 4))
    y = layers.Conv2D(6, 3, padding="same", bias_initializer="ones")(images)
    y = BetaBernoulliGate(name="gate")(layers.ReLU()(y))
    y = layers.Conv2D(4, 3, padding="same", bias_initializer="ones")(y)
    x = layers.Dense(3)(layers.Flatten()(layers.Add()([images, y])))
    network = keras.Model(images, x)
    gate = gates_of(network)[0]
    gate.close(np.ones(gate.features, bool))
    frozen = FrozenNetwork(network)
    assert_same(network, frozen, np.random.default_rng(0))
    assert frozen.multiplications == 8 * 8 * 4 * 3


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (layers.Activation("softmax", name="odd"), "softmax"),
        (layers.Softmax(name="odd"), "type Softmax"),
        (layers.Rescaling([[1.0], [2.0]], name="odd"), "not one number for each"),
    ],
)
def test_a_layer_that_cannot_be_frozen_is_named(layer, reason):
    images = keras.Input((8, 8, 4))
    network = keras.Model(images, layer(images))
    with pytest.raises(UsageError, match=f"'odd' cannot be frozen.*{reason}"):
        FrozenNetwork(network)


def chain(blocks):
    """Residual blocks after one another, with pruned features whose constants are not 0."""
    image = keras.Input((6, 6, 3))
    x = layers.Conv2D(3, 3, padding="same", activation="relu")(image)
    for block in range(blocks):
        y = BetaBernoulliGate(name=f"gate{block}")(layers.ReLU()(x))
        y = layers.Conv2D(3, 3, padding="same")(layers.BatchNormalization()(y))
        x = layers.Add()([x, y])
    network = keras.Model(image, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))
    for gate in gates_of(network):
        set_random(gate, np.arange(3) > 0, np.random.default_rng(0))
    return network


def test_folding_takes_time_linear_in_the_depth():
    def operations(blocks):
        frozen = FrozenNetwork(chain(blocks))
        graph = tf.function(frozen.fold, autograph=False).get_concrete_function().graph
        return len(graph.get_operations())

    assert operations(12) < 2.2 * operations(6)
