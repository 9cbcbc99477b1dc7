"""Stateless randomness: every draw is a function of a seed, never of a state.

A training step opens a `scope` with its seed; layers inside it draw noise that
is keyed by their own name. So a repeated or resumed step draws the same noise,
and the clean and the adversarial copy of an example, which lie in one batch,
share it.
"""

import contextlib
import contextvars
import dataclasses
import zlib
from collections.abc import Callable, Iterator

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class _Scope:
    seed: tf.Tensor
    copies: int
    replica: int | tf.Tensor
    replicas: int


_current: contextvars.ContextVar[_Scope | None] = contextvars.ContextVar("noise", default=None)


def fold(seed: tf.Tensor, data: int | str | tf.Tensor) -> tf.Tensor:
    """Returns a new seed (int32, shape [2]) from `seed` and a number or a name."""
    if isinstance(data, str):
        data = zlib.crc32(data.encode()) & 0x7FFFFFFF
    return tf.random.experimental.stateless_fold_in(
        tf.cast(seed, tf.int32), tf.cast(data, tf.int32)
    )


def seed_of(*parts: int | str | tf.Tensor) -> tf.Tensor:
    """Returns the seed (int32, shape [2]) that belongs to a sequence of numbers and names."""
    seed = tf.zeros([2], tf.int32)
    for part in parts:
        seed = fold(seed, part)
    return seed


@contextlib.contextmanager
def scope(
    seed: tf.Tensor, copies: int = 1, replica: int | tf.Tensor = 0, replicas: int = 1
) -> Iterator[None]:
    """Keys the noise of every layer called inside by `seed`.

    Args:
        seed: int32, shape [2].
        copies: the batch is this many versions of the same examples, one after
            the other ([clean; adversarial] is 2); the versions share their noise.
        replica, replicas: which equal part of the global batch this is, of how many.
    """
    token = _current.set(_Scope(seed, copies, replica, replicas))
    try:
        yield
    finally:
        _current.reset(token)


def layer_seed(name: str, fallback) -> tf.Tensor:
    """The seed of layer `name` in the current scope.

    Args:
        name: the layer's name.
        fallback: a `keras.random.SeedGenerator`, used outside any scope (a
            user's own `fit`, where Keras's convention is a seed that advances).
    """
    current = _current.get()
    if current is None:
        return tf.cast(fallback.next(), tf.int32)
    return fold(current.seed, name)


def per_example(
    draw: Callable[[int | tf.Tensor], tf.Tensor], batch_size: int | tf.Tensor
) -> tf.Tensor:
    """Noise for a batch: that of an example's place in the global batch, shared by its copies.

    Every replica draws for the whole global batch and takes its part, so that the noise
    does not depend on how many replicas there are. It is cheap beside a training step.

    Args:
        draw: number of examples -> [examples, ...]; the same values at every call.
        batch_size: of the batch at hand.

    Returns:
        [batch_size, ...].
    """
    current = _current.get()
    if current is None:
        return draw(batch_size)
    examples = batch_size // current.copies
    values = draw(examples * current.replicas)
    if current.replicas > 1:
        begin = current.replica * examples
        values = values[begin : begin + examples]
    return tf.concat([values] * current.copies, axis=0) if current.copies > 1 else values
