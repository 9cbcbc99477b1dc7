"""The PyTorch files of frozen networks compute what the networks do."""

import runpy

import keras
import numpy as np
import pytest
import small_networks

from anpvs_tf.common.errors import UsageError
from anpvs_tf.networks import architectures
from anpvs_tf.pruning import compact
from anpvs_tf.serving import torch_file

torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
tf = pytest.importorskip("tensorflow")
layers = keras.layers


def loaded(network, tmp_path):
    """The files as a user of PyTorch loads them."""
    torch_file.write(network, 'it\'s "mine"\\', tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"model.py", "model.pt"}
    assert "anpvs_tf" not in (tmp_path / "model.py").read_text().split('"""', 2)[2]
    return runpy.run_path(str(tmp_path / "model.py"))["load"]()


def to_torch(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2) if images.ndim == 4 else images


def check(network, tmp_path, images):
    """Compares logits, whatever the rank of the output."""
    expected = network(images).numpy()
    with torch.no_grad():
        found = loaded(network, tmp_path)(to_torch(images))
    found = (found.permute(0, 2, 3, 1) if found.ndim == 4 else found).numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max(), rtol=1e-5)


@pytest.mark.parametrize(("name", "width"), [("lenet5", 0.2), ("vgg16", 0.1), ("resnet20", 0.25)])
def test_a_pruned_network_and_its_gradient(name, width, tmp_path):
    shape = (28, 28, 1) if name == "lenet5" else (32, 32, 3)
    network = getattr(architectures, name)(shape, 10, gate="beta_bernoulli", width=width)
    rng = np.random.default_rng(0)
    small_networks.randomise(network, 0.3, rng)
    for layer in network.layers:
        if isinstance(layer, layers.BatchNormalization):  # Or little would reach the logits.
            layer.moving_variance.assign(0.01 * layer.moving_variance)
    frozen = compact.freeze(network)
    found = loaded(frozen, tmp_path)
    assert sum(one.numel() for one in found.parameters()) == frozen.count_params()
    images = rng.random((4, *shape), np.float32)
    weights = rng.normal(size=(4, 10)).astype(np.float32)
    given = to_torch(images).requires_grad_()
    logits = found(given)
    (logits * torch.from_numpy(weights)).sum().backward()
    # By the training network, not by the frozen one.
    with tf.GradientTape() as tape:
        tape.watch(tensor := tf.constant(images))
        expected = network(tensor, training=False)["logits"]
        total = tf.reduce_sum(expected * weights)
    assert np.ptp(expected, axis=0).max() > 1e-2
    for got, wanted in (
        (logits.detach().numpy(), expected.numpy()),
        (given.grad.permute(0, 2, 3, 1).numpy(), tape.gradient(total, tensor).numpy()),
    ):
        np.testing.assert_allclose(got, wanted, atol=1e-4 * np.abs(wanted).max())


CONVOLUTIONS = [
    (5, {"strides": 2, "padding": "same"}),
    (4, {"strides": 2, "padding": "same"}),
    ((2, 3), {"padding": "same", "use_bias": False}),
    ((1, 5), {"strides": (3, 2), "padding": "same"}),
    (3, {"dilation_rate": 2, "padding": "same"}),
    (3, {"strides": 2, "activation": "tanh"}),
    (3, {"groups": 2}),
]


@pytest.mark.parametrize(("size", "options"), CONVOLUTIONS)
@pytest.mark.parametrize("places", [(9, 12), (8, 7)])
def test_the_options_of_a_convolution(size, options, places, tmp_path):
    images = keras.Input((*places, 4))
    made = layers.Conv2D(6, size, bias_initializer="normal", **options)(images)
    x = np.random.default_rng(0).normal(size=(3, *places, 4)).astype(np.float32)
    check(keras.Model(images, made), tmp_path, x)


