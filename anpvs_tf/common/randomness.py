"""Stateless randomness: every draw is a function of a seed, never of a state.

A training step opens a `scope` with its seed; layers inside it draw noise that
is keyed by their own name. So a repeated or resumed step draws the same noise,
and the clean and the adversarial copy of an example, which lie in one batch,
share it.

All draws are made of the bits of one named generator, here: TensorFlow's own draws take
another generator under XLA, or make other numbers of the same bits. The generator counts, four
numbers at a time, so a device begins its part of the global batch's draw where that part begins.
"""

import contextlib
import contextvars
import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

PHILOX = tf.random.Algorithm.PHILOX.value
# Numbers of 32 bits that the generator makes of one count.
_AT_ONCE = 4
# Under which TensorFlow scrambles seeds.
_SCRAMBLING_KEY = 0x02461E293EC8F720


@dataclasses.dataclass(frozen=True)
class _Scope:
    seed: tf.Tensor
    copies: int
    replica: int | tf.Tensor
    replicas: int


class ExampleSeeds(NamedTuple):
    """A seed that gives every example noise of its own, whatever batch the example is in.

    Attributes:
        seed: int32, shape [2]; draws that are not made `for_examples` are of it alone.
        examples: int [batch], the number of each example.
    """

    seed: tf.Tensor
    examples: tf.Tensor


Seed = tf.Tensor | ExampleSeeds

_current: contextvars.ContextVar[_Scope | None] = contextvars.ContextVar("noise", default=None)


def fold(seed: Seed, data: int | str | tf.Tensor) -> Seed:
    """Returns a new seed of the same kind from `seed` and a number or a name."""
    if isinstance(seed, ExampleSeeds):
        return seed._replace(seed=fold(seed.seed, data))
    if isinstance(data, str):
        data = zlib.crc32(data.encode()) & 0x7FFFFFFF
    return tf.stack([bits([], seed), tf.cast(data, tf.int32)])


def seed_of(*parts: int | str | tf.Tensor) -> tf.Tensor:
    """Returns the seed (int32, shape [2]) that belongs to a sequence of numbers and names."""
    seed = tf.zeros([2], tf.int32)
    for part in parts:
        seed = fold(seed, part)
    return seed


Rows = int | tf.Tensor


def bits(shape, seed: Seed, first: Rows = 0) -> tf.Tensor:
    """Draws all 32 bits of each number, int32 of `shape`.

    Args:
        first: the rows (entries along the first axis) of a larger draw that come before these;
            they are not made. So are those of the functions below.
    """
    if isinstance(seed, ExampleSeeds):
        seed = seed.seed
    draw = functools.partial(tf.raw_ops.StatelessRandomUniformFullIntV2, dtype=tf.int32)
    return _from_row(first, shape, seed, draw)


