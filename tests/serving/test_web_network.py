"""The networks of the page, and its attack, compute what the networks and attacks here do."""

import base64
import json
import shutil
import subprocess

import keras
import numpy as np
import pytest
import small_networks
import tensorflow as tf
from documents import ROOT

from anpvs_tf.attacks.projected_gradient import pgd
from anpvs_tf.common.errors import UsageError
from anpvs_tf.networks import architectures
from anpvs_tf.pruning import compact
from anpvs_tf.serving import web_network

layers = keras.layers
SCRIPTS = ROOT / "anpvs_tf" / "serving" / "web"

LAYERS = {
    "same": lambda x: layers.Conv2D(6, 5, 2, "same", bias_initializer="normal")(x),
    "even": lambda x: layers.Conv2D(6, (2, 4), padding="same", use_bias=False)(x),
    "strides": lambda x: layers.Conv2D(3, (1, 5), (3, 2), "same", activation="tanh")(x),
    "depthwise": lambda x: layers.DepthwiseConv2D(3, 2, "same", depth_multiplier=2)(x),
    "average": lambda x: layers.AveragePooling2D((2, 3), 2)(x),
    "maximum": lambda x: layers.MaxPooling2D(3, (1, 2))(x),
    "maximum same": lambda x: layers.MaxPooling2D(3, 2, "same")(x),
    "global": lambda x: layers.GlobalAveragePooling2D(keepdims=True)(x),
    "sigmoid": lambda x: layers.Activation("sigmoid")(x),
    "sum": lambda x: layers.Add()([x, layers.ReLU()(x), x]),
    "affine": lambda x: compact.Affine((4,), (9, 8, 4))(x),
    "shift": lambda x: compact.Affine(None, (4,))(x),
    "chosen": lambda x: compact.Select([5, 0, 3, 4, 0], constants=2)(x),
    "chosen of flat": lambda x: compact.Select([288, 7, 289], constants=2)(layers.Flatten()(x)),
    "dense": lambda x: layers.Dense(3, activation="relu", use_bias=False)(layers.Flatten()(x)),
}
NETWORKS = {
    "lenet5": ((28, 28, 1), 0.2),
    "resnet20": ((32, 32, 3), 0.25),
}
ATTACKS = [
    {"epsilon": 0.1, "stepSize": 0.03, "steps": 4, "norm": "linf"},
    {"epsilon": 0.7, "stepSize": 0.3, "steps": 4, "norm": "l2"},
    {"epsilon": 0.0, "stepSize": 0.0, "steps": 2, "norm": "l2"},
]


def with_logits(make):
    """A network of one kind of layer, then logits, and its images in [0, 1]."""
    rng = np.random.default_rng(0)
    images = keras.Input((9, 8, 4))
    x = layers.Flatten()(make(images))
    network = keras.Model(images, layers.Dense(5)(x))
    network.set_weights([rng.normal(0, 0.3, one.shape) for one in network.get_weights()])
    return network, rng.random((3, 9, 8, 4), np.float32)


def pruned(name):
    """(the training network, its compact one, latents, images)."""
    shape, width = NETWORKS[name]
    network = getattr(architectures, name)(shape, 10, gate="beta_bernoulli", width=width)
    rng = np.random.default_rng(0)
    small_networks.randomise(network, 0.3, rng)
    for layer in network.layers:
        if isinstance(layer, layers.BatchNormalization):  # Or little would reach the logits.
            layer.moving_variance.assign(0.01 * layer.moving_variance)
    return network, *compact.freeze_with_latents(network), rng.random((3, *shape), np.float32)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """{name: (training network, images, latents, labels, what the page's script found)}."""
    if shutil.which("node") is None:
        pytest.skip("Node.js is not installed")
    path = tmp_path_factory.mktemp("node")
    asked, cases = {}, []
    for name in [*LAYERS, *NETWORKS]:
        if name in NETWORKS:
            network, frozen, latents, images = pruned(name)
        else:
            network, images = with_logits(LAYERS[name])
            frozen, latents = network, {}
        labels = np.arange(len(images))
        asked[name] = (network, images, latents, labels)
        case = {"images": images.ravel().tolist(), "labels": labels.tolist()}
        case["network"] = web_network.describe(frozen, latents)
        cases.append(case | {"attacks": ATTACKS if name in NETWORKS else []})
    (path / "cases.json").write_text(json.dumps(cases))
    program = ROOT / "tests" / "serving" / "web_cases.js"
    files = [path / "cases.json", path / "answers.json"]
    subprocess.run(["node", program, SCRIPTS, *files], check=True, capture_output=True)
    found = json.loads((path / "answers.json").read_text())
    return {name: (*asked[name], answer) for name, answer in zip(asked, found, strict=True)}


def logits_of(network, images):
    outputs = network(images, training=False)
    return outputs["logits"] if isinstance(outputs, dict) else outputs


