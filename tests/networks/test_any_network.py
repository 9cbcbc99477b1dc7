"""Networks of any layers: gated in evaluation = frozen = compact, whatever is pruned."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from gate_states import set_random
from small_networks import logits_and_gradient, randomise

from anpvs_tf.common.errors import UsageError
from anpvs_tf.networks import graph
from anpvs_tf.networks.beta_bernoulli import BetaBernoulliGate
from anpvs_tf.networks.gate import gates_of
from anpvs_tf.networks.gating import add_gates
from anpvs_tf.pruning import compact, efficiency, open_operations
from anpvs_tf.pruning.frozen import FrozenNetwork
from anpvs_tf.pruning.layer_rules import RULES
from anpvs_tf.training import shrinking

layers = keras.layers


@keras.saving.register_keras_serializable("tests")
class Halved(keras.layers.Layer):
    """A user's own pooling: the mean of the rows' halves, and a step that mixes nothing."""

    def call(self, x):
        half = x.shape[1] // 2
        return (x[:, :half] + x[:, -half:]) / 2

    def compute_output_shape(self, input_shape):
        return (input_shape[0], input_shape[1] // 2, *input_shape[2:])


def conv(x, width, **options):
    return layers.Conv2D(width, 3, padding="same", **options)(x)


def squeezed(x):
    """Squeeze and excite."""
    y = layers.GlobalAveragePooling2D()(x)
    y = layers.Reshape((1, 1, x.shape[-1]))(y)
    y = layers.Conv2D(3, 1, activation="relu")(y)
    return layers.Multiply()([x, layers.Conv2D(x.shape[-1], 1, activation="sigmoid")(y)])


def attended(x):
    flat = layers.Reshape((x.shape[1] * x.shape[2], x.shape[3]))(x)
    mixed = layers.MultiHeadAttention(2, 3)(flat, flat)
    return layers.Reshape(x.shape[1:])(mixed)


def inception(x):
    """Branches that are concatenated behind their activations."""
    y = conv(x, 5, activation="relu")
    return layers.Concatenate()([conv(x, 4, activation="relu"), conv(y, 6, activation="relu")])


def u_net(x):
    y = conv(layers.MaxPooling2D(2, padding="same")(x), 6, activation="relu")
    y = layers.Conv2DTranspose(4, 2, strides=2, activation="relu")(y)
    y = layers.Cropping2D(((0, y.shape[1] - x.shape[1]), (0, y.shape[2] - x.shape[2])))(y)
    return layers.Concatenate()([x, y])


def dense_block(x):
    for _ in range(2):
        y = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.Concatenate()([x, conv(y, 3)])
    return x


def in_sequence(x):
    y = layers.Reshape((x.shape[1] * x.shape[2], x.shape[3]))(x)
    y = layers.MaxPooling1D(1)(layers.Conv1D(3, 3, padding="same", activation="relu")(y))
    y = layers.DepthwiseConv1D(3, padding="same", depth_multiplier=2)(y)
    return layers.Reshape((*x.shape[1:3], 6))(layers.PReLU(shared_axes=[1])(y))


def attended_places(x):
    """A factor and a summand of one channel."""
    seen = layers.Conv2D(1, 3, padding="same", activation="sigmoid")(x)
    return layers.Add()([layers.Multiply()([x, seen]), seen])


def by_constants(x):
    """A product, a mean and a maximum of what is constant where it is pruned, but not 0."""
    y = layers.BatchNormalization()(conv(x, 6, activation="relu"))
    y = layers.Multiply()([y, layers.Average()([y, y])])
    return layers.Maximum()([y, y])


def branch(x):
    y = layers.ReLU()(layers.BatchNormalization()(conv(x, 6)))
    return conv(y, x.shape[-1])


# Each of [batch, H, W, C] -> [batch, H', W', C'], with the layers that people's networks have.
BLOCKS = {
    "conv": lambda x: conv(x, 7, activation="relu"),
    "normalised": lambda x: layers.ReLU()(layers.BatchNormalization()(conv(x, 6, use_bias=False))),
    "no scale": lambda x: layers.ELU()(layers.BatchNormalization(scale=False)(conv(x, 5))),
    "residual": lambda x: layers.ReLU()(layers.Add()([x, branch(x)])),
    "difference": lambda x: layers.Subtract()([branch(x), x]),
    "largest": lambda x: layers.Maximum()([x, branch(x)]),
    "operators": lambda x: (x + 3.0) * 0.5 - 1.0,
    "sum by operator": lambda x: x + branch(x),
    "hard swish": lambda x: x * layers.ReLU(6.0)(x + 3.0) * (1 / 6),
    "squeeze": squeezed,
    "depthwise": lambda x: layers.ReLU()(layers.DepthwiseConv2D(3, padding="same")(x)),
    "multiplier": lambda x: layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same")(x),
    "grouped": lambda x: conv(conv(x, 4, activation="relu"), 6, groups=2, activation="relu"),
    "grouped unevenly": lambda x: conv(
        conv(x, 6, groups=2 if x.shape[-1] % 2 == 0 else 1, activation="relu"), 9, groups=3
    ),
    "depthwise by groups": lambda x: conv(
        layers.BatchNormalization()(conv(x, 5, activation="relu")), 10, groups=5, activation="relu"
    ),
    "multiplied": lambda x: layers.ReLU()(
        layers.DepthwiseConv2D(3, depth_multiplier=2)(
            layers.ZeroPadding2D()(conv(x, 5, activation="relu"))
        )
    ),
    "separable, dilated": lambda x: layers.SeparableConv2D(
        5, 3, padding="same", dilation_rate=2, depth_multiplier=2, use_bias=False
    )(conv(x, 6, activation="relu")),
    "separable": lambda x: layers.SeparableConv2D(5, 3, padding="same", activation="relu")(x),
    "transposed": lambda x: layers.MaxPooling2D()(layers.Conv2DTranspose(5, 3, strides=2)(x)),
    "enlarged": lambda x: layers.Conv2DTranspose(
        5, 3, strides=1, padding="same", activation="relu"
    )(layers.BatchNormalization()(conv(x, 6, activation="relu"))),
    "u-net": u_net,
    "inception": inception,
    "dense block": dense_block,
    "sequence": in_sequence,
    "places": attended_places,
    "constants": by_constants,
    "dilated": lambda x: conv(x, 6, dilation_rate=2, activation="gelu"),
    "layer norm": lambda x: conv(layers.LayerNormalization()(x), 6, activation="relu"),
    "group norm": lambda x: layers.ReLU()(layers.GroupNormalization(2)(conv(x, 4))),
    "prelu": lambda x: layers.PReLU(shared_axes=[1, 2])(conv(x, 6)),
    "prelu of places": lambda x: layers.PReLU()(layers.BatchNormalization()(conv(x, 6))),
    "crop": lambda x: layers.ZeroPadding2D(1)(layers.Cropping2D(1)(layers.UpSampling2D(1)(x))),
    "permute": lambda x: layers.Permute((2, 1, 3))(x),
    "concatenate": lambda x: layers.Concatenate()([x, branch(x)]),
    "nested": lambda x: keras.Sequential(
        [keras.Input(x.shape[1:]), layers.Conv2D(6, 1, activation="relu"), layers.Dense(5)]
    )(x),
    "attention": attended,
    "dense": lambda x: layers.Dense(6, activation="tanh")(x),
    "depth": lambda x: x + layers.Dropout(0.2, noise_shape=(None, 1, 1, 1))(branch(x)),
}


def built(names):
    """A network of blocks, between a convolution and a dense layer."""
    x = images = keras.Input((6, 6, 3))
    x = conv(x, 8, activation="relu")
    for name in names:
        x = BLOCKS[name](x)
    x = layers.Flatten()(x) if len(names) % 2 else layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(9, activation="relu")(x)
    return keras.Model(images, layers.Dense(4)(x))


def random_gates(network, share, rng):
    randomise_all(network, rng)
    for gate in gates_of(network):
        is_open = rng.random(gate.features) >= share
        is_open[0] = True
        set_random(gate, is_open, rng)


def randomise_all(network, rng):
    for weight in network.weights:
        if not weight.trainable and "variance" not in weight.path:
            continue
        if "gate" not in weight.path:
            low = 0.5 if "variance" in weight.path or "gamma" in weight.path else -0.6
            weight.assign(rng.uniform(low, 0.9, weight.shape))


def assert_all_equal(network, rng, tolerance=1e-5):
    images = tf.constant(rng.random((2, *network.inputs[0].shape[1:])), tf.float32)
    expected = logits_and_gradient(lambda x: network(x, training=False), images)
    for function in (FrozenNetwork(network), compact.freeze(network)):
        for found, wanted in zip(logits_and_gradient(function, images), expected, strict=True):
            assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


@pytest.mark.parametrize("block", BLOCKS)
def test_gated_frozen_compact_and_narrow_are_equal_with_every_layer(block):
    rng = np.random.default_rng(sorted(BLOCKS).index(block))
    network = add_gates(built([block]), coupled=True)
    random_gates(network, 0.5, rng)
    assert_all_equal(network, rng)
    assert_narrow_is_equal(network, rng)
    nodes = graph.nodes_of(network, network.output["logits"])
    whole = FrozenNetwork(network, prune=False).multiplications
    assert open_operations.multiplications(nodes, {}) == whole


def assert_narrow_is_equal(network, rng):
    removed = {gate.name: ~gate.is_open().numpy() for gate in gates_of(network)}
    small = shrinking.shrink(network, removed).network
    assert small.count_params() <= network.count_params()
    images = tf.constant(rng.random((2, *network.inputs[0].shape[1:])), tf.float32)
    found, wanted = (model(images, training=False)["logits"] for model in (small, network))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("seed", range(6))
def test_gated_frozen_and_compact_are_equal_in_random_graphs(seed):
    rng = np.random.default_rng(seed)
    names = [str(name) for name in rng.choice(list(BLOCKS), 3 + seed % 2, replace=False)]
    network = add_gates(built(names), coupled=bool(seed % 2))
    random_gates(network, rng.choice([0.2, 0.5, 0.9]), rng)
    assert_all_equal(network, rng, 1e-4)


def both(x):
    return layers.Concatenate()([conv(x, 8, activation="relu"), conv(x, 6, activation="relu")])


# A block of 8 channels of which 4 are open, as are half of the block's own features: the shapes
# that the first weights of its layers have then.
NARROWED = {
    "concatenate": (both, [(3, 3, 4, 4), (3, 3, 4, 3), (1, 1, 7, 3)]),
    "transposed": (BLOCKS["transposed"], [(3, 3, 5, 4), (1, 1, 5, 3)]),
    "separable": (BLOCKS["separable"], [(3, 3, 4, 1), (1, 1, 4, 3), (1, 1, 3, 3)]),
    "multiplied": (BLOCKS["multiplier"], [(3, 3, 4, 2), (1, 1, 8, 3)]),
    "grouped": (
        lambda x: conv(x, 8, groups=2, activation="relu"),
        [(3, 3, 2, 4), (1, 1, 4, 3)],
    ),
    "prelu": (BLOCKS["prelu"], [(3, 3, 4, 3), (1, 1, 3), (1, 1, 3, 3)]),
    "permute": (BLOCKS["permute"], [(1, 1, 4, 3)]),
    "places": (
        lambda x: layers.Multiply()([x, layers.Conv2D(1, 1, activation="sigmoid")(x)]),
        [(1, 1, 4, 1), (1, 1, 4, 3)],
    ),
}


@pytest.mark.parametrize("name", NARROWED)
def test_what_is_pruned_leaves_the_kernels(name):
    block, shapes = NARROWED[name]
    images = keras.Input((6, 6, 3))
    x = block(conv(images, 8, activation="relu"))
    x = layers.Conv2D(5, 1, activation="relu")(x)
    network = add_gates(keras.Model(images, layers.Dense(4)(layers.GlobalMaxPooling2D()(x))))
    rng = np.random.default_rng(0)
    randomise_all(network, rng)
    for gate in gates_of(network):
        set_random(gate, np.arange(gate.features) % 2 == 0, rng)
    small = compact.freeze(network)
    found = [
        tuple(layer.weights[0].shape)
        for layer in small.layers
        if layer.weights and not isinstance(layer, (compact.Affine, compact.Select))
    ]
    assert sorted(found) == sorted([(3, 3, 3, 4), *shapes, (3, 4)])
    kernels = [one for one in small.layers if hasattr(one, "kernel")]
    twice = sum(efficiency._layer_flops(layer) for layer in kernels)
    assert 2 * FrozenNetwork(network).multiplications == twice


def trunk():
    """Two stages of residual blocks."""
    x = images = keras.Input((8, 8, 3))
    for width in (8, 12):
        x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(width, 3, strides=2)(x)))
        for i in range(2):
            y = layers.ReLU()(layers.BatchNormalization()(conv(x, 6)))
            y = layers.BatchNormalization()(conv(y, width))
            x = layers.ReLU()(layers.Add(name=f"sum{width}_{i}")([x, y]))
    return keras.Model(images, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))


def test_a_coupled_gate_takes_a_feature_from_every_layer_of_its_stage():
    rng = np.random.default_rng(0)
    network = add_gates(trunk(), coupled=True)
    widths = {gate.name: gate.features for gate in gates_of(network)}
    shared = {name: width for name, width in widths.items() if name.startswith("sum")}
    assert shared == {"sum8_0_gate": 8, "sum12_0_gate": 12}
    assert len(widths) == 2 + 4  # And one inside each block.
    for gate in gates_of(network):
        set_random(gate, np.arange(gate.features) % 2 == 0, rng)
    assert_all_equal(network, rng)
    kernels = [
        layer.kernel.shape[-2:]
        for layer in compact.freeze(network).layers
        if isinstance(layer, layers.Conv2D)
    ]
    stages = [[(n, w), *[(w, 3), (3, w)] * 2] for n, w in ((3, 4), (4, 6))]
    assert [tuple(shape) for shape in kernels] == [pair for stage in stages for pair in stage]
    frozen = FrozenNetwork(network)
    nodes = graph.nodes_of(network, network.output["logits"])
    masks = {g.name: tf.cast(g.mean_mask() > 0, tf.float32) for g in gates_of(network)}
    assert open_operations.multiplications(nodes, masks) == frozen.multiplications
    removed = {gate.name: np.arange(gate.features) % 2 == 1 for gate in gates_of(network)}
    small = shrinking.shrink(network, removed)
    assert FrozenNetwork(small.network).multiplications == frozen.multiplications
    images = tf.constant(rng.random((2, 8, 8, 3)), tf.float32)
    wanted = network(images, training=False)["logits"]
    found = small.network(images, training=False)["logits"]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    # The gate is called for each layer that writes to the sums, and counts once.
    network(images, training=True)
    total = tf.add_n([gate.kl() for gate in gates_of(network)])
    np.testing.assert_allclose(tf.add_n(network.losses), total, rtol=1e-5)


def test_coupled_gates_stand_in_front_of_a_concatenation_too():
    images = keras.Input((6, 6, 3))
    x = layers.MaxPooling2D(name="stem")(conv(images, 6, activation="relu"))
    for i in range(3):
        y = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.Concatenate()([x, conv(y, 3, name=f"conv{i}")])
    x = layers.ReLU(name="last")(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D()(conv(x, 5))
    model = keras.Model(images, layers.Dense(4)(x))
    widths = {gate.name: gate.features for gate in gates_of(add_gates(model))}
    assert list(widths.values()) == [6, 9, 12, 15]
    network = add_gates(model, coupled=True)
    widths = {gate.name: gate.features for gate in gates_of(network)}
    assert widths == {"stem_gate": 6} | {f"conv{i}_gate": 3 for i in range(3)}
    rng = np.random.default_rng(0)
    randomise_all(network, rng)
    for gate in gates_of(network):
        set_random(gate, np.arange(gate.features) != 1, rng)
    kernels = [
        tuple(layer.kernel.shape[-2:])
        for layer in compact.freeze(network).layers
        if isinstance(layer, layers.Conv2D)
    ]
    assert kernels == [(3, 5), (5, 2), (7, 2), (9, 2), (11, 5)]
    assert_all_equal(network, rng)


def test_what_is_pruned_in_front_of_each_rule_is_the_right_constant():
    images = keras.Input((6, 6, 3))
    zero = BetaBernoulliGate(name="zero")(conv(images, 6))
    constant = BetaBernoulliGate(name="constant")(conv(images, 6))
    constant = layers.BatchNormalization()(constant)
    other = conv(images, 6)
    parts = [
        layers.PReLU(shared_axes=[1, 2])(constant),
        layers.PReLU(shared_axes=[1, 2, 3])(constant),
        layers.PReLU()(constant),
        layers.Add()([zero, other]),
        layers.Average()([constant, other]),
        layers.Maximum()([zero, constant]),
        layers.Multiply()([constant, constant]),
        layers.Multiply()([zero, other]),
        layers.Conv2DTranspose(6, 3, padding="same")(constant),
        layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)(constant),
        layers.DepthwiseConv2D(1, activation="relu")(constant),
        conv(constant, 6, groups=2),
        layers.Conv2D(6, 1, groups=3)(constant),
        layers.Permute((2, 1, 3))(layers.Concatenate()([zero, constant])),
        layers.Conv2D(6, 3)(layers.ZeroPadding2D()(constant)),
    ]
    x = layers.Concatenate()([layers.Conv2D(3, 1)(part) for part in parts])
    x = layers.Dense(4)(layers.Flatten()(x))
    network = keras.Model(images, {"logits": x})
    rng = np.random.default_rng(0)
    randomise_all(network, rng)
    for gate in gates_of(network):
        set_random(gate, np.arange(6) % 3 == 1, rng)
    for norm in network.layers:
        if isinstance(norm, layers.BatchNormalization):
            norm.beta.assign([-0.5, 0.5, -0.3, 0.2, -0.8, -0.1])
    assert_all_equal(network, rng)
    for gate in gates_of(network):  # Not a channel is left of them.
        gate.close(np.ones(6, bool))
    assert_all_equal(network, rng)


def test_every_kind_has_a_rule():
    assert set(RULES) == set(graph.KINDS)


def test_a_recurrent_layer_is_gated_unless_it_draws_noise():
    def network(**options):
        images = keras.Input((6, 6, 3))
        x = layers.LSTM(5, name="memory", **options)(layers.Reshape((6, 18))(images))
        return keras.Model(images, layers.Dense(4)(x))

    rng = np.random.default_rng(0)
    gated = add_gates(network())
    random_gates(gated, 0.5, rng)
    assert_all_equal(gated, rng)
    with pytest.raises(UsageError, match="'memory' draws noise"):
        add_gates(network(dropout=0.2))


def test_a_users_own_layer_joins_by_a_rule():
    def network():
        x = images = keras.Input((6, 6, 3))
        x = Halved()(conv(x, 8, activation="relu"))
        x = layers.Dense(9, activation="relu")(layers.GlobalAveragePooling2D()(x))
        return keras.Model(images, layers.Dense(4)(x))

    assert len(gates_of(add_gates(network()))) == 1
    with pytest.raises(UsageError, match="unknown kind of layer 'magic'"):
        graph.register_layer_rule(Halved, "magic")
    try:
        graph.register_layer_rule(Halved, "pooling")
        gated = add_gates(network())
        rng = np.random.default_rng(0)
        assert len(gates_of(gated)) == 2
        random_gates(gated, 0.5, rng)
        assert_all_equal(gated, rng)
    finally:
        del graph._kind_of_type[Halved]


def test_models_inside_are_opened_and_the_model_stays_as_it_was():
    model = built(["nested", "residual"])
    images = tf.constant(np.random.default_rng(0).random((2, 6, 6, 3)), tf.float32)
    network = add_gates(model, kind=None)
    np.testing.assert_allclose(network(images)["logits"], model(images), rtol=1e-5, atol=1e-6)
    assert any(isinstance(layer, keras.Model) for layer in model.layers)
    assert not any(isinstance(layer, keras.Model) for layer in network.layers)


def test_a_compact_network_of_any_layers_is_saved_and_loaded(tmp_path):
    network = add_gates(built(["squeeze", "grouped", "operators", "layer norm"]))
    randomise(network, 0.5, np.random.default_rng(0))
    small = compact.freeze(network)
    small.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    images = tf.constant(np.random.default_rng(0).random((2, 6, 6, 3)), tf.float32)
    np.testing.assert_allclose(loaded(images), small(images), rtol=1e-6)
