"""Training on two logical devices, in a process of its own: devices are fixed at the start."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent

MIRRORED = """
import numpy as np
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

from anpvs_tf import networks, noise
from anpvs_tf.attacks import pgd
from anpvs_tf.methods import METHODS
from anpvs_tf.optimization import GroupedAdam
from anpvs_tf.training import Objective, RobustClassifier

rng = np.random.default_rng(0)
images, labels = rng.random((8, 16, 16, 1), np.float32), np.arange(8) % 4
objective = Objective(
    epsilon=0.2, step_size=0.1, attack_steps=3, train_examples=100, lambda_vs=0.5
)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    network = networks.lenet5((16, 16, 1), 4, "beta_bernoulli", seed=1)
    for gate in network.layers:
        if gate.name.endswith("_gate"):
            shut = (rng.random(gate.features) < 0.5) & (np.arange(gate.features) > 2)
            gate.a_raw.assign(np.where(shut, -9.0, 1.0))
    classifier = RobustClassifier(network, METHODS["anpvs"], objective, seed=5)
    classifier.compile(optimizer=GroupedAdam(1e-3), jit_compile=False)
    classifier.optimizer.build(network.trainable_variables)
assert classifier.refreeze()


def crafted(images, labels):
    seed = noise.seed_of(3)
    frozen = classifier.craft(images, labels, seed)
    unfrozen = pgd.python_function(
        lambda x: network(x, training=False)["logits"], images, labels, seed,
        epsilon=0.2, step_size=0.1, steps=3,
    )
    # sign() of a gradient within rounding of 0 may differ: almost all pixels are equal.
    return tf.reduce_mean(tf.cast(tf.abs(frozen - unfrozen) < 1e-5, tf.float32))


@tf.function(autograph=False)
def step(batch):
    equal = strategy.run(crafted, batch)
    terms = strategy.run(classifier.train_step, (batch,))
    return equal, terms


data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(8)
for batch in strategy.experimental_distribute_dataset(data.repeat(2)):
    equal, terms = step(batch)
    for share in strategy.experimental_local_results(equal):
        assert float(share) > 0.999, share
    for value in strategy.experimental_local_results(terms["loss"]):
        assert np.isfinite(float(value))
iterations = strategy.experimental_local_results(classifier.optimizer.iterations.value)
assert [int(i.numpy()) for i in iterations] == [2, 2]
for variable in network.trainable_variables:
    one, two = (v.numpy() for v in strategy.experimental_local_results(variable.value))
    np.testing.assert_array_equal(one, two, variable.path)
print("two replicas agree")
"""


def test_mirrored_replicas_craft_on_the_frozen_network_and_stay_equal():
    result = subprocess.run(
        [sys.executable, "-c", MIRRORED],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "two replicas agree" in result.stdout