@pytest.mark.parametrize("name", [*LAYERS, *NETWORKS])
def test_logits_and_their_gradient(name, answers):
    network, images, _, labels, found = answers[name]
    with tf.GradientTape() as tape:
        tape.watch(tensor := tf.constant(images))
        logits = logits_of(network, tensor)
        loss = tf.reduce_sum(tf.keras.losses.sparse_categorical_crossentropy(labels, logits, True))
    assert np.ptp(logits, axis=0).max() > 1e-2
    gradient = tape.gradient(loss, tensor).numpy()
    for got, wanted in ((found["logits"], logits.numpy()), (found["gradient"], gradient)):
        tolerance = 1e-5 * np.abs(wanted).max()
        np.testing.assert_allclose(np.reshape(got, wanted.shape), wanted, atol=tolerance)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("number", range(len(ATTACKS)))
def test_the_attack_of_the_page_is_that_of_the_library(name, number, answers):
    network, images, _, labels, found = answers[name]
    settings = ATTACKS[number]
    attacked = images  # The library takes no ball of radius 0; the page's slider does.
    if settings["epsilon"]:
        attacked = pgd(
            lambda x: logits_of(network, x),
            tf.constant(images),
            tf.constant(labels),
            seed=[0, 0],
            epsilon=settings["epsilon"],
            step_size=settings["stepSize"],
            steps=settings["steps"],
            norm=settings["norm"],
            random_start=False,
        )
    assert found["steps"][number] == list(range(settings["steps"] + 1))
    got = np.reshape(found["attacked"][number], images.shape)
    assert (np.abs(attacked - images).max() > 0.05) == (settings["epsilon"] > 0)
    np.testing.assert_allclose(got, attacked, atol=2e-6)
    logits = logits_of(network, got.astype(np.float32)).numpy()
    got = np.reshape(found["attackedLogits"][number], logits.shape)
    np.testing.assert_allclose(got, logits, atol=1e-5 * np.abs(logits).max())


@pytest.mark.parametrize("name", NETWORKS)
def test_latent_features_are_those_of_the_training_network(name, answers):
    network, images, latents, _, found = answers[name]
    outputs = network(images[:1], training=False)
    assert set(latents) == set(outputs) - {"logits"}
    assert any(len(one.channels) < one.features for one in latents.values())
    for (layer, latent), got in zip(latents.items(), found["features"], strict=True):
        values = outputs[layer].numpy()[0]
        assert latent.features == values.shape[-1]
        # They differ by a constant of the channel at most, which moves nothing.
        offset = values[..., latent.channels] - np.reshape(got["values"], got["shape"])
        flat = offset.reshape(-1, offset.shape[-1])
        assert np.abs(flat - flat[:1]).max() <= 1e-5 * np.abs(values).max()
        assert got["shape"] == [*values.shape[:-1], len(latent.channels)]


def test_the_weights_are_those_of_the_compact_network():
    _, frozen, latents, _ = pruned("lenet5")
    described = json.loads(json.dumps(web_network.describe(frozen, latents), sort_keys=True))
    held = np.frombuffer(base64.b64decode(described["weights"]), "<f4")
    np.testing.assert_array_equal(held, np.concatenate([w.ravel() for w in frozen.get_weights()]))
    kinds = [step["layer"] for step in described["steps"]]
    assert kinds == [type(layer).__name__ for layer in frozen.layers[1:]]
    shapes = [shape for step in described["steps"] for _, shape in step["weights"]]
    assert shapes == [list(weight.shape) for weight in frozen.get_weights()]


def mine(x):
    return keras.ops.sin(x)


def relu(x):
    return x + 1.0


REFUSED = {
    "a LeakyReLU": lambda x: layers.LeakyReLU(name="odd")(x),
    "a ReLU whose max_value is 6.0": lambda x: layers.ReLU(6.0, name="odd")(x),
    "a Conv2D whose groups is 2": lambda x: layers.Conv2D(4, 3, groups=2, name="odd")(x),
    "a Conv2D whose dilation_rate is (2, 2)": lambda x: layers.Conv2D(
        4, 3, dilation_rate=2, name="odd"
    )(x),
    "a Reshape": lambda x: layers.Reshape([64, 4], name="odd")(x),
    "a Dense of an input (None, 8, 8, 4)": lambda x: layers.Dense(3, name="odd")(x),
    "a Activation whose activation is gelu": lambda x: layers.Activation("gelu", name="odd")(x),
    "a Conv2D whose activation is mine": lambda x: layers.Conv2D(3, 3, activation=mine, name="odd")(
        x
    ),
    "a Activation whose activation is relu of a user": lambda x: layers.Activation(
        relu, name="odd"
    )(x),
    "a AveragePooling2D whose padding is same": lambda x: layers.AveragePooling2D(
        2, padding="same", name="odd"
    )(x),
    "a Constant": lambda x: compact.Constant([8, 8, 4], name="odd")(x),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_layer_that_the_page_does_not_have(why):
    images = keras.Input((8, 8, 4))
    network = keras.Model(images, layers.Flatten()(REFUSED[why](layers.ReLU()(images))))
    with pytest.raises(UsageError) as error:
        web_network.describe(network, {})
    (line,) = str(error.value).splitlines()
    assert (
        line == f"--format=web shows no network with a layer like odd, {why}; use another --format"
    )
