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


def small(*between, dtype="float32", last=None):
    images = x = keras.Input((8, 8, 3), dtype=dtype)
    for layer in between:
        x = layer(x)
    x = layers.Conv2D(8, 3, activation="relu", name="conv")(x)
    x = layers.Dense(4, activation=last, name="last")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(images, x)


def centred(x):
    """An activation of a user, which looks at the other channels."""
    return x - tf.reduce_mean(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("activation", ["softmax", "log_softmax", "sparsemax", centred])
def test_activations_that_mix_channels_are_refused_by_name(activation):
    inside = small(layers.Conv2D(6, 3, activation=activation, padding="same", name="mixed"))
    as_layer = small(layers.Conv2D(6, 3), layers.Activation(activation, name="mixed"))
    for model in (inside, as_layer):
        with pytest.raises(UsageError, match=r"layer 'mixed' cannot be frozen: its activation"):
            gating.add_gates(model)
    with pytest.raises(UsageError, match=r"layer 'last' .* must end in logits, without softmax"):
        gating.add_gates(small(last=activation))


def squared_relu(x):
    return tf.square(tf.nn.relu(x))


@pytest.mark.parametrize("activation", ["gelu", "hard_silu", "softplus", squared_relu])
def test_elementwise_activations_are_taken(activation):
    network = gating.add_gates(small(layers.Conv2D(6, 3, activation=activation, name="first")))
    assert "first_gate" in [gate.name for gate in gates_of(network)]


def test_state_that_is_not_a_weight_is_copied():
    images = np.random.default_rng(0).random((4, 8, 8, 3), np.float32)
    adapted = layers.Normalization()
    adapted.adapt(images)
    model = small(adapted)
    copied = gating.add_gates(model, None)(images)["logits"]
    np.testing.assert_allclose(copied, model(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "layer",
    [
        layers.Rescaling([1.0, 2.0, 3.0], [0.1, 0.2, 0.3]),
        layers.Rescaling(np.ones((1, 1, 3)) * 2),
        layers.Normalization(mean=0.5, variance=4.0, axis=None),
        layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 3.0]),
    ],
    ids=["list", "array", "one", "channels"],
)
def test_an_affine_input_layer_with_a_number_for_each_channel_is_folded(layer):
    images = np.random.default_rng(1).random((3, 8, 8, 3), np.float32)
    model = small(layer)
    np.testing.assert_allclose(FrozenNetwork(model)(images), model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (layers.Normalization(axis=(1, 2, 3)), "not one number for each"),
        (layers.Normalization(axis=1), "not one number for each"),
        (layers.Rescaling(np.ones((8, 1))), "its scale of shape .* is not one number"),
    ],
    ids=["all axes", "rows", "rescaling"],
)
def test_an_affine_layer_that_differs_by_place_is_refused(layer, why):
    if isinstance(layer, layers.Normalization):
        layer.adapt(np.random.default_rng(3).random((4, 8, 8, 3), np.float32))
    with pytest.raises(UsageError, match=why):
        gating.add_gates(small(layer))


def test_dropout_keeps_its_noise_shape():
    stochastic_depth = layers.Dropout(0.5, noise_shape=(None, 1, 1, 1), name="depth")
    network = gating.add_gates(small(layers.Conv2D(6, 3, activation="relu"), stochastic_depth))
    drawn = network.get_layer("depth")(tf.ones([64, 2, 2, 3]), training=True).numpy()
    assert set(np.unique(drawn)) == {0.0, 2.0}
    assert (drawn == drawn[:, :1, :1, :1]).all()


class Subclassed(keras.Model):
    pass


def test_models_that_cannot_be_gated_are_refused_in_a_line():
    image, any_size = keras.Input((8, 8, 3)), keras.Input((None, None, 3))
    pool = layers.GlobalAveragePooling2D
    x = layers.Conv2D(4, 3, activation="relu", name="conv")(image)
    y = layers.Conv2D(4, 3, activation="relu", name="other")(image)
    z = layers.Conv2D(4, 3, activation="relu", name="anywhere")(any_size)
    first = layers.Conv2D(6, 3, activation="relu", name="a")
    cases = {
        "takes uint8 images": small(dtype="uint8"),
        "images of one size": keras.Model(any_size, layers.Dense(4)(pool()(z))),
        "has 2 outputs; it must have one": keras.Model(
            image, [layers.Dense(4)(pool()(x)), layers.Dense(4)(pool()(y))]
        ),
        "it has gates already": gating.add_gates(small()),
        "no activation whose features": keras.Model(image, layers.Dense(4)(pool()(x + y))),
        "'noisy' draws noise": small(layers.RandomFlip(name="noisy")),
        "name of layer 'logits' is needed": small(
            layers.Conv2D(6, 3, activation="relu", name="logits")
        ),
        "name of layer 'a_gate' is needed": small(first, layers.Identity(name="a_gate")),
        "must be a functional model": Subclassed(),
    }
    for why, model in cases.items():
        with pytest.raises(UsageError, match=why):
            gating.add_gates(model)


def test_a_sequential_model_is_gated_as_a_functional_one():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(6, 3, activation="relu", name="conv"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(4, name="last"),
        ]
    )
    images = np.random.default_rng(2).random((2, 8, 8, 3), np.float32)
    copied = gating.add_gates(model, None)(images)["logits"]
    np.testing.assert_allclose(copied, model(images), rtol=1e-5, atol=1e-6)
