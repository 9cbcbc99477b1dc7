"""The training network without the features that are gone for good.

`FrozenNetwork` leaves pruned features out of the attacked and deployed network; they
stay in the network that is trained, where they may open again. `shrink` makes a
smaller training network in which chosen features no longer exist, so that the
weight update gets cheaper too. The full network stays the home of all weights:
the small one is loaded from it and stored back into it.
"""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from anpvs_tf.common.errors import UsageError
from anpvs_tf.methods.optimizer import updating
from anpvs_tf.methods.robust_classifier import RobustClassifier
from anpvs_tf.networks import graph
from anpvs_tf.networks.gate import Gate, gates_of
from anpvs_tf.networks.graph import Node
from anpvs_tf.pruning import live_channels
from anpvs_tf.pruning.frozen import FrozenNetwork
from anpvs_tf.pruning.layer_rules import RULES

layers = keras.layers
Features = dict[str, np.ndarray]

# A smaller training network pays for its compilation if it saves this share of the work.
WORTHWHILE = 0.1


@dataclasses.dataclass(frozen=True)
class Pair:
    """A variable of the full network, the small one's, and where the one lies in the other.

    `places` holds the kept indices of every axis; None for the whole variable.
    """

    full: tf.Variable
    small: tf.Variable
    places: tuple[np.ndarray, ...] | None

    def load(self) -> None:
        """Copies the full variable to the small one."""
        values = np.asarray(self.full)
        self.small.assign(values if self.places is None else values[np.ix_(*self.places)])

    def store(self) -> None:
        """Copies the small variable to its places in the full one; the others stay as they are."""
        values = np.array(self.full)
        if self.places is None:
            values = np.asarray(self.small)
        else:
            values[np.ix_(*self.places)] = np.asarray(self.small)
        self.full.assign(values)


@dataclasses.dataclass(frozen=True)
class Shrunk:
    """A network without some features of its full one.

    Attributes:
        network: the small network, with the same names of layers and outputs.
        pairs: a pair for every weight of the small network.
        gates: {gate's name: indices of the features that it still has}.
        shares: {output's name: share of its features that is left}.
    """

    network: keras.Model
    pairs: list[Pair]
    gates: Features
    shares: dict[str, float]

    def optimizer_pairs(self, weights: list, full, small) -> list[Pair]:
        """Makes pairs for the state of two equally made optimizers; builds the small one.

        Args:
            weights: the full network's trainable variables, as `full` was built with.
            full, small: a `GroupedAdam`, or one inside a `LossScaleOptimizer`.
        """
        pair_of = {id(pair.full): pair for pair in self.pairs}
        trained = [pair_of[id(variable)] for variable in weights]
        small.build([pair.small for pair in trained])
        variables = zip(
            *([v for v in o.variables if len(v.shape) == 0] for o in (full, small)), strict=True
        )
        pairs = [Pair(*scalars, None) for scalars in variables]
        full, small = map(updating, (full, small))
        for full_slots, small_slots in zip(full.slots(), small.slots(), strict=True):
            for pair, f, s in zip(trained, full_slots, small_slots, strict=True):
                pairs.append(Pair(f, s, pair.places))
        return pairs