def _from_row(first: Rows, shape, seed: tf.Tensor, draw: Callable[..., tf.Tensor]) -> tf.Tensor:
    """Draws `shape` from row `first` on by one of TensorFlow's operations."""
    shape = tf.convert_to_tensor(shape, dtype_hint=tf.int32)
    if isinstance(first, int) and first == 0:
        return draw(shape=shape, **_generator(seed))
    begin, row = _place(first, shape)
    if row is not None and row % _AT_ONCE == 0:
        return draw(shape=shape, **_generator(seed, begin // _AT_ONCE))
    size = tf.reduce_prod(shape)
    numbers = draw(shape=[size + _AT_ONCE - 1], **_generator(seed, begin // _AT_ONCE))
    skipped = tf.cast(begin % _AT_ONCE, tf.int32)
    return tf.reshape(tf.slice(numbers, [skipped], [size]), shape)


def _place(first: Rows, shape: tf.Tensor) -> tuple[tf.Tensor, int | None]:
    """Returns the numbers before row `first`, int64, and those of a row if they are known here."""
    known = tf.get_static_value(shape, partial=True)
    row, static = tf.reduce_prod(shape[1:]), None
    if known is not None and None not in list(known[1:]):
        static = row = math.prod(map(int, known[1:]))
    return tf.cast(first, tf.int64) * tf.cast(row, tf.int64), static


def _generator(seed: tf.Tensor, count: tf.Tensor | None = None) -> dict[str, Any]:
    """Makes the inputs of TensorFlow's draws that say which generator draws, and from where.

    The same that `tf.random`'s functions make of a seed with `alg="philox"`, in a quarter of the
    operations: tracing them is a tenth of what tracing a training step takes.

    Args:
        count: where the generator begins to count, int64; None for 0.
    """
    mixed = tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=[2],
        key=tf.constant([_SCRAMBLING_KEY], tf.uint64),
        counter=tf.cast(tf.cast(seed, tf.int32), tf.uint64),
        alg=PHILOX,
        dtype=tf.uint64,
    )
    low = tf.constant([0], tf.uint64) if count is None else tf.cast(count, tf.uint64)[None]
    counter = tf.concat([low, mixed[1:]], axis=0)
    return {"key": mixed[:1], "counter": counter, "alg": PHILOX}


def uniform(shape, seed: Seed, low=0.0, high=1.0, first: Rows = 0) -> tf.Tensor:
    """Draws from [low, high), float32 of `shape`; `first` as of `bits`."""
    # The low 23 bits, which TensorFlow's own kernels take; under XLA it takes the high ones.
    mantissa = tf.bitwise.bitwise_and(bits(shape, seed, first), 2**23 - 1)
    return low + (high - low) * (tf.cast(mantissa, tf.float32) * 2.0**-23)


def integers(shape, seed: tf.Tensor, low: int, high: int, first: Rows = 0) -> tf.Tensor:
    """Draws from low, ..., high - 1, int32 of `shape`; `first` as of `bits`."""
    draw = functools.partial(tf.raw_ops.StatelessRandomUniformIntV2, minval=low, maxval=high)
    return _from_row(first, shape, seed, draw)


def normal(shape, seed: tf.Tensor, first: Rows = 0) -> tf.Tensor:
    """Draws from the standard normal distribution, float32 of `shape` (Box and Muller 1958).

    Args:
        first: as of `bits`.
    """
    # Of pairs of neighbours, as TensorFlow's own kernels; XLA pairs other ones.
    size = tf.reduce_prod(shape)
    if isinstance(first, int) and first == 0:
        return tf.reshape(_of_pairs(uniform([(size + 1) // 2, 2], seed))[:size], shape)
    begin, _ = _place(first, tf.convert_to_tensor(shape, dtype_hint=tf.int32))
    drawn = _of_pairs(uniform([size // 2 + 1, 2], seed, first=begin // 2))
    odd = tf.cast(begin % 2, tf.int32)
    return tf.reshape(tf.slice(drawn, [odd], [size]), shape)


def _of_pairs(pairs: tf.Tensor) -> tf.Tensor:
    radius = tf.sqrt(-2.0 * tf.math.log(tf.maximum(pairs[:, 0], 1e-7)))
    angle = 2.0 * np.pi * pairs[:, 1]
    return tf.reshape(tf.stack([radius * tf.sin(angle), radius * tf.cos(angle)], axis=1), [-1])


def permutation(size: int, seed: tf.Tensor) -> tf.Tensor:
    """Draws an order of the numbers below `size`, int32. Not under XLA, which lacks the kernel."""
    return tf.raw_ops.StatelessShuffle(value=tf.range(size), **_generator(seed))


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
    """Returns the seed of layer `name` in the current scope.

    Args:
        name: the layer's name.
        fallback: a `keras.random.SeedGenerator`, used outside any scope (a
            user's own `fit`, where Keras's convention is a seed that advances).
    """
    current = _current.get()
    if current is None:
        return tf.cast(fallback.next(), tf.int32)
    return fold(current.seed, name)


def per_example(draw: Callable[[Rows, Rows], tf.Tensor], batch_size: int | tf.Tensor) -> tf.Tensor:
    """Draws an example's noise by its place in the global batch; its copies share the noise.

    So the noise does not depend on how many replicas there are; each draws that of its part.

    Args:
        draw: number of examples, `first` of `bits` -> [examples, ...].
        batch_size: of the batch at hand.

    Returns:
        [batch_size, ...].
    """
    current = _current.get()
    if current is None:
        return draw(batch_size, 0)
    examples = batch_size // current.copies
    values = draw(examples, current.replica * examples if current.replicas > 1 else 0)
    return tf.concat([values] * current.copies, axis=0) if current.copies > 1 else values


def for_examples(
    draw: Callable[[Rows, tf.Tensor, Rows], tf.Tensor], shape: tf.Tensor, seed: Seed
) -> tf.Tensor:
    """Draws an example's noise by its number with `ExampleSeeds`, else as `per_example` does.

    Args:
        draw: number of examples, seed (int32, shape [2]), `first` of `bits` -> float32
            [examples, ...].
        shape: of the noise, int [rank]; the batch comes first.

    Returns:
        float32 of `shape`.
    """
    if not isinstance(seed, ExampleSeeds):
        return per_example(lambda examples, first: draw(examples, seed, first), shape[0])
    values = tf.map_fn(
        lambda example: draw(1, fold(seed.seed, example), 0)[0],
        seed.examples,
        fn_output_signature=tf.float32,
    )
    return tf.reshape(values, shape)
