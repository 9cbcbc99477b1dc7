"""Networks that are made from Keras model files."""

import json
import zipfile

import keras
import numpy as np
import pytest

from anpvs_tf.common.errors import UsageError
from anpvs_tf.methods.hyperparameters import Objective
from anpvs_tf.methods.optimizer import GroupedAdam
from anpvs_tf.methods.registry import METHODS
from anpvs_tf.methods.robust_classifier import RobustClassifier
from anpvs_tf.networks import bayesian, graph
from anpvs_tf.networks.architectures import resnet20
from anpvs_tf.networks.freezing import freeze_below
from anpvs_tf.networks.gate import gates_of
from anpvs_tf.networks.gating import GATE_KINDS
from anpvs_tf.networks.own_network import network_of

layers = keras.layers
SHAPE = (12, 12, 3)
IMAGES = np.random.default_rng(0).random((5, *SHAPE), np.float32)


def chain(*last, first=(), inputs=SHAPE, dtype="float32"):
    """Layers with weights that are none of the initial ones, batch statistics among them."""
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input(inputs, dtype=dtype, name="pictures"),
            *first,
            layers.Conv2D(4, 3, use_bias=False, name="conv1"),
            layers.BatchNormalization(name="norm1"),
            layers.ReLU(name="relu1"),
            layers.Conv2D(6, 3, activation="relu", strides=2, name="conv2"),
            layers.GlobalAveragePooling2D(name="pool"),
            layers.Dense(8, activation="relu", name="hidden"),
            *(last or [layers.Dense(4, name="top")]),
        ]
    )
    random = np.random.default_rng(1)
    for weight in [w for layer in model.layers[len(first) :] for w in layer.weights]:
        weight.assign(np.asarray(weight) + 0.03 * random.random(weight.shape))
    return model


@pytest.fixture
def save(tmp_path):
    def write(model, name="mine.keras"):
        model.save(tmp_path / name)
        return tmp_path / name

    return write


def logits(network, images=IMAGES):
    return np.asarray(network(images, training=False)["logits"])


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_the_weights_of_the_file_are_kept_and_its_softmax_is_taken_away(save):
    said = []
    model = chain(layers.Dense(4, activation="softmax", name="top"))
    network = network_of(save(model), SHAPE, 4, name="mine", say=said.append)
    np.testing.assert_allclose(softmax(logits(network)), model(IMAGES), atol=1e-6)
    assert said == ["mine: its last softmax is taken away; the network returns logits"]
    assert list(network.output) == ["logits", "relu1", "conv2", "hidden"]
    # As in mixed precision: the softmax is a layer of its own, in float32.
    apart = [layers.Dense(4, name="top"), layers.Activation("softmax", dtype="float32")]
    model = chain(*apart)
    network = network_of(save(model), SHAPE, 4)
    np.testing.assert_allclose(softmax(logits(network)), model(IMAGES), atol=1e-6)


def test_a_model_inside_a_model_keeps_its_weights(save):
    inner = chain()
    images = keras.Input(SHAPE)
    base = keras.Model(inner.inputs[0], inner.get_layer("hidden").output, name="base")
    base.trainable = False
    whole = keras.Model(images, inner.get_layer("top")(base(images)))
    said = []
    network = network_of(save(whole), SHAPE, 4, name="mine", say=said.append)
    np.testing.assert_allclose(logits(network), whole(IMAGES), rtol=1e-5)
    assert "4 layer(s) that the file holds as not trainable are trained, conv1 first" in said[0]
    assert all(layer.trainable for layer in network.layers)


def test_a_head_of_other_classes_is_replaced_and_the_rest_is_kept(save):
    said = []
    path = save(chain())
    whole, replaced = (network_of(path, SHAPE, n, seed=5, say=said.append) for n in (4, 7))
    assert logits(replaced).shape == (5, 7)
    assert len(said) == 1
    assert "'top' has 4 outputs, the dataset 7 classes: it is replaced" in said[0]
    images = [np.asarray(net(IMAGES)["hidden"]) for net in (whole, replaced)]
    np.testing.assert_array_equal(*images)
    again, other = (network_of(path, SHAPE, 7, seed=seed) for seed in (5, 6))
    np.testing.assert_array_equal(logits(replaced), logits(again))
    assert np.abs(logits(other) - logits(again)).max() > 1e-3


@pytest.mark.parametrize("activation", ["sigmoid", None])
def test_one_output_becomes_the_two_logits_of_the_same_probabilities(save, activation):
    model = chain(layers.Dense(1, activation=activation, name="top"))
    network = network_of(save(model), SHAPE, 2)
    positive = np.asarray(model(IMAGES))[:, 0]
    if activation is None:
        positive = 1 / (1 + np.exp(-positive))
    np.testing.assert_allclose(softmax(logits(network))[:, 1], positive, atol=1e-6)


