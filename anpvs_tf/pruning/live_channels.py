"""Which channels of a functional network have to be computed, given what is pruned.

A forward walk finds the channels that are constant (a pruned feature is the
constant 0; what a kernel of zeros makes is its bias; an activation of a constant is a
constant). A backward walk from the logits finds the channels that a later layer needs, by
weights that are not zero. Constants are never needed: they go into the biases of their
consumers.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf

from anpvs_tf.common.errors import UsageError
from anpvs_tf.networks import bayesian
from anpvs_tf.networks.gate import Gate
from anpvs_tf.networks.graph import DEPTHWISE, Node, layers
from anpvs_tf.pruning.layer_functions import affine_of, elementwise_of, pads, read

_worked_out: contextvars.ContextVar[dict | None] = contextvars.ContextVar(
    "worked_out", default=None
)


@contextlib.contextmanager
def each_constant_once() -> Iterator[None]:
    """Works out the constants of each tensor once inside, however many layers read them.

    The constants of a layer are functions of those before it; a network whose branches meet
    again would otherwise evaluate them once for each path, of which there are exponentially many.
    """
    if _worked_out.get() is not None:
        yield
        return
    token = _worked_out.set({})
    try:
        yield
    finally:
        _worked_out.reset(token)


# {path of a layer's variable: bool of its shape, False where it is 0 and stays so}; a variable
# that is absent may be anything anywhere.
Support = dict[str, np.ndarray]


@dataclasses.dataclass
class Channels:
    """The state of the channels (last axis) of a tensor.

    Attributes:
        constant: bool [channels], the same value for every example and place.
        zero: bool [channels], that value is 0 whatever the weights are that `Support`
            leaves free.
        value: returns the constants, float32 [channels]; other places are arbitrary.
        needed: bool [channels], a later layer computes with it.
    """

    constant: np.ndarray
    zero: np.ndarray
    value: Callable[[], tf.Tensor]
    needed: np.ndarray

    @property
    def present(self) -> np.ndarray:
        """Indices of the channels that are computed."""
        return np.flatnonzero(self.needed)


def analyse(
    nodes: list[Node],
    image: int,
    image_shape: tuple,
    open_gates: dict[str, np.ndarray],
    zeros: bool = False,
    support: Support | None = None,
) -> dict[int, Channels]:
    """Channels of every tensor.

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
    support = support or {}
    never = np.zeros(image_shape[-1], bool)
    known = {image: Channels(never, never, lambda: tf.zeros([len(never)]), never.copy())}
    for node in nodes:
        channels = _forward(node, [known[i] for i in node.inputs], open_gates, support)
        if zeros:
            channels = dataclasses.replace(channels, constant=channels.zero)
        known[node.output] = channels
    logits = known[nodes[-1].output]
    if logits.constant.all():
        raise UsageError(
            "every path from the image to the logits is pruned: the network is constant"
        )
    # One logit alone that is constant is computed like the others.
    logits.constant = np.zeros_like(logits.constant)
    logits.needed[:] = True
    for node in reversed(nodes):
        _backward(node, known[node.output], [known[i] for i in node.inputs], support)
    return known


def nonzero(nodes: list[Node]) -> Support:
    """The support of the weights as they are now.

    The means of a Gaussian posterior may be anything: draws from it are not zero.
    """
    known = [n.layer for n in nodes if isinstance(n.layer, layers.Layer) and n.kind != "whole"]
    fixed = [layer for layer in known if not isinstance(layer, bayesian.BayesianLayer)]
    return {w.path: np.asarray(w) != 0 for layer in fixed for w in layer.weights}


def _connections(layer: keras.layers.Layer, support: Support) -> np.ndarray:
    """bool [in, out], of a depthwise convolution [channels]: whether a weight is not zero."""
    held = support.get(layer.kernel.path)
    if held is None:
        held = np.ones(layer.kernel.shape, bool)
    if isinstance(layer, DEPTHWISE):
        return held.any(axis=(0, 1, 3))
    return held.any(axis=tuple(range(held.ndim - 2)))


def _nonzero(variable, width: int, support: Support) -> np.ndarray:
    """bool [width], of a vector; it is all False for an absent one."""
    if variable is None:
        return np.zeros(width, bool)
    return support.get(variable.path, np.ones(width, bool))


