"""Stateless randomness: every draw is a function of a seed, never of a state.

A training step opens a `scope` with its seed; layers inside it draw noise that
is keyed by their own name. So a repeated or resumed step draws the same noise,
and the clean and the adversarial copy of an example, which lie in one batch,
share it.

All draws are made of the bits of one named generator, here: TensorFlow's own draws take
another generator under XLA, or make other numbers of the same bits.
"""

import contextlib
import contextvars
import dataclasses
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

PHILOX = tf.random.Algorithm.PHILOX.value
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


def bits(shape, seed: Seed) -> tf.Tensor:
    """Draws all 32 bits of each number, int32 of `shape`."""
    if isinstance(seed, ExampleSeeds):
        seed = seed.seed
    shape = tf.convert_to_tensor(shape, dtype_hint=tf.int32)
    return tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=shape, **_generator(seed), dtype=tf.int32
    )


def _generator(seed: tf.Tensor) -> dict[str, Any]:
    """Makes the inputs of TensorFlow's draws that say which generator draws, and from where.

    The same that `tf.random`'s functions make of a seed with `alg="philox"`, in a quarter of the
    operations: tracing them is a tenth of what tracing a training step takes.
    """
    mixed = tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=[2],
        key=tf.constant([_SCRAMBLING_KEY], tf.uint64),
        counter=tf.cast(tf.cast(seed, tf.int32), tf.uint64),
        alg=PHILOX,
        dtype=tf.uint64,
    )
    counter = tf.concat([tf.constant([0], tf.uint64), mixed[1:]], axis=0)
    return {"key": mixed[:1], "counter": counter, "alg": PHILOX}


def uniform(shape, seed: Seed, low=0.0, high=1.0) -> tf.Tensor:
    """Draws from [low, high), float32 of `shape`."""
    # The low 23 bits, which TensorFlow's own kernels take; under XLA it takes the high ones.
    mantissa = tf.bitwise.bitwise_and(bits(shape, seed), 2**23 - 1)
    return low + (high - low) * (tf.cast(mantissa, tf.float32) * 2.0**-23)


def integers(shape, seed: tf.Tensor, low: int, high: int) -> tf.Tensor:
    """Draws from low, ..., high - 1, int32 of `shape`."""
    shape = tf.convert_to_tensor(shape, dtype_hint=tf.int32)
    return tf.raw_ops.StatelessRandomUniformIntV2(
        shape=shape, **_generator(seed), minval=low, maxval=high
    )


def normal(shape, seed: tf.Tensor) -> tf.Tensor:
    """Draws from the standard normal distribution, float32 of `shape` (Box and Muller 1958)."""
    # Of pairs of neighbours, as TensorFlow's own kernels; XLA pairs other ones.
    size = tf.reduce_prod(shape)
    pairs = uniform([(size + 1) // 2, 2], seed)
    radius = tf.sqrt(-2.0 * tf.math.log(tf.maximum(pairs[:, 0], 1e-7)))
    angle = 2.0 * np.pi * pairs[:, 1]
    drawn = tf.stack([radius * tf.sin(angle), radius * tf.cos(angle)], axis=1)
    return tf.reshape(tf.reshape(drawn, [-1])[:size], shape)


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


def per_example(
    draw: Callable[[int | tf.Tensor], tf.Tensor], batch_size: int | tf.Tensor
) -> tf.Tensor:
    """Draws an example's noise by its place in the global batch; its copies share the noise.

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


def for_examples(
    draw: Callable[[int | tf.Tensor, tf.Tensor], tf.Tensor], shape: tf.Tensor, seed: Seed
) -> tf.Tensor:
    """Draws an example's noise by its number with `ExampleSeeds`, else as `per_example` does.

    Args:
        draw: number of examples, seed (int32, shape [2]) -> float32 [examples, ...].
        shape: of the noise, int [rank]; the batch comes first.

    Returns:
        float32 of `shape`.
    """
    if not isinstance(seed, ExampleSeeds):
        return per_example(lambda examples: draw(examples, seed), shape[0])
    values = tf.map_fn(
        lambda example: draw(1, fold(seed.seed, example))[0],
        seed.examples,
        fn_output_signature=tf.float32,
    )
    return tf.reshape(values, shape)
