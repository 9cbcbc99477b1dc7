"""Steers beta so that a share of the features, or of the operations, ends up pruned."""

import math
from typing import NamedTuple

import keras
import tensorflow as tf

from anpvs_tf.methods.hyperparameters import Objective
from anpvs_tf.networks import graph
from anpvs_tf.networks.gate import Gate, gates_of
from anpvs_tf.pruning import open_operations

# A feature is near its end if its importance is below NEAR times the threshold; one that has
# to wait is too close below CLOSE times.
NEAR, CLOSE = 4.0, 2.0
# Where near and pruned features exceed the ramp by this share, no others are pressed.
BRAKE = 0.02
# A factor that is a tenth behind for the whole ramp grows by exp(gain) in all. Features take
# long to come near their end, and beta is not to grow beyond measure meanwhile.
BETA_GAIN, PUSH_GAIN, MOST_BEHIND = 3.0, 6.0, 0.1
LOWEST, HIGHEST = 1e-3, 1e4
# But beta grows to at most this multiple of its first value: a target that is missed is better
# than a network that the KL divergence has silenced.
MOST_GROWN = 30.0
# Pruned features are held, and those that come too close are pressed back, this many times as
# hard as features are pushed: neither is to give way to a loss whose gradient an optimizer
# rescales.
HOLD = 100.0


class _Survey(NamedTuple):
    """The state of the features of all gates, one gate after the other.

    Attributes:
        values: importance over the threshold.
        is_open, near: bool.
        costs: the share that pruning it saves; 0 where it cannot be pruned.
        pruned: the share that is pruned, a scalar.
        reached: the same with the features near their end.
    """

    values: tf.Tensor
    is_open: tf.Tensor
    near: tf.Tensor
    costs: tf.Tensor
    pruned: tf.Tensor
    reached: tf.Tensor


