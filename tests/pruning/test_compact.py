"""The compact network against the gated one, by Keras's own inference."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from gate_states import KINDS, set_random

from anpvs_tf.common.errors import UsageError
from anpvs_tf.methods.optimizer import is_gate_variable
from anpvs_tf.networks.architectures import lenet5, resnet18, vgg16
from anpvs_tf.networks.gate import gates_of
from anpvs_tf.networks.gating import GATE_KINDS
from anpvs_tf.pruning.compact import freeze

layers = keras.layers


def plain_convolutions(kind="beta_bernoulli"):
    """Normalisation before padding, a gate through a pool, batch normalisation after a gate."""
    gate = GATE_KINDS[kind]
    images = x = keras.Input((12, 12, 3))
    x = layers.Normalization(mean=[0.4, 0.5, 0.6], variance=[0.1, 0.2, 0.3])(x)
    x = layers.Conv2D(6, 3, padding="same", activation="relu")(x)
    x = gate(name="a")(x)
    x = layers.MaxPooling2D()(x)
    x = layers.BatchNormalization()(x)
    x = layers.Conv2D(5, 3, strides=2, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization()(x)
    x = layers.LeakyReLU(negative_slope=0.1)(x)
    x = gate(name="b")(x)
    x = gate(name="c")(layers.Flatten()(x))
    x = layers.BatchNormalization()(x)
    x = layers.Dense(7, activation="relu")(x)
    x = layers.Dropout(0.5)(gate(name="d")(x))
    return keras.Model(images, {"logits": layers.Dense(4)(x)})


def branches(kind="beta_bernoulli"):
    """Residual and concatenated branches, depthwise, padding, average and global pools."""
    gate = GATE_KINDS[kind]
    images = keras.Input((10, 10, 2))
    x = layers.Rescaling(2.0, offset=-1.0)(images)
    x = stem = layers.ReLU()(layers.Conv2D(6, 3, padding="same")(x))
    x = gate(name="a")(x)
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(5, 3, padding="same")(x)))
    x = gate(name="b")(x)
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu")(x)
    x = layers.Conv2D(6, 1)(x)
    x = gate(name="c")(layers.Add()([x, stem]))
    x = layers.AveragePooling2D(2)(x)
    left = layers.Conv2D(4, 3, activation="tanh")(layers.ZeroPadding2D(1)(x))
    left = gate(name="d")(left)
    x = layers.Concatenate()([left, layers.Activation("sigmoid")(x)])
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, layers.Dense(3)(x))


NETWORKS = {
    "plain": plain_convolutions,
    "branches": branches,
    "lenet5": lambda kind="beta_bernoulli": lenet5((16, 16, 1), 10, gate=kind),
    "lenet5_ungated": lambda kind=None: lenet5((16, 16, 1), 10),
}


def randomise(network, rng):
    """Random weights and batch statistics."""
    for variable in network.weights:
        shape = variable.shape
        if variable.name in ("moving_variance", "variance"):
            variable.assign(rng.uniform(0.2, 2.0, shape))
        elif variable.dtype == "float32" and len(shape) and not is_gate_variable(variable):
            variable.assign(rng.normal(0.0, 0.5 / np.sqrt(max(shape[0], 1)), shape))


def close_gates(network, closed, rng):
    """Prunes the features where `closed` ({gate's name: bool}) holds; the others are open."""
    for gate in gates_of(network):
        set_random(gate, ~closed.get(gate.name, np.zeros(gate.features, bool)), rng)


def assert_same_function(network, compact, rng):
    images = tf.constant(rng.uniform(0, 1, (3, *network.inputs[0].shape[1:])), tf.float32)
    found = []
    for model in (network, compact):
        with tf.GradientTape() as tape:
            tape.watch(images)
            logits = model(images, training=False)
            logits = logits["logits"] if isinstance(logits, dict) else logits
            loss = tf.reduce_sum(logits * tf.range(1.0, logits.shape[-1] + 1.0))
        found.append((logits.numpy(), tape.gradient(loss, images).numpy()))
    for expected, got in zip(*found, strict=True):
        assert np.abs(expected).max() > 0
        assert np.abs(expected - got).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("share", "kind"), [(0.0, KINDS[0]), (0.3, KINDS[0]), *((0.6, kind) for kind in KINDS)]
)
def test_random_pruning(name, share, kind):
    rng = np.random.default_rng([18, int(100 * share)])
    network = NETWORKS[name](kind)
    randomise(network, rng)
    closed = {g.name: rng.uniform(size=g.features) < share for g in gates_of(network)}
    for shut in closed.values():
        shut[rng.integers(len(shut))] = False
    close_gates(network, closed, rng)
    assert_same_function(network, freeze(network), rng)
    assert_same_function(network, freeze(network, prune=False), rng)


@pytest.mark.parametrize("name", ["plain", "branches", "lenet5"])
@pytest.mark.parametrize("kept", [0, -1])
def test_all_but_one_feature_pruned(name, kept):
    rng = np.random.default_rng(3)
    network = NETWORKS[name]()
    randomise(network, rng)
    closed = {}
    for gate in gates_of(network):
        closed[gate.name] = np.ones(gate.features, bool)
        closed[gate.name][kept] = False
    close_gates(network, closed, rng)
    if name == "branches":
        # A ReLU that is off for good would make the comparison empty.
        network.layers[2].bias.assign(np.ones(6))
    compact = freeze(network)
    images = rng.uniform(0, 1, (3, *network.inputs[0].shape[1:])).astype(np.float32)
    expected = network.predict(images, verbose=0)
    expected = expected["logits"] if isinstance(expected, dict) else expected
    np.testing.assert_allclose(compact.predict(images, verbose=0), expected, rtol=1e-5, atol=1e-6)


def test_pruned_weights_are_gone():
    network = lenet5((28, 28, 1), 10, gate="beta_bernoulli")
    rng = np.random.default_rng(0)
    closed = {}
    for gate, active in zip(gates_of(network), (2, 32, 252, 108), strict=True):
        closed[gate.name] = np.ones(gate.features, bool)
        closed[gate.name][rng.permutation(gate.features)[:active]] = False
    close_gates(network, closed, rng)
    # The flattened positions of a pruned channel of conv2 are gone with it.
    positions = ~closed["flatten_gate"].reshape(16, 50) & ~closed["conv2_gate"]
    channels = positions.any(axis=0).sum()
    rows = positions.sum()
    shapes = [w.shape for w in freeze(network).weights if len(w.shape) > 1]
    assert shapes == [(5, 5, 1, 2), (5, 5, 2, channels), (rows, 108), (108, 10)]


@pytest.mark.parametrize("gate", ["conv1", "conv2", "flatten", "dense1"])
def test_a_layer_without_features_is_refused(gate):
    network = lenet5((16, 16, 1), 10, gate="beta_bernoulli")
    units = network.get_layer(f"{gate}_gate").features
    close_gates(network, {f"{gate}_gate": np.ones(units, bool)}, np.random.default_rng(0))
    with pytest.raises(UsageError, match="pruned"):
        freeze(network)


def test_own_weights():
    network = lenet5((16, 16, 1), 10, gate="beta_bernoulli")
    compact = freeze(network)
    images = np.random.default_rng(0).uniform(size=(2, 16, 16, 1)).astype(np.float32)
    before = compact.predict(images, verbose=0)
    randomise(network, np.random.default_rng(1))
    np.testing.assert_array_equal(compact.predict(images, verbose=0), before)


def test_mixed_precision_network_freezes_to_float32():
    network = lenet5((16, 16, 1), 10, gate="beta_bernoulli", dtype="mixed_bfloat16")
    compact = freeze(network)
    assert {layer.compute_dtype for layer in compact.layers} == {"float32"}
    reference = lenet5((16, 16, 1), 10, gate="beta_bernoulli")
    reference.set_weights(network.get_weights())
    assert_same_function(reference, compact, np.random.default_rng(0))


def test_saves_and_loads(tmp_path):
    network = NETWORKS["plain"]()
    rng = np.random.default_rng(5)
    randomise(network, rng)
    closed = {"c": rng.uniform(size=network.get_layer("c").features) < 0.5}
    close_gates(network, closed, rng)
    compact = freeze(network)
    compact.save(tmp_path / "compact.keras")
    assert_same_function(network, keras.models.load_model(tmp_path / "compact.keras"), rng)


def test_vgg16_folds_exactly():
    network = vgg16((32, 32, 3), 10, gate="beta_bernoulli")
    rng = np.random.default_rng(2)
    for variable in network.weights:
        if variable.name == "moving_variance":
            variable.assign(rng.uniform(0.5, 2.0, variable.shape))
        elif variable.name == "moving_mean":
            variable.assign(rng.normal(0, 0.1, variable.shape))
    closed = {g.name: rng.uniform(size=g.features) < 0.7 for g in gates_of(network)}
    close_gates(network, closed, rng)
    assert_same_function(network, freeze(network), rng)


@pytest.mark.parametrize("gate", ["a", "d"])
def test_a_pruned_branch_leaves_its_constant(gate):
    network = NETWORKS["branches"]()
    rng = np.random.default_rng(7)
    randomise(network, rng)
    close_gates(network, {gate: np.ones(network.get_layer(gate).features, bool)}, rng)
    assert_same_function(network, freeze(network), rng)


def test_resnet18():
    network = resnet18((32, 32, 3), 10, gate="beta_bernoulli")
    rng = np.random.default_rng(11)
    closed = {g.name: rng.uniform(size=g.features) < 0.7 for g in gates_of(network)}
    close_gates(network, closed, rng)
    compact = freeze(network)
    assert compact.count_params() < network.count_params() / 2
    assert_same_function(network, compact, rng)
