"""The two architectures: shapes, gated features, normalisation, initial weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from anpvs_tf.common.errors import UsageError
from anpvs_tf.networks import architectures
from anpvs_tf.networks.gate import gates_of
from anpvs_tf.pruning import efficiency


def test_lenet_gates_the_published_features():
    network = architectures.lenet5((28, 28, 1), 10, "beta_bernoulli")
    sizes = {k: n for k, (_, n) in efficiency.active_features(network).items()}
    assert sizes == {"conv1": 20, "conv2": 50, "flatten": 800, "dense1": 500}
    assert list(network.output) == ["logits", "conv1", "conv2", "dense1"]
    assert network.output["conv1"].shape == (None, 24, 24, 20)


def test_vgg_gates_the_published_features():
    network = architectures.vgg16((32, 32, 3), 100, "beta_bernoulli")
    sizes = [n for _, n in efficiency.active_features(network).values()]
    assert sizes == [64, 64, 128, 128] + [256] * 3 + [512] * 6 + [512, 512]
    assert sum(sizes) == 5248
    assert len(network.output) == 1 + 13 + 1
    assert network.output["logits"].shape == (None, 100)
    by_name = {layer.name: layer for layer in network.layers}
    assert by_name["conv1_1_gate"].initial_a_raw == 2.0
    assert by_name["dense1_gate"].initial_a_raw == -1.0


@pytest.mark.parametrize(
    ("scope", "gated"), [("conv", ["conv1", "conv2"]), ("dense", ["flatten", "dense1"])]
)
def test_gate_scope(scope, gated):
    network = architectures.lenet5((16, 16, 1), 10, "information_bottleneck", gate_scope=scope)
    assert list(efficiency.active_features(network)) == gated


def test_gate_scope_of_resnet18():
    with pytest.raises(UsageError, match=r"resnet18 has no activation.*'dense'"):
        architectures.resnet18((32, 32, 3), 10, "beta_bernoulli", gate_scope="dense")


@pytest.mark.parametrize(
    ("name", "parameters", "blocks"), [("resnet20", 272_474, 3), ("resnet32", 466_906, 5)]
)
def test_cifar_resnets_have_the_published_sizes(name, parameters, blocks):
    # He et al. 2016 say 0.27 and 0.46 million; here a stage begins with a projection.
    network = architectures.NETWORKS[name]((32, 32, 3), 10, "information_bottleneck")
    gates = {gate.name: gate.features for gate in gates_of(network)}
    gated = sum(2 * size for size in gates.values())  # Their parameters: mu and log sigma^2.
    trained = sum(int(np.prod(v.shape)) for v in network.trainable_variables)
    assert trained - gated == parameters
    inside = [size for name, size in gates.items() if "relu1" in name]
    assert inside == [16] * blocks + [32] * blocks + [64] * blocks


def test_width_scales_every_hidden_layer():
    half = architectures.lenet5((28, 28, 1), 10, "beta_bernoulli", width=0.5)
    sizes = {k: n for k, (_, n) in efficiency.active_features(half).items()}
    assert sizes == {"conv1": 10, "conv2": 25, "flatten": 400, "dense1": 250}
    for name, layers in (("vgg16", 14), ("resnet18", 20)):
        narrow = architectures.NETWORKS[name]((32, 32, 3), 10, width=1e-3)
        kernels = [v for v in narrow.trainable_variables if v.name == "kernel"]
        assert len(kernels) == layers + 1
        assert {kernel.shape[-1] for kernel in kernels[:-1]} == {1}
    plain, same = (architectures.resnet20((32, 32, 3), 10, seed=3, **w) for w in ({}, {"width": 1}))
    for one, other in zip(plain.get_weights(), same.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_dense_dropout_belongs_where_no_gate_is():
    def rates(network):
        return [layer.rate for layer in network.layers if hasattr(layer, "rate")]

    between_convolutions = [0.3, 0.4] + [0.4] * 6
    assert rates(architectures.vgg16((32, 32, 3), 10)) == [*between_convolutions, 0.5, 0.5]
    gated = architectures.vgg16((32, 32, 3), 10, "beta_bernoulli")
    assert rates(gated) == between_convolutions
    partly = architectures.vgg16((32, 32, 3), 10, "beta_bernoulli", gate_scope="conv")
    assert rates(partly) == [*between_convolutions, 0.5, 0.5]
    assert len(efficiency.active_features(partly)) == 13


def test_normalisation_is_inside():
    network = architectures.vgg16((32, 32, 3), 10)
    layer = network.get_layer("normalization")
    pixels = np.broadcast_to(np.array([0.4914, 0.4822, 0.4465], np.float32), (1, 32, 32, 3))
    np.testing.assert_allclose(layer(pixels), 0.0, atol=1e-6)
    np.testing.assert_allclose(layer(pixels + 0.247)[..., 0], 1.0, atol=1e-5)


def test_initial_weights_are_a_function_of_the_seed():
    keras.utils.set_random_seed(1)
    plain = architectures.lenet5((28, 28, 1), 10, seed=4)
    keras.utils.set_random_seed(2)
    gated = architectures.lenet5((28, 28, 1), 10, "beta_bernoulli", seed=4)
    other = architectures.lenet5((28, 28, 1), 10, seed=5)
    kernel = plain.get_layer("conv2").kernel.numpy()
    np.testing.assert_array_equal(kernel, gated.get_layer("conv2").kernel)
    assert not np.array_equal(kernel, other.get_layer("conv2").kernel)


def test_mixed_precision_keeps_logits_and_weights_in_float32():
    network = architectures.lenet5((28, 28, 1), 10, "beta_bernoulli", dtype="mixed_bfloat16")
    outputs = network(tf.zeros([2, 28, 28, 1]), training=True)
    assert outputs["logits"].dtype == tf.float32
    assert outputs["conv2"].dtype == tf.bfloat16
    assert all(v.dtype == "float32" for v in network.trainable_variables)


@pytest.mark.parametrize(("name", "shape"), [("lenet5", (8, 8, 1)), ("vgg16", (28, 28, 1))])
def test_images_that_do_not_fit_are_refused(name, shape):
    with pytest.raises(UsageError, match=rf"{name} needs images of .* got \({shape[0]},"):
        architectures.NETWORKS[name](shape, 10)
