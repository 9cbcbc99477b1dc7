"""Counts against the published totals and against counts by hand."""

import keras
import numpy as np
import pytest

from anpvs_tf.networks import architectures
from anpvs_tf.networks.architectures import lenet5, vgg16
from anpvs_tf.networks.beta_bernoulli import BetaBernoulliGate
from anpvs_tf.networks.gate import gates_of
from anpvs_tf.pruning import efficiency
from anpvs_tf.pruning.compact import freeze

layers = keras.layers


def keep(network, active):
    """Prunes all but the first `active[i]` features of gate i."""
    for gate, count in zip(gates_of(network), active, strict=True):
        gate.close(np.arange(gate.features) >= count)


def costs_of(network):
    return efficiency.costs(freeze(network), freeze(network, prune=False))


def test_published_totals():
    assert efficiency.flops(freeze(lenet5((28, 28, 1), 10))) == 4_615_940
    assert efficiency.flops(freeze(lenet5((28, 28, 1), 10, "beta_bernoulli"))) == 4_615_940


def test_published_totals_of_vgg16():
    # The authors count an activation of VGG-16's logits: one a class.
    assert efficiency.flops(freeze(vgg16((32, 32, 3), 10))) + 10 == 627_329_546
    assert efficiency.flops(freeze(vgg16((32, 32, 3), 100, "beta_bernoulli"))) + 100 == 627_421_796


def test_costs_of_a_pruned_lenet_by_hand():
    network = lenet5((28, 28, 1), 10, gate="beta_bernoulli")
    keep(network, (3, 7, 800, 11))
    found = costs_of(network)
    # A convolution or dense value: 2 a multiply-add (the bias takes the place of the addition
    # that a sum of n products lacks); an activation 1; a pooling 4 for each value it makes.
    conv1 = 24 * 24 * 3 * (2 * 25 + 1) + 12 * 12 * 3 * 4
    conv2 = 8 * 8 * 7 * (2 * 25 * 3 + 1) + 4 * 4 * 7 * 4
    dense = 11 * (2 * 16 * 7 + 1) + 10 * 2 * 11
    assert found["flops"] == [conv1 + conv2 + dense, 4_615_940]
    assert found["flops_reduction"] == 4_615_940 / (conv1 + conv2 + dense)
    maps = [24 * 24 * 3 + 8 * 8 * 7 + 11, 24 * 24 * 20 + 8 * 8 * 50 + 500]
    assert found["feature_map_values"] == maps
    assert found["feature_map_memory"] == maps[0] / maps[1]
    weights = (25 * 3 + 3) + (25 * 3 * 7 + 7) + (16 * 7 * 11 + 11) + (11 * 10 + 10)
    assert found["parameters"] == [weights, 431_080]
    kernels = 25 * 3 + 25 * 3 * 7 + 16 * 7 * 11 + 11 * 10
    assert efficiency.removed_weights(network) == pytest.approx(1 - kernels / (431_080 - 580))


def test_costs_of_positions_pruned_behind_flatten():
    network = lenet5((28, 28, 1), 10, gate="beta_bernoulli")
    keep(network, (20, 50, 60, 500))  # 60 flattened features: place 0, and 10 of place 1.
    found = costs_of(network)
    assert found["flops"][1] - found["flops"][0] == 2 * (800 - 60) * 500
    assert found["parameters"][1] - found["parameters"][0] == (800 - 60) * 500


def test_nothing_pruned_costs_everything():
    found = costs_of(lenet5((16, 16, 1), 10, gate="beta_bernoulli"))
    assert found["flops_reduction"] == found["feature_map_memory"] == 1.0


def test_other_layers_are_counted():
    images = keras.Input((8, 8, 4))
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu")(images)
    x = layers.ReLU()(layers.Add()([x, images]))
    x = BetaBernoulliGate()(x)
    x = layers.GlobalAveragePooling2D()(x)
    found = efficiency.flops(freeze(keras.Model(images, layers.Dense(5)(x))))
    values = 8 * 8 * 4
    assert found == values * (2 * 9 + 1) + values + values + values + 5 * 2 * 4


@pytest.mark.parametrize("pruned", [False, True])
def test_measure(pruned):
    network = lenet5((28, 28, 1), 10, gate="beta_bernoulli")
    if pruned:
        keep(network, (2, 5, 800, 50))
    compact = freeze(network)
    found = efficiency.measure({"dense": network, "compact": compact}, (1, 8), repeats=2)
    dense, small = found["dense"], found["compact"]
    # Weights, the image, and at least the first convolution with its pooling.
    weights = 4 * (431_080 + 2 * 1370)
    assert dense["parameters"] == 431_080 + 2 * 1370
    assert dense["saved_model_bytes"] > weights
    assert dense["peak_memory"][8] >= weights + 8 * 4 * 24 * 24 * 20
    assert dense["peak_memory"][1] < dense["peak_memory"][8] < weights + 3 * 8 * 4 * 24 * 24 * 20
    assert all(seconds > 0 for seconds in small["latency"].values())
    if pruned:
        assert small["saved_model_bytes"] < dense["saved_model_bytes"] / 5
        assert small["peak_memory"][8] < dense["peak_memory"][8] / 5


def test_a_network_of_which_nothing_is_pruned_is_measured_once(tiny_lenet5, monkeypatch):
    seen = []

    def measure(models):
        seen.append(list(models))
        return dict.fromkeys(models, "measured")

    monkeypatch.setattr(efficiency, "measure", measure)
    network = architectures.NETWORKS["lenet5"]((28, 28, 1), 10, "beta_bernoulli")
    whole = efficiency.report(network)
    gates_of(network)[0].close(np.arange(20) < 3)
    pruned = efficiency.report(network)
    assert seen == [["dense"], ["compact", "dense"]]
    assert whole["measured"] == pruned["measured"] == dict.fromkeys(seen[1], "measured")
    assert pruned["parameters"][0] < pruned["parameters"][1] == whole["parameters"][0]


def test_interleaved_times_each_call():
    import time

    found = efficiency.interleaved(
        {"short": lambda: time.sleep(0.001), "long": lambda: time.sleep(0.02)}, repeats=3
    )
    assert 0.001 <= found["short"] < found["long"]
    assert found["long"] >= 0.02
