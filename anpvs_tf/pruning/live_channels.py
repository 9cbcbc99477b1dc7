"""Which channels of a functional network have to be computed, given what is pruned.

A forward walk finds the channels that are constant (a pruned feature is the
constant 0; a kernel of zeros makes its bias; an activation of a constant is a
constant). A backward walk from the logits finds the channels that a later layer needs, by
weights that are not zero. Constants are never needed: they go into the biases of their
consumers.
"""

import numpy as np
import tensorflow as tf

from anpvs_tf.common.errors import UsageError
from anpvs_tf.networks import bayesian
from anpvs_tf.networks.graph import Node, layers
from anpvs_tf.pruning.channels import Channels, Given, Support, once
from anpvs_tf.pruning.layer_rules import RULES


def analyse(
    nodes: list[Node],
    image: int,
    image_shape: tuple,
    open_gates: dict[str, np.ndarray],
    zeros: bool = False,
    support: Support | None = None,
) -> dict[int, Channels]:
    """Finds the channels of every tensor that are constant, and those that are needed.

    Args:
        nodes: in order, the last one makes the logits.
        image: the number of the input tensor.
        image_shape: (None, H, W, C).
        open_gates: {gate's name: bool [features], False where pruned}; a gate
            that is absent has nothing pruned.
        zeros: only channels that are 0 whatever the weights are count as constant:
            the others' values may still be trained.
        support: of the weights; None: they may be anything.

    Raises:
        UsageError: nothing of the image reaches the logits.
    """
    given = Given(open_gates, support or {})
    never = np.zeros(image_shape[-1], bool)
    known = {image: Channels(never, never, lambda: tf.zeros([len(never)]), never.copy())}
    for node in nodes:
        before = [known[i] for i in node.inputs]
        constant, zero, value = RULES[node.kind].constants(node, before, given)
        if zeros:
            constant = zero
        known[node.output] = Channels(constant, zero, once(value), np.zeros(len(zero), bool))
    logits = known[nodes[-1].output]
    if logits.constant.all():
        raise UsageError(
            "every path from the image to the logits is pruned: the network is constant"
        )
    # One logit alone that is constant is computed like the others.
    logits.constant = np.zeros_like(logits.constant)
    logits.needed[:] = True
    for node in reversed(nodes):
        output = known[node.output]
        output.needed &= ~output.constant
        if output.needed.any():
            needs = RULES[node.kind].needs(node, output.needed, given)
            for number, needed in zip(node.inputs, needs, strict=True):
                known[number].needed |= needed & ~known[number].constant
    return known


def nonzero(nodes: list[Node]) -> Support:
    """Returns the support of the weights as they are now.

    The means of a Gaussian posterior may be anything: draws from it are not zero.
    """
    known = [n.layer for n in nodes if isinstance(n.layer, layers.Layer) and n.kind != "whole"]
    fixed = [layer for layer in known if not isinstance(layer, bayesian.BayesianLayer)]
    return {w.path: np.asarray(w) != 0 for layer in fixed for w in layer.weights}