def test_without_the_weights_the_seed_decides_and_the_statistics_of_the_data_stay(save):
    normalization = layers.Normalization()
    normalization.adapt(7.0 + 3.0 * IMAGES)
    path = save(chain(first=[normalization]))
    one, same, other = (network_of(path, SHAPE, 4, seed=s, pretrained=False) for s in (1, 1, 2))
    np.testing.assert_array_equal(logits(one), logits(same))
    assert np.abs(logits(one) - logits(other)).max() > 1e-3
    kept = network_of(path, SHAPE, 4)
    assert np.abs(logits(one) - logits(kept)).max() > 1e-3
    np.testing.assert_array_equal(one.get_layer("norm1").moving_mean, np.zeros(4))
    np.testing.assert_allclose(one.get_layer(normalization.name).mean, normalization.mean)


@pytest.mark.parametrize(
    ("first", "dtype", "given", "scale", "shift"),
    [
        ([], "float32", None, 1, 0),
        ([layers.Rescaling(1 / 255)], "float32", None, 255, 0),
        ([layers.Rescaling(1 / 255)], "float32", (0.0, 1.0), 1, 0),
        ([layers.Rescaling(1 / 127.5, -1)], "float32", None, 255, 0),
        ([layers.Rescaling(1 / 255)], "uint8", None, 255, 0),
        ([], "float32", (-1.0, 1.0), 2, -1),
    ],
)
def test_images_from_0_to_1_become_those_that_the_file_takes(
    save, first, dtype, given, scale, shift
):
    model = chain(first=first, dtype=dtype)
    said = []
    network = network_of(save(model), SHAPE, 4, input_range=given, say=said.append)
    images = np.round(IMAGES * 255) / 255
    seen = np.round(scale * images + shift) if dtype == "uint8" else scale * images + shift
    np.testing.assert_allclose(logits(network, images), model(seen), rtol=1e-4, atol=1e-5)
    assert len(said) == (given is None and scale == 255)
    assert all("black is taken as 0, white as 255" in line for line in said)


def test_integers_are_pixels_from_0_to_255_and_our_names_may_be_taken(save):
    image = keras.Input(SHAPE, dtype="uint8", name="images")
    x = keras.ops.cast(image, "float32") / 127.5 - 1.0
    x = layers.Conv2D(3, 3, activation="relu", name="input_range")(x)
    model = keras.Model(image, layers.Dense(4, name="top")(layers.Flatten()(x)))
    said, pixels = [], np.round(255 * IMAGES)
    network = network_of(save(model), SHAPE, 4, name="mine", say=said.append)
    expected = model(pixels.astype(np.uint8))
    np.testing.assert_allclose(logits(network, pixels / 255), expected, rtol=1e-4, atol=1e-5)
    assert "black is taken as 0, white as 255 (it takes uint8)" in said[0]


def test_a_file_of_any_image_size_and_of_another_precision_is_made_for_the_run(save):
    model = chain(inputs=(None, None, 3))
    for layer in model.layers:
        layer.dtype_policy = keras.DTypePolicy("mixed_float16")
    network = network_of(save(model), SHAPE, 4)
    assert network.inputs[0].shape == (None, *SHAPE)
    assert {layer.compute_dtype for layer in network.layers if layer.weights} == {"float32"}
    mixed = network_of(save(model), SHAPE, 4, dtype="mixed_bfloat16", gate="beta_bernoulli")
    assert mixed.get_layer("conv1").compute_dtype == "bfloat16"
    assert mixed.get_layer("top").compute_dtype == "float32"
    assert [gate.name for gate in gates_of(mixed)] == ["relu1_gate", "conv2_gate", "hidden_gate"]


def two_inputs():
    one, two = keras.Input(SHAPE), keras.Input(SHAPE)
    x = layers.GlobalAveragePooling2D()(layers.Add()([one, two]))
    return keras.Model([one, two], layers.Dense(4)(x))


@keras.saving.register_keras_serializable("mine")
class Own(keras.layers.Layer):
    def call(self, x):
        return x


@keras.saving.register_keras_serializable("mine")
class Subclassed(keras.Model):
    def build(self, shape):
        self.built = True

    def call(self, x):
        return x


@keras.saving.register_keras_serializable("mine")
def bump(x):
    return keras.ops.relu(x) + 1.0


def subclassed():
    model = Subclassed()
    model(IMAGES)
    return model


def ending_in_an_operation():
    model = chain()
    return keras.Model(model.inputs[0], keras.ops.softmax(model.outputs[0]))


REFUSED = {
    "ends in Softmax of keras.ops; end in logits": ending_in_an_operation,
    "takes images of 12 x 12 x 1, the dataset's are 12 x 12 x 3": lambda: chain(inputs=(12, 12, 1)),
    "the class Own, which Keras does not have": lambda: chain(first=[Own()]),
    "a function in a Lambda layer": lambda: chain(first=[layers.Lambda(lambda x: x)]),
    "the function mine>bump": lambda: chain(first=[layers.Activation(bump)]),
    "holds a Subclassed, a model class of its own": subclassed,
    "2 inputs and 1 outputs": two_inputs,
    "0 inputs and 0 outputs": lambda: keras.Sequential([layers.Flatten(), layers.Dense(4)]),
    "ends in ReLU 're_lu'": lambda: chain(layers.Dense(4), layers.ReLU(name="re_lu")),
    "ends in GlobalAveragePooling2D 'last'": lambda: keras.Sequential(
        [keras.Input(SHAPE), layers.GlobalAveragePooling2D(name="last")]
    ),
    "the activation tanh of layer 'top'": lambda: chain(
        layers.Dense(4, activation="tanh", name="top")
    ),
}


