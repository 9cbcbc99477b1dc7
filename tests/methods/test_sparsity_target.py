"""A share that is asked for is what is pruned in the end."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from anpvs_tf.methods.hyperparameters import Objective
from anpvs_tf.methods.optimizer import GroupedAdam
from anpvs_tf.methods.registry import METHODS
from anpvs_tf.methods.robust_classifier import RobustClassifier
from anpvs_tf.networks import architectures
from anpvs_tf.pruning import efficiency
from anpvs_tf.pruning.frozen import FrozenNetwork

LABELS = np.arange(8) % 4
IMAGES = 0.2 * np.random.default_rng(0).random((8, 16, 16, 1), np.float32)
for i, label in enumerate(LABELS):  # A class is where it is bright.
    IMAGES[i, 4 * label : 4 * label + 4] += 0.7


def classifier_of(method, min_active=0, **changes):
    objective = Objective(0.05, 0.05, 1, 1000, target_steps=(5, 80, 100), **changes)
    network = architectures.lenet5((16, 16, 1), 4, METHODS[method].gate, seed=1, width=0.4)
    classifier = RobustClassifier(network, METHODS[method], objective, seed=5)
    for gate in classifier.gates:
        gate.min_active = min_active
    classifier.compile(optimizer=GroupedAdam(1e-3, 100.0), jit_compile=False)
    classifier.optimizer.build(network.trainable_variables)
    return classifier


@pytest.mark.parametrize(("method", "of"), [("anp", "operations"), ("anp_vib", "features")])
def test_the_target_is_met_and_stays(method, of):
    classifier = classifier_of(method, 2, target_sparsity=0.6, target_of=of)
    step = tf.function(classifier.update, autograph=False)
    shares = []
    for _ in range(120):
        shares.append(float(step((IMAGES, LABELS))["pruned"]))
    network = classifier.network
    reached = efficiency.sparsity(efficiency.active_features(network))
    if of == "operations":
        left, whole = (FrozenNetwork(network, p).multiplications for p in (True, False))
        reached = 1 - left / whole
    assert reached == pytest.approx(float(classifier.target.pruned()), abs=1e-6)
    # A feature of the first layer is 3 % of the operations.
    assert reached == pytest.approx(0.6, abs=0.016)
    assert shares[5] == 0 and max(shares) < 0.6 + 0.016
    assert all(now >= before for before, now in itertools.pairwise(shares[100:]))
    assert min(active for active, _ in efficiency.active_features(network).values()) >= 2


def test_beta_follows_what_is_missing_alone():
    classifier = classifier_of("anp", target_sparsity=0.5, beta=2.0)
    target = classifier.target
    betas = []
    for step in (0, 4, 5, 40, 80, 99, 100, 200):
        target.log_beta.assign(0.0)
        target.advance(tf.constant(step, tf.int64))
        betas.append(float(target.log_beta))
    # Nothing is near its end: from step 5 on more and more is missing, soon over a tenth.
    assert betas[:3] == [0, 0, 0] and betas[-2:] == [0, 0]
    assert betas[3:6] == pytest.approx([3 / 75] * 3, rel=1e-4)
    for gate in classifier.gates:  # All is near its end.
        gate.a_raw.assign(tf.fill([gate.features], -6.0))
    target.log_beta.assign(0.0)
    target.advance(tf.constant(80, tf.int64))
    assert float(target.log_beta) < 0


def test_only_as_many_as_may_go_are_pressed_on():
    classifier = classifier_of("anp", target_sparsity=0.5, beta=2.0)
    gates = classifier.gates
    for gate in gates:  # Near their end, the first features the nearest.
        gate.a_raw.assign(tf.linspace(-6.5, -5.8, gate.features))
    total = sum(gate.features for gate in gates)
    pressed = np.concatenate(classifier.target.pressures(tf.constant(80, tf.int64)))
    assert np.count_nonzero(pressed > 0) == round(0.5 * total)
    for pressures in classifier.target.pressures(tf.constant(80, tf.int64)):
        assert np.all(np.diff((pressures.numpy() > 0).astype(int)) <= 0)
    # Before and after, nothing is pressed but what is pruned already.
    for step in (0, 100):
        pressed = np.concatenate(classifier.target.pressures(tf.constant(step, tf.int64)))
        assert np.all(pressed <= 0)
    gates[0].close(np.arange(gates[0].features) == 0)
    first = classifier.target.pressures(tf.constant(200, tf.int64))[0].numpy()
    assert first[0] == 200.0 and np.all(first[1:] <= 0)
