"""The attack of training, compiled by XLA, against the same attack without."""

import numpy as np
import pytest
import tensorflow as tf
import tiny_network

from anpvs_tf.common import randomness
from anpvs_tf.methods.hyperparameters import Objective
from anpvs_tf.methods.optimizer import GroupedAdam
from anpvs_tf.methods.registry import METHODS
from anpvs_tf.methods.robust_classifier import RobustClassifier
from anpvs_tf.networks import bayesian

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(6, 12, 12, 1)).astype(np.float32)
LABELS = RNG.integers(0, 4, 6)


def classifiers(method, dtype="float32", **objective):
    """The same classifier twice: crafting as it is, crafting compiled."""
    gate = METHODS[method].gate
    network = tiny_network.tiny((12, 12, 1), 4, gate, dtype=dtype)
    if METHODS[method].bayesian:
        network = bayesian.convert(network, 1.0, -3.0)
    held = {"epsilon": 0.1, "step_size": 0.03, "attack_steps": 3, "train_examples": 100}
    made = [
        RobustClassifier(network, METHODS[method], Objective(**held | objective), 0, None, None, x)
        for x in (False, True)
    ]
    for classifier in made:
        classifier.compile(GroupedAdam(1e-2), jit_compile=False)
    return made


def crafted(classifier, seed=3):
    return tf.function(classifier.craft)(IMAGES, LABELS, randomness.seed_of(seed)).numpy()


def compiled_functions(classifier):
    """The functions that XLA has to compile in the graph of a crafting."""
    graph = (
        tf.function(classifier.craft)
        .get_concrete_function(IMAGES, LABELS, randomness.seed_of(0))
        .graph
    )
    return [op for op in graph.get_operations() if "_XlaMustCompile" in op.node_def.attr]


@pytest.mark.parametrize(
    ("method", "choices"),
    [
        ("anpvs", {"epsilon_warmup_steps": 4}),
        ("trades_anpvs", {}),
        ("at", {"norm": "l2", "epsilon": 0.5, "step_size": 0.2}),
        ("at", {"train_attack": "n_fgsm"}),
        ("at_bnn", {"crafting_draws": 2}),
    ],
)
def test_compiled_crafting_gives_the_same_images(method, choices):
    plain, compiled = classifiers(method, **choices)
    assert [len(compiled_functions(c)) for c in (plain, compiled)] == [0, 1]
    expected, found = crafted(plain), crafted(compiled)
    assert np.abs(expected - IMAGES).max() > 0.01
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_in_few_bits_the_loss_is_nearly_the_same(dtype):
    plain, compiled = classifiers("anpvs", dtype)
    expected, found = crafted(plain), crafted(compiled)
    losses = []
    for images in (expected, found):
        logits = tf.cast(plain.network(images, training=False)["logits"], tf.float32)
        losses.append(tf.nn.sparse_softmax_cross_entropy_with_logits(LABELS, logits))
    # Both reach the edge of the ball: at most a pixel in twenty has another sign.
    assert np.mean(np.abs(expected - found) > 1e-3) < 0.05
    np.testing.assert_allclose(np.mean(losses[1]), np.mean(losses[0]), rtol=0.02)


def test_a_pruned_network_is_compiled_anew():
    plain, compiled = classifiers("anpvs")
    before = crafted(compiled)
    gate = compiled.gates[0]
    gate.close(np.arange(gate.features) >= 5)
    assert plain.begin_epoch(1) and compiled.begin_epoch(1)
    np.testing.assert_allclose(crafted(compiled), crafted(plain), atol=1e-5)
    assert np.abs(crafted(compiled) - before).max() > 0.01