class SparsityTarget:
    """Says how strongly the KL divergence presses on each feature.

    The share that may be pruned grows linearly from 0 to the target. Three rules follow it:

    * beta grows while less than that is near its end or pruned, and falls while there is
      more (an integral controller of log beta), so that far features feel no more of it
      than is needed;
    * of the features near their end only those of the least importance are pressed further,
      as many as the share allows, by a push that grows like beta until they are pruned; the
      others wait there, pressed back where they come too close, so that the target is not
      overshot however many arrive together;
    * pruned features stay pressed, so that they stay pruned; after the last of the three
      `target_steps` no others are pressed any more.

    Everything is part of the training step's graph and depends on the step counter and on
    `state()` alone.

    Args:
        network: that is trained; its output is a dict of which "logits" is one.
        gates: of it, those that learn.
        objective: with a target_sparsity.

    Attributes:
        log_beta, log_push: of the factors that are steered, scalars.
        whole: features or multiplications of the network with all gates open, a scalar; of
            a shrunk network, those of its full one.
    """

    def __init__(self, network: keras.Model, gates: list[Gate], objective: Objective):
        self.gates = gates
        self.objective = objective
        self.nodes = graph.nodes_of(network, graph.logits_of(network))
        same = {"trainable": False, "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA}
        beta = min(max(objective.beta, LOWEST), HIGHEST)
        self.log_beta = tf.Variable(tf.math.log(float(beta)), **same)
        self.log_push = tf.Variable(tf.math.log(float(beta)), **same)
        self.frozen = [gate for gate in gates_of(network) if not gate.trainable]
        whole = self._left({gate.name: tf.ones([gate.features]) for gate in gates})[0]
        self.whole = tf.Variable(whole, **same)

    def state(self) -> dict[str, tf.Variable]:
        """Returns the variables that a resumed run needs, by name."""
        steered = {"target_log_beta": self.log_beta, "target_log_push": self.log_push}
        return steered | {"target_whole": self.whole}

    def beta(self) -> tf.Tensor:
        """Returns the factor that is steered, a float32 scalar."""
        return tf.exp(tf.convert_to_tensor(self.log_beta))

    def pruned(self) -> tf.Tensor:
        """Computes the share of features or operations that is pruned now, in [0, 1]."""
        left, _ = self._left(self._masks())
        return 1.0 - left / tf.convert_to_tensor(self.whole)

    def pressures(self, step: tf.Tensor) -> list[tf.Tensor]:
        """Computes the factor of each feature's KL divergence, [features] for each gate."""
        begin, _, last = self.objective.target_steps
        found = self._survey()
        allowed = self._allowed(step)
        order = tf.argsort(found.values)
        costs = tf.gather(found.costs, order)
        # To the nearest: the last feature may save more than is still missing.
        spent = found.pruned + tf.cumsum(costs) - 0.5 * costs
        within = tf.gather(spent <= allowed + 1e-6, tf.argsort(order))
        waits = found.near & ~within
        brake = tf.clip_by_value(1.0 - (found.reached - allowed) / BRAKE, 0.0, 1.0)
        # A feature that saves much is pressed more; on average by beta.
        mean = tf.math.divide_no_nan(
            tf.reduce_sum(found.costs), tf.reduce_sum(tf.cast(found.costs > 0, tf.float32))
        )
        worth = tf.clip_by_value(tf.math.divide_no_nan(found.costs, mean), 0.0, 10.0)
        decided = tf.exp(tf.convert_to_tensor(self.log_push))
        decided = tf.maximum(decided, self.objective.beta)
        pressing = tf.where(found.near & within, decided, self.beta() * brake * worth)
        pressing = tf.where(waits | ~((step >= begin) & (step < last)), 0.0, pressing)
        # Pressed back, so that not even an optimizer's momentum moves a feature that has to wait.
        pressing = tf.where(waits & (found.values <= CLOSE), -HOLD * decided, pressing)
        pressing = tf.where(found.costs > 0, pressing, 0.0)  # These may not be pruned.
        pressures = tf.where(found.is_open, pressing, HOLD * decided)
        return tf.split(tf.stop_gradient(pressures), [gate.features for gate in self.gates])

    def advance(self, step: tf.Tensor, good: tf.Tensor | float = 1.0) -> None:
        """Moves beta and the push after a step; not at all where `good` is 0."""
        begin, reached, last = self.objective.target_steps
        inside = tf.cast((step >= begin) & (step < last), tf.float32) * good
        rate = inside / max(1, reached - begin)
        found, allowed = self._survey(), self._allowed(step)
        most = min(MOST_GROWN * max(self.objective.beta, LOWEST), HIGHEST)
        for steered, gain, share, highest in (
            (self.log_beta, BETA_GAIN, found.reached, most),
            (self.log_push, PUSH_GAIN, found.pruned, HIGHEST),
        ):
            behind = tf.clip_by_value((allowed - share) / MOST_BEHIND, -1.0, 1.0)
            moved = tf.convert_to_tensor(steered) + rate * gain * behind
            limits = (math.log(LOWEST), math.log(highest))
            steered.assign(tf.clip_by_value(moved, *limits))

    def _allowed(self, step: tf.Tensor) -> tf.Tensor:
        begin, reached, _ = self.objective.target_steps
        way = (tf.cast(step, tf.float32) - begin) / max(1, reached - begin)
        return self.objective.target_sparsity * tf.clip_by_value(way, 0.0, 1.0)

    def _masks(self) -> dict[str, tf.Tensor]:
        return {gate.name: tf.cast(gate.is_open(), tf.float32) for gate in self.gates}

    def _left(self, masks: dict[str, tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Returns the features or operations that are left, and each feature's share of them."""
        if self.objective.target_of == "operations":
            masks |= {gate.name: tf.cast(gate.is_open(), tf.float32) for gate in self.frozen}
            left, costs = open_operations.costs(self.nodes, masks)
            return left, [costs[gate.name] for gate in self.gates]
        left = tf.add_n([tf.reduce_sum(mask) for mask in masks.values()])
        return left, [tf.ones([gate.features]) for gate in self.gates]

    def _survey(self) -> _Survey:
        whole = tf.convert_to_tensor(self.whole)
        left, costs = self._left(self._masks())
        pruned = 1.0 - left / whole
        # On a scale where every kind of gate is pruned at 1.
        scaled = [gate.importance() / (gate.prune_threshold or 1.0) for gate in self.gates]
        values = tf.concat(scaled, axis=0)
        is_open = tf.concat([gate.is_open() for gate in self.gates], axis=0)
        may_go = is_open & ~tf.concat([gate.kept() for gate in self.gates], axis=0)
        costs = tf.where(may_go, tf.concat(costs, axis=0) / whole, 0.0)
        near = values <= NEAR
        reached = pruned + tf.reduce_sum(tf.where(near, costs, 0.0))
        return _Survey(values, is_open, near, costs, pruned, reached)