def shrink(network: keras.Model, removed: Features) -> Shrunk:
    """Makes the network without gate features that are `removed`.

    A feature leaves if that needs no other layer than a narrower one. So these stay: a
    feature of a gate that would lose all, one of which a batch normalisation in
    front of the next convolution makes a trained constant, one that a sum adds to
    another that stays, and a flattened one of a channel that stays.

    Args:
        network: gated, functional, as for `FrozenNetwork`; its output is a dict.
        removed: {gate's name: bool [features]}.

    Raises:
        UsageError: a layer cannot be made narrower (the message names it), or nothing of
            the image reaches the logits.
    """
    nodes = _nodes(network)
    layers_with_weights = [
        id(node.layer)
        for node in nodes
        if getattr(node.layer, "weights", ()) and not isinstance(node.layer, Gate)
    ]
    for node in nodes:
        if layers_with_weights.count(id(node.layer)) > 1:
            raise UsageError(f"layer {node.layer.name!r} cannot be shrunk: it is called twice")
    made = {node.output for node in nodes}
    for name, output in network.output.items():
        if id(output) not in made:
            raise UsageError(f"output {name!r} cannot be kept: the logits do not depend on it")
    kept = _kept(network, nodes, removed, {})
    image = network.inputs[0]
    small_image = keras.Input(image.shape[1:], name=image.name)
    tensors = {id(image): small_image}
    pairs = []
    narrow: dict[int, layers.Layer] = {}  # A gate that several layers share stays one.
    for node in nodes:
        rule, rows, columns = RULES[node.kind], kept[node.inputs[0]], kept[node.output]
        x = [tensors[i] for i in node.inputs]
        again = id(node.layer) in narrow
        layer = narrow.setdefault(id(node.layer), rule.narrow(node, rows, columns))
        tensors[node.output] = node.repeat(x, layer)
        if again or not isinstance(layer, layers.Layer):
            continue
        for full, small in zip(node.layer.weights, layer.weights, strict=True):
            pairs.append(Pair(full, small, rule.places(node, tuple(full.shape), rows, columns)))
    outputs = {name: tensors[id(output)] for name, output in network.output.items()}
    shares = {
        name: len(kept[id(output)]) / output.shape[-1] for name, output in network.output.items()
    }
    for pair in pairs:
        pair.load()
    small = keras.Model(small_image, outputs, name=network.name)
    return Shrunk(small, pairs, _of_gates(network, nodes, kept), shares)


def check(network: keras.Model) -> None:
    """Raises UsageError if `shrink` could not take features out of a network later."""
    shrink(network, {gate.name: np.arange(gate.features) % 2 == 1 for gate in gates_of(network)})


def _nodes(network: keras.Model) -> list[Node]:
    return graph.nodes_of(network, network.output["logits"])


def _of_gates(network: keras.Model, nodes: list[Node], kept: dict[int, np.ndarray]) -> Features:
    names = {gate.name for gate in gates_of(network)}
    return {node.layer.name: kept[node.output] for node in nodes if node.layer.name in names}


def _kept(
    network: keras.Model, nodes: list[Node], removed: Features, gone: Features
) -> dict[int, np.ndarray]:
    """Finds the channels of every tensor that the small network has: {tensor's id: indices}.

    Args:
        gone: the features that left before; `removed` contains them.
    """
    left = {}
    for gate in gates_of(network):
        left[gate.name] = ~removed[gate.name]
        if not left[gate.name].any():
            # Not one that left before and has not been trained since.
            likely = np.where(gone.get(gate.name, False), -1.0, gate.importance())
            left[gate.name][np.argmax(likely)] = True
    image = network.inputs[0]
    known = live_channels.analyse(nodes, id(image), image.shape, left, zeros=True)
    needed = {number: channels.needed for number, channels in known.items()}
    needed[id(image)][:] = True
    before = -1
    while before != (now := sum(map(np.count_nonzero, needed.values()))):
        before = now
        for node in nodes:
            inputs = [needed[i] for i in node.inputs]
            RULES[node.kind].agree(node, inputs, needed[node.output])
        for gate in gates_of(network):
            calls = [needed[node.output] for node in nodes if node.layer is gate]
            for channels in calls:
                channels |= np.logical_or.reduce(calls)
    return {number: np.flatnonzero(channels) for number, channels in needed.items()}


