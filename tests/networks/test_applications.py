"""The networks of keras.applications: gated = frozen = compact, with half of the features shut."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from gate_states import set_random
from small_networks import logits_and_gradient

from anpvs_tf.networks.gate import gates_of
from anpvs_tf.networks.gating import add_gates
from anpvs_tf.pruning import compact
from anpvs_tf.pruning.frozen import FrozenNetwork

SLOW = ("VGG16", "ResNet50", "MobileNetV2", "EfficientNetV2B0", "DenseNet121", "ConvNeXtTiny")


@pytest.mark.parametrize(
    "name", ["MobileNetV3Small", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_gated_frozen_and_compact_are_equal(name):
    size = 64 if name == "ResNet50" else 32
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(size, size, 3), classes=10, classifier_activation=None
    )
    network = add_gates(model, coupled=name in ("ResNet50", "MobileNetV2"))
    rng = np.random.default_rng(0)
    for gate in gates_of(network):
        is_open = rng.random(gate.features) >= 0.5
        is_open[0] = True
        set_random(gate, is_open, rng)
    images = tf.constant(rng.random((2, size, size, 3)), tf.float32)
    expected = logits_and_gradient(lambda x: network(x, training=False), images)
    small = compact.freeze(network)
    assert small.count_params() < 0.7 * compact.freeze(network, prune=False).count_params()
    for function in (FrozenNetwork(network), small):
        for found, wanted in zip(logits_and_gradient(function, images), expected, strict=True):
            assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
