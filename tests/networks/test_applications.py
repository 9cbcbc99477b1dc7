"""The networks of keras.applications: gated = frozen = compact, with half of the features shut."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from gate_states import set_random
from small_networks import logits_and_gradient

from anpvs_tf.methods.hyperparameters import Objective
from anpvs_tf.methods.optimizer import GroupedAdam
from anpvs_tf.methods.registry import METHODS
from anpvs_tf.methods.robust_classifier import RobustClassifier
from anpvs_tf.networks.gate import gates_of
from anpvs_tf.networks.gating import add_gates
from anpvs_tf.pruning import compact
from anpvs_tf.pruning.frozen import FrozenNetwork
from anpvs_tf.serving import isolated_process, litert, signatures

SLOW = ("VGG16", "ResNet50", "MobileNetV2", "EfficientNetV2B0", "DenseNet121", "ConvNeXtTiny")


def gated(name):
    """The network with gates, coupled where it has residual sums; its images are 32 or 64 wide."""
    size = 64 if name == "ResNet50" else 32
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(size, size, 3), classes=10, classifier_activation=None
    )
    return add_gates(model, coupled=name in ("ResNet50", "MobileNetV2")), (size, size, 3)


def shut_half(network, rng):
    for gate in gates_of(network):
        is_open = rng.random(gate.features) >= 0.5
        is_open[0] = True
        set_random(gate, is_open, rng)


@pytest.mark.parametrize(
    "name", ["MobileNetV3Small", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_gated_frozen_and_compact_are_equal(name):
    network, shape = gated(name)
    rng = np.random.default_rng(0)
    shut_half(network, rng)
    images = tf.constant(rng.random((2, *shape)), tf.float32)
    expected = logits_and_gradient(lambda x: network(x, training=False), images)
    small = compact.freeze(network)
    assert small.count_params() < 0.7 * compact.freeze(network, prune=False).count_params()
    for function in (FrozenNetwork(network), small):
        for found, wanted in zip(logits_and_gradient(function, images), expected, strict=True):
            assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MobileNetV3Small", *SLOW])
def test_after_a_step_of_training_every_export_computes_the_same(name, tmp_path):
    network, shape = gated(name)
    objective = Objective(0.03, 0.01, 2, lambda_vs=1.0, train_examples=4)
    classifier = RobustClassifier(network, METHODS["anpvs"], objective)
    classifier.compile(optimizer=GroupedAdam(1e-3), jit_compile=False)
    classifier.optimizer.build(network.trainable_variables)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (4, *shape), np.uint8)
    before = network.get_weights()
    terms = classifier.update((tf.constant(pixels / 255.0, tf.float32), tf.constant([0, 1, 2, 3])))
    assert all(np.isfinite(float(value)) for value in terms.values())
    moved = [np.any(a != b) for a, b in zip(before, network.get_weights(), strict=True)]
    assert np.mean(moved) > 0.5
    shut_half(network, rng)
    expected = network(pixels / np.float32(255), training=False)["logits"].numpy()
    small = compact.freeze(network)
    litert.write(small, tmp_path)
    signatures.write_saved_model(small, None, tmp_path)
    small.save(tmp_path / "model.keras")
    found = {
        file: functions(tmp_path)
        for file, (functions, _) in isolated_process.FORMATS.items()
        if (tmp_path / file).exists()
    }
    assert len(found) == 3
    for functions in found.values():
        for kind, function in functions.items():
            if "int8" not in kind.replace("uint8", ""):
                logits = function(pixels)["logits"]
                assert np.abs(logits - expected).max() <= 2e-5 * np.abs(expected).max(), kind
