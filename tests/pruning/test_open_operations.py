"""Operations counted in a training step against those of the network that is deployed."""

import numpy as np
import pytest
import small_networks
import tensorflow as tf

from anpvs_tf.networks import architectures, graph
from anpvs_tf.networks.gate import gates_of
from anpvs_tf.pruning import open_operations
from anpvs_tf.pruning.frozen import FrozenNetwork

MADE = {
    "lenet": small_networks.lenet,
    "small_vgg": small_networks.small_vgg,
    "resnet20": lambda: architectures.resnet20((32, 32, 3), 10, "beta_bernoulli", width=0.3),
}


@pytest.mark.parametrize("name", MADE)
def test_they_are_those_of_the_frozen_network(name):
    network = MADE[name]()
    small_networks.randomise(network, 0.6, np.random.default_rng(0))
    nodes = graph.nodes_of(network, graph.logits_of(network))
    masks = {gate.name: tf.cast(gate.is_open(), tf.float32) for gate in gates_of(network)}
    left, costs = open_operations.costs(nodes, masks)
    assert float(left) == FrozenNetwork(network).multiplications
    whole = FrozenNetwork(network, prune=False).multiplications
    assert float(open_operations.multiplications(nodes, {})) == whole
    # Closing one more feature saves what it answers for.
    gate = next(g for g in gates_of(network) if masks[g.name].numpy().sum() > 1)
    place = int(np.flatnonzero(masks[gate.name])[0])
    closed = {gate.name: masks[gate.name] - tf.one_hot(place, gate.features)}
    less = open_operations.multiplications(nodes, masks | closed)
    assert float(left - less) == pytest.approx(float(costs[gate.name][place]), rel=1e-5)