class Removal:
    """Which features of a network have left its training for good, and which will.

    Attributes:
        pruned_epochs: {gate's name: int [features]}, epochs in a row each was pruned.
        removed: {gate's name: bool [features]}, those that have left.
    """

    def __init__(self, network: keras.Model):
        self.network = network
        self.pruned_epochs = _per_gate(network, tf.int64)
        self.removed = _per_gate(network, tf.bool)

    def checkpoint(self) -> tf.train.Checkpoint:
        """Makes a checkpoint of everything that a resumed run needs."""
        return tf.train.Checkpoint(
            pruned_epochs=tf.train.Checkpoint(**self.pruned_epochs),
            removed=tf.train.Checkpoint(**self.removed),
        )

    def observe(self, deployed: keras.Model) -> None:
        """Counts an epoch that has ended.

        Args:
            deployed: the network with the weights that are evaluated. Features that are pruned in
                training must be so there too: an average of weights lags behind.
        """
        for gate, other in zip(gates_of(self.network), gates_of(deployed), strict=True):
            count = self.pruned_epochs[gate.name]
            is_open = (gate.mean_mask() > 0) | (other.mean_mask() > 0)
            count.assign(tf.where(is_open, tf.zeros_like(count), count + 1))

    def advance(self, epochs: int) -> bool:
        """Removes the features pruned for `epochs` epochs, if they are much of the work.

        Features that are always zero, because all in front of them is gone, leave
        too, and their gates are closed.

        Returns:
            Whether anything was removed: `shrunk` now gives another network.
        """
        due = {name: count.numpy() >= epochs for name, count in self.pruned_epochs.items()}
        nodes = _nodes(self.network)
        kept = _of_gates(self.network, nodes, _kept(self.network, nodes, due, self._now()))
        gone = {
            name: np.isin(np.arange(len(due[name])), at, invert=True) for name, at in kept.items()
        }
        if self._work(gone) > (1 - WORTHWHILE) * self._work(self._now()):
            return False
        for gate in gates_of(self.network):
            self.removed[gate.name].assign(gone[gate.name])
            gate.close(gone[gate.name] & ~due[gate.name])
        return True

    def shrunk(self) -> Shrunk | None:
        """Makes the small network, with the full one's weights; None if nothing is removed."""
        removed = self._now()
        return shrink(self.network, removed) if any(map(np.any, removed.values())) else None

    def _now(self) -> Features:
        return {name: held.numpy() for name, held in self.removed.items()}

    def _work(self, removed: Features) -> int:
        left = {name: ~shut for name, shut in removed.items()}
        return FrozenNetwork(self.network, open_gates=left).multiplications


def _per_gate(network: keras.Model, dtype: tf.DType) -> dict[str, tf.Variable]:
    return {
        gate.name: tf.Variable(tf.zeros([gate.features], dtype), trainable=False)
        for gate in gates_of(network)
    }


def working_copy(
    whole: RobustClassifier,
    removal: Removal,
    classifier_of: Callable[[keras.Model, dict[str, float]], RobustClassifier],
) -> tuple[RobustClassifier, list[Pair]]:
    """Makes the classifier that is trained in place of the whole one, loaded from it.

    Args:
        whole: compiled; its optimizer is built.
        classifier_of: makes a compiled classifier like it of (network, shares).

    Returns:
        The classifier (`whole` itself if nothing is removed), and the pairs that are
        to be stored back before `whole` is looked at or saved.
    """
    shrunk = removal.shrunk()
    if shrunk is None:
        whole.crafting.restore()
        return whole, []
    small = classifier_of(shrunk.network, shrunk.shares)
    weights = whole.network.trainable_variables
    pairs = shrunk.pairs + shrunk.optimizer_pairs(weights, whole.optimizer, small.optimizer)
    for name, features in small.crafting.features.items():
        pairs.append(Pair(whole.crafting.features[name], features, (shrunk.gates[name],)))
    if small.averaged_statistics is not None:
        places_of = {id(pair.full): pair.places for pair in shrunk.pairs}
        both = (whole.averaged_statistics.pairs, small.averaged_statistics.pairs)
        for (moving, full), (_, narrow) in zip(*both, strict=True):
            pairs.append(Pair(full, narrow, places_of[id(moving)]))
    if small.target is not None:
        of_whole, of_small = whole.target.state(), small.target.state()
        pairs += [Pair(of_whole[name], of_small[name], None) for name in of_whole]
    for pair in pairs:
        pair.load()
    small.crafting.restore()
    return small, pairs


def store(pairs: list[Pair]) -> None:
    """Brings the full network up to date with the small one that is trained."""
    for pair in pairs:
        pair.store()
