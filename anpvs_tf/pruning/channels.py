"""The state of a tensor's channels, as known before its network is frozen."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator

import numpy as np

from anpvs_tf.pruning.frozen_steps import Vector

_worked_out: contextvars.ContextVar[dict | None] = contextvars.ContextVar(
    "worked_out", default=None
)

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
    value: Vector
    needed: np.ndarray

    @property
    def present(self) -> np.ndarray:
        """Indices of the channels that are computed."""
        return np.flatnonzero(self.needed)


@dataclasses.dataclass(frozen=True)
class Given:
    """The gates and weights that decide which channels are constant.

    Attributes:
        open_gates: {gate's name: bool [features], False where pruned}; a gate that is absent has
            nothing pruned.
        support: of the weights.
    """

    open_gates: dict[str, np.ndarray]
    support: Support

    def nonzero(self, variable, shape: tuple) -> np.ndarray:
        """Says where a variable may differ from 0, bool of `shape`; an absent one nowhere."""
        if variable is None:
            return np.zeros(shape, bool)
        return self.support.get(variable.path, np.ones(shape, bool))


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


def once(value: Vector) -> Vector:
    """Returns a function that works out `value` once inside `each_constant_once`."""

    def held():
        with each_constant_once():
            known = _worked_out.get()
            if held not in known:
                known[held] = value()
            return known[held]

    return held