SETTINGS = {
    "depthwise": lambda x: layers.DepthwiseConv2D(
        3, 2, "same", depth_multiplier=2, bias_initializer="normal"
    )(x),
    "average": lambda x: layers.AveragePooling2D((2, 3), 2)(x),
    "maximum": lambda x: layers.MaxPooling2D(3, (1, 2))(x),
    "global": lambda x: layers.GlobalAveragePooling2D(keepdims=True)(x),
    "sigmoid": lambda x: layers.Activation("sigmoid")(x),
    "linear": lambda x: layers.Activation("linear")(x),
    "sum": lambda x: layers.Add()([x, layers.ReLU()(x), x]),
    "affine": lambda x: compact.Affine((4,), (9, 8, 4))(x),
    "chosen": lambda x: compact.Select([5, 0, 3, 4, 0], constants=2)(x),
    "flat": lambda x: compact.Affine((288,), (1,))(
        compact.Select([*range(287, -1, -1)])(layers.Flatten()(x))
    ),
    "chosen of flat": lambda x: compact.Select([288, 7, 289], constants=2)(layers.Flatten()(x)),
    "dense": lambda x: layers.Dense(3, activation="relu", use_bias=False)(layers.Flatten()(x)),
}


@pytest.mark.parametrize("make", SETTINGS.values(), ids=SETTINGS)
def test_a_layer(make, tmp_path):
    images = keras.Input((9, 8, 4))
    network = keras.Model(images, make(images))
    rng = np.random.default_rng(0)
    network.set_weights([rng.normal(size=one.shape) for one in network.get_weights()])
    check(network, tmp_path, rng.normal(size=(3, 9, 8, 4)).astype(np.float32))


def mine(x):
    return keras.ops.sin(x)


def relu(x):
    return x + 1.0


REFUSED = {
    "a LeakyReLU": lambda x: layers.LeakyReLU(name="odd")(x),
    "a ReLU that is bounded, leaky or shifted": lambda x: layers.ReLU(6.0, name="odd")(x),
    "padded same": lambda x: layers.MaxPooling2D(padding="same", name="odd")(x),
    "a Dense of an input (None, 8, 8, 4)": lambda x: layers.Dense(3, name="odd")(x),
    "which has the activation gelu": lambda x: layers.Activation("gelu", name="odd")(x),
    "which has the activation mine": lambda x: layers.Conv2D(3, 3, activation=mine, name="odd")(x),
    "which has the activation relu": lambda x: layers.Activation(relu, name="odd")(x),
    "a Constant": lambda x: compact.Constant([8, 8, 4], name="odd")(x),
    "a Reshape": lambda x: layers.Reshape([64, 4], name="odd")(x),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_layer_that_is_not_written(why, tmp_path):
    images = keras.Input((8, 8, 4))
    network = keras.Model(images, layers.Flatten()(REFUSED[why](layers.ReLU()(images))))
    with pytest.raises(UsageError) as error:
        torch_file.write(network, "name", tmp_path)
    (line,) = str(error.value).splitlines()
    assert line == f"--format=torch writes no layer like odd, {why}; use another --format"
    assert not list(tmp_path.iterdir())


def test_an_operation_is_not_written(tmp_path):
    images = keras.Input((8, 8, 4))
    network = keras.Model(images, layers.Flatten()(layers.ReLU()(images) * 2.0))
    with pytest.raises(UsageError, match="a Multiply; use another --format"):
        torch_file.write(network, "name", tmp_path)


def test_names_that_pytorch_or_python_would_not_take(tmp_path):
    images = keras.Input((2, 1, 2))
    x = layers.Flatten()(images)
    names = ("half", "class", "a-b", "a_b", "1", "forward", "dense")
    for name in names:
        x = layers.Dense(4, name=name)(x)
    made = loaded(keras.Model(images, x), tmp_path)
    expected = ["layer_half", "layer_class", "a_b", "a_b_2", "layer_1", "layer_forward", "dense"]
    assert [name for name, _ in made.named_children()] == expected