def _forward(
    node: Node, inputs: list[Channels], open_gates: dict[str, np.ndarray], support: Support
) -> Channels:
    layer = node.layer
    width = node.output_shape[-1]
    constant, zero, value = inputs[0].constant, inputs[0].zero, inputs[0].value
    if node.kind == "whole":
        constant = zero = np.zeros(width, bool)
        value = _zeros(width)
    elif node.kind in ("linear", "depthwise"):
        connections = _connections(layer, support)
        if node.kind == "linear":
            # Padding is 0 and cuts other constants off at the border: only zeros stay constants.
            stays = zero if pads(layer) else constant
            constant, zero = (~connections[~known].any(axis=0) for known in (stays, zero))
            value = _then(_linear(layer, width, value), layer.activation)
        else:
            constant = zero = zero | ~connections
            value = _then(_bias_of(layer, width), layer.activation)
        zero = zero & ~_nonzero(layer.bias, width, support) & _keeps_zero(layer.activation)
    elif isinstance(layer, Gate):
        shut = ~open_gates.get(layer.name, np.ones(width, bool))
        constant, zero = constant | shut, zero | shut
        value = _product(value, layer.mean_mask)
    elif node.kind == "affine":
        scale, shift = affine_of(layer, width)
        zero = np.zeros(width, bool)
        value = _affine(value, scale, shift)
        if isinstance(layer, layers.BatchNormalization) and layer.scale:
            unscaled = ~_nonzero(layer.gamma, width, support)
            constant = constant | unscaled
            zero = unscaled & ~_nonzero(layer.beta, width, support)
    elif node.kind == "elementwise":
        f = elementwise_of(node)
        zero, value = zero & _keeps_zero(f), _then(value, f)
    elif node.kind == "padding":
        constant = zero
    elif node.kind == "flatten":
        repeats = width // len(constant)
        constant, zero = np.tile(constant, repeats), np.tile(zero, repeats)
        value = _tiled(value, repeats)
    elif node.kind == "merge":
        constant = np.logical_and.reduce([i.constant for i in inputs])
        zero = np.logical_and.reduce([i.zero for i in inputs])
        value = _merged(node, [i.value for i in inputs])
    elif node.kind == "multiply":
        zero = np.logical_or.reduce([i.zero for i in inputs])
        constant = zero | np.logical_and.reduce([i.constant for i in inputs])
        value = _where(zero, _merged(node, [i.value for i in inputs]))
    elif node.kind == "concatenate":
        constant = np.concatenate([i.constant for i in inputs])
        zero = np.concatenate([i.zero for i in inputs])
        value = _concatenation([i.value for i in inputs])
    return Channels(constant, zero, _once(value), np.zeros(width, bool))


def _backward(node: Node, output: Channels, inputs: list[Channels], support: Support) -> None:
    output.needed &= ~output.constant
    if not output.needed.any():
        return
    layer = node.layer
    if node.kind == "whole":
        for channels in inputs:
            channels.needed[:] = True
    elif node.kind == "linear":
        inputs[0].needed |= _connections(layer, support)[:, output.needed].any(axis=1)
    elif node.kind == "flatten":
        inputs[0].needed |= output.needed.reshape(-1, len(inputs[0].needed)).any(axis=0)
    elif node.kind == "concatenate":
        ends = np.cumsum([len(i.needed) for i in inputs])[:-1]
        for channels, needed in zip(inputs, np.split(output.needed, ends), strict=True):
            channels.needed |= needed
    else:
        for channels in inputs:
            channels.needed |= output.needed
    for channels in inputs:
        channels.needed &= ~channels.constant


def _linear(layer, width, value):
    def output():
        product = tf.reshape(value(), [-1, 1]) * read(layer.kernel)
        return _bias_of(layer, width)() + tf.reduce_sum(product, axis=range(product.shape.rank - 1))

    return output


def _bias_of(layer, width):
    return lambda: read(layer.bias) if layer.use_bias else tf.zeros([width])


def _keeps_zero(f) -> bool:
    return float(f(tf.zeros([1]))[0]) == 0.0


# Closures made in functions of their own, so that each keeps its own arguments.


def _once(value):
    def held():
        with each_constant_once():
            known = _worked_out.get()
            if held not in known:
                known[held] = value()
            return known[held]

    return held


def _then(value, f):
    return lambda: f(value())


def _product(value, factor):
    return lambda: value() * factor()


def _affine(value, scale, shift):
    return lambda: value() * scale() + shift()


def _tiled(value, repeats):
    return lambda: tf.tile(value(), [repeats])


def _merged(node, values):
    if isinstance(node.layer, layers.Add):
        return lambda: tf.add_n([v() for v in values])
    return lambda: node.function([v() for v in values])


def _where(zero, value):
    return lambda: tf.where(zero, 0.0, value())


def _zeros(width):
    return lambda: tf.zeros([width])


def _concatenation(values):
    return lambda: tf.concat([v() for v in values], axis=0)
