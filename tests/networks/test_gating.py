"""Gates in a user's own network."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from anpvs_tf.common.errors import UsageError
from anpvs_tf.methods.hyperparameters import Objective
from anpvs_tf.methods.optimizer import GroupedAdam
from anpvs_tf.methods.registry import METHODS
from anpvs_tf.methods.robust_classifier import RobustClassifier
from anpvs_tf.networks import architectures, gating
from anpvs_tf.networks.gate import gates_of
from anpvs_tf.pruning.frozen import FrozenNetwork

layers = keras.layers


def users_network():
    images = x = keras.Input((12, 12, 3))
    x = layers.Conv2D(6, 3, activation="relu", name="first")(x)
    x = layers.MaxPooling2D()(x)
    y = layers.ReLU(name="inner")(
        layers.BatchNormalization()(layers.Conv2D(7, 3, padding="same")(x))
    )
    y = layers.Conv2D(6, 3, padding="same")(y)
    x = layers.ReLU(name="sum")(layers.Add()([x, y]))
    x = layers.ReLU(name="dense_relu")(layers.Dense(9)(layers.Flatten()(x)))
    return keras.Model(images, layers.Dense(4)(x))


def test_gates_stand_where_removal_is_possible():
    network = gating.add_gates(users_network())
    # `first` feeds the addition too: its features cannot go.
    names = [gate.name for gate in gates_of(network)]
    assert names == ["inner_gate", "sum_gate", "dense_relu_gate"]
    assert list(network.output) == ["logits", "first", "inner", "sum", "dense_relu"]
    assert [gate.initial_a_raw for gate in gates_of(network)] == [2.0, 2.0, -1.0]


def test_the_copy_has_the_models_weights_and_its_own_variables():
    model = users_network()
    network = gating.add_gates(model)
    for gate in gates_of(network):
        gate.a_raw.assign(tf.fill([gate.features], 100.0))  # E[pi] = 0.99
        gate.b_raw.assign(tf.fill([gate.features], -8.0))  # and nearer to 1
    images = np.random.default_rng(0).random((2, 12, 12, 3), np.float32)
    np.testing.assert_allclose(network(images)["logits"], model(images), rtol=1e-3, atol=1e-4)
    before = model.get_weights()
    network.get_layer("first").kernel.assign(tf.zeros([3, 3, 3, 6]))
    np.testing.assert_array_equal(before[0], model.get_weights()[0])
    assert isinstance(gating.add_gates(model, None).output, dict)


@pytest.mark.parametrize("kind", gating.GATE_KINDS)
def test_it_trains_and_freezes(kind):
    network = gating.add_gates(users_network(), kind)
    objective = Objective(epsilon=0.1, step_size=0.05, attack_steps=2, train_examples=10)
    classifier = RobustClassifier(network, METHODS["anpvs"], objective)
    classifier.compile(optimizer=GroupedAdam(1e-3), jit_compile=False)
    images = np.random.default_rng(0).random((4, 12, 12, 3), np.float32)
    terms = classifier.train_step((tf.constant(images), tf.constant([0, 1, 2, 3])))
    assert all(np.isfinite(float(v)) for v in terms.values())
    frozen = FrozenNetwork(network)
    expected = network(images, training=False)["logits"].numpy()
    np.testing.assert_allclose(frozen(images), expected, atol=1e-5 * np.abs(expected).max())


def test_dropout_and_batch_statistics_are_shared_by_the_copies():
    images = x = keras.Input((8, 8, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(6, 3)(x)))
    x = layers.Dropout(0.5)(layers.Flatten()(x))
    x = layers.Dense(5, activation="relu")(x)
    network = gating.add_gates(keras.Model(images, layers.Dense(3)(x)))
    objective = Objective(epsilon=1e-12, step_size=1e-12, attack_steps=1, train_examples=10)
    classifier = RobustClassifier(network, METHODS["anpvs"], objective)
    classifier.compile(optimizer=GroupedAdam(1e-3), jit_compile=False)
    pixels = np.random.default_rng(0).random((4, 8, 8, 3), np.float32)
    terms = classifier.train_step((tf.constant(pixels), tf.constant([0, 1, 2, 0])))
    # The adversarial copy is the clean one: only noise of its own could move a feature.
    assert float(terms["vulnerability"]) < 1e-6
    noisy = keras.Model(
        images,
        layers.Dense(3)(
            layers.Flatten()(
                layers.ReLU()(layers.SpatialDropout2D(0.5, name="odd")(layers.Conv2D(6, 3)(images)))
            )
        ),
    )
    with pytest.raises(UsageError, match="'odd' draws noise"):
        gating.add_gates(noisy)


def test_resnet18_gates_blocks_and_stage_ends():
    network = architectures.resnet18((32, 32, 3), 10, "beta_bernoulli")
    gated = {gate.name.removesuffix("_gate"): gate.features for gate in gates_of(network)}
    inside = {f"block{s}_{b}_relu1": 32 * 2**s for s in range(1, 5) for b in (1, 2)}
    between = {f"block{s}_2_relu2": 32 * 2**s for s in range(1, 5)}
    assert gated == inside | between
    assert len(network.output) == 1 + 17
    parameters = sum(np.prod(v.shape) for v in network.trainable_variables if "gate" not in v.name)
    assert parameters == 11_173_962  # of the CIFAR form, as in public implementations
    # Half of the features inside a block gone: half of that block's multiplications.
    dense = FrozenNetwork(network, prune=False).multiplications
    assert dense == pytest.approx(0.5556e9, rel=0.01)
    gate = gates_of(network)[0]
    shut = np.arange(64) % 2 == 0
    gate.close(shut)
    block = 2 * 32 * 32 * 9 * 64 * 64
    assert FrozenNetwork(network).multiplications == dense - block // 2


@pytest.mark.parametrize(
    ("scope", "gated"),
    [("conv", {"inner_gate", "sum_gate"}), ("dense", {"dense_relu_gate"})],
)
def test_scope_of_a_users_network(scope, gated):
    network = gating.add_gates(users_network(), "information_bottleneck", scope)
    assert {gate.name for gate in gates_of(network)} == gated
    assert list(network.output) == ["logits", "first", "inner", "sum", "dense_relu"]


def test_what_cannot_be_gated_is_named():
    images = keras.Input((8, 8, 3))
    lstm = keras.Model(
        images,
        layers.Dense(2)(
            layers.LSTM(3, name="memory")(layers.Reshape((8, 24), name="reshape")(images))
        ),
    )
    with pytest.raises(UsageError, match="'reshape' cannot be frozen"):
        gating.add_gates(lstm)
    plain = keras.Model(images, layers.Dense(2)(layers.Flatten()(images)))
    with pytest.raises(UsageError, match="no activation"):
        gating.add_gates(plain)
    with pytest.raises(UsageError, match="unknown gate kind 'magic'"):
        gating.add_gates(users_network(), "magic")
    with pytest.raises(UsageError, match="unknown gate scope 'flat'; choose one of all, conv"):
        gating.add_gates(users_network(), scope="flat")
    twice = layers.Dense(192, activation="relu", name="twice")
    flat = layers.Flatten()(images)
    shared = keras.Model(images, layers.Dense(2)(twice(twice(flat))))
    with pytest.raises(UsageError, match="'twice' is called more than once"):
        gating.add_gates(shared)