@pytest.mark.parametrize("said", REFUSED)
def test_a_file_that_is_no_classifier_of_these_images_is_refused(save, said):
    with pytest.raises(UsageError, match=said.replace("(", r"\(")) as refused:
        network_of(save(REFUSED[said]()), SHAPE, 4, name="mine")
    assert "\n" not in str(refused.value)


def test_a_damaged_file_and_none_at_all_are_refused(save, tmp_path):
    path = save(chain())
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    for file, said in ((path, "is not a Keras model file"), (tmp_path / "no.keras", "not exist")):
        with pytest.raises(UsageError, match=said):
            network_of(file, SHAPE, 4)
    # A whole archive whose weights are another model's.
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
        weights = archive.read("model.weights.h5")
    config["config"]["layers"][-1]["config"]["units"] = 5
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", weights)
    with pytest.raises(UsageError, match="cannot be loaded"):
        network_of(path, SHAPE, 5)


# ---- Layers that are not trained ----


def classifier(network, method, **objective):
    made = RobustClassifier(
        network,
        METHODS[method],
        Objective(epsilon=0.1, step_size=0.1, attack_steps=1, train_examples=5, **objective),
    )
    made.compile(optimizer=GroupedAdam(0.1, average=0.5), jit_compile=False)
    return made


def test_nothing_before_the_layer_changes_in_training(save):
    network = network_of(save(chain()), SHAPE, 4, gate="information_bottleneck")
    freeze_below(network, "conv2")
    before = {w.path: w.numpy() for w in network.weights}
    trained = classifier(network, "anpvs_vib", beta=50.0, lambda_vs=0.1, weight_decay=0.1, awp=0.01)
    for _ in range(2):
        trained.update((IMAGES, np.arange(5) % 4))
    deployed = dict(zip(before, trained.deployed_weights(), strict=True))
    moved = {
        path.split("/")[0]
        for path, held in before.items()
        for now in (network.weights[list(before).index(path)].numpy(), deployed[path])
        if not np.array_equal(held, now)
    }
    assert moved == {"hidden", "hidden_gate", "top"}


@pytest.mark.parametrize("kind", GATE_KINDS)
def test_every_kind_of_gate_can_be_opened(kind):
    gate = GATE_KINDS[kind]()
    gate.build((None, 5))
    gate.close(np.arange(5) < 3)
    assert not gate.is_open().numpy().all()
    gate.open_all()
    assert gate.is_open().numpy().all()
    np.testing.assert_allclose(gate.mean_mask(), np.ones(5), atol=1e-6)


def test_gates_of_frozen_layers_let_every_feature_through(save):
    path = save(chain())
    plain, gated = (network_of(path, SHAPE, 4, gate=kind) for kind in (None, "beta_bernoulli"))
    freeze_below(gated, "hidden")
    assert not any(one.trainable for one in gates_of(gated))
    np.testing.assert_allclose(logits(gated), logits(plain), rtol=1e-5)
    # In training too, batch normalisation as in inference.
    np.testing.assert_allclose(
        gated(IMAGES, training=True)["logits"], logits(plain), rtol=1e-5, atol=1e-6
    )


def test_a_layer_freezes_what_it_depends_on_and_not_what_stands_beside_it():
    network = resnet20((32, 32, 3), 10, "beta_bernoulli", coupled=True)
    freeze_below(network, "block1_2_conv1")
    trained = {layer.name for layer in network.layers if layer.trainable_weights}
    assert not trained & {"stem", "block1_1_conv2", "block1_1_conv2_bn", "block1_2_conv1"}
    # Of a gate that several layers share, one that is frozen is enough.
    assert {"block1_2_conv1_bn", "block1_2_conv2", "block2_1_shortcut"} <= trained
    gates = {gate.name: gate.trainable for gate in gates_of(network)}
    assert not gates["block1_1_add_gate"] and gates["block2_1_add_gate"]


def test_names_that_cannot_be_frozen_below(save):
    network = network_of(save(chain()), SHAPE, 4, name="mine", gate="beta_bernoulli")
    named = {"conv9": "conv2, conv1", "pictures": "conv1, norm1, conv2", "relu1_gate": "relu1"}
    for name, shown in named.items():
        with pytest.raises(UsageError, match=f"{name}', which mine does not have; .*: {shown}"):
            freeze_below(network, name)
    with pytest.raises(UsageError, match="--freeze_below=top leaves mine nothing to train"):
        freeze_below(network, "top")


def test_a_layer_without_a_bayesian_counterpart_is_refused_by_name(save):
    model = chain(first=[layers.DepthwiseConv2D(3, name="deep")])
    network = network_of(save(model), SHAPE, 4)
    with pytest.raises(UsageError, match="'deep' of type DepthwiseConv2D has no Bayesian"):
        bayesian.convert(network)
    assert graph.logits_of(network).shape == (None, 4)
