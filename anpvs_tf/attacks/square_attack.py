"""Square attack: random search with square patches, logits only (Andriushchenko et al. 2020)."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from anpvs_tf.attacks import active_examples, losses, threat_model
from anpvs_tf.attacks.settings import AttackSettings
from anpvs_tf.common import randomness

# Queries between two checks of which examples are left.
_PERIOD = 20

# The share of the pixels that a patch covers halves after these queries of 10,000.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


class _State(NamedTuple):
    """One row for each example that is left."""

    position: tf.Tensor  # int32, in the batch
    best: tf.Tensor  # the image of the largest margin, or the first that fools the model
    margin: tf.Tensor  # of `best`
    fooled: tf.Tensor  # bool


class _Window(NamedTuple):
    """A square of the image: position of its corner and side, int scalars."""

    top: tf.Tensor
    left: tf.Tensor
    side: tf.Tensor


def sides(
    queries: int, height: int, width: int, p_init: float, rescale: bool, norm: str
) -> np.ndarray:
    """Computes the side of the patch at each query, int32 [queries]."""
    query = np.arange(queries)
    if rescale:
        query = (query * 10_000) // queries
    halvings = np.searchsorted(_HALVINGS, query, side="left")
    side = np.round(np.sqrt(p_init / 2.0**halvings * height * width)).astype(np.int32)
    if norm == "l2":
        # Odd, so that a pyramid has a middle; at least 3, so that it has a slope.
        side = np.maximum(side, 3)
        side += 1 - side % 2
    return np.clip(side, 1, min(height, width)).astype(np.int32)


def _offsets(window: _Window, height: int, width: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes each row's and column's distance from the window's corner, [H, 1] and [1, W]."""
    return tf.range(height)[:, None] - window.top, tf.range(width)[None, :] - window.left


def _within(rows: tf.Tensor, columns: tf.Tensor, side: tf.Tensor) -> tf.Tensor:
    return (rows >= 0) & (rows < side) & (columns >= 0) & (columns < side)


def pyramids(rows: tf.Tensor, columns: tf.Tensor, side: tf.Tensor, turned: tf.Tensor) -> tf.Tensor:
    """Makes the l2 patch: a positive pyramid above a negative one (Section 3.3), of unit norm.

    A pyramid of height h and width w is the sum over k of squares of side 2k + 1
    around its middle, cut to h x w, of weight 1 / (k + 1)^2.

    Args:
        rows, columns: int, broadcast to [H, W]: distance from the patch's corner.
        side: of the patch; int.
        turned: bool; left and right instead of above and below.

    Returns:
        float32 [H, W], 0 outside the patch.
    """
    rows, columns = tf.meshgrid(rows, columns, indexing="ij")
    rows, columns = tf.where(turned, columns, rows), tf.where(turned, rows, columns)
    inside, half = _within(rows, columns, side), side // 2
    above = rows < half
    middle = tf.where(above, half // 2, half + (side - half) // 2)
    ring = tf.maximum(tf.abs(rows - middle), tf.abs(columns - half))
    levels = tf.range(1, half + 2)
    totals = tf.concat([[0.0], tf.cumsum(1.0 / tf.cast(levels, tf.float32) ** 2)], 0)
    heights = totals[-1] - tf.gather(totals, tf.minimum(ring, half + 1))
    upper = tf.where(inside & above, heights, 0.0)
    lower = tf.where(inside & ~above, heights, 0.0)
    both = tf.math.divide_no_nan(upper, tf.norm(upper)) - tf.math.divide_no_nan(
        lower, tf.norm(lower)
    )
    return tf.math.divide_no_nan(both, tf.norm(both))


def _signs(uniform: tf.Tensor) -> tf.Tensor:
    return tf.where(uniform < 0.5, -1.0, 1.0)


def _norm_of_channels(deltas: tf.Tensor) -> tf.Tensor:
    return tf.sqrt(tf.reduce_sum(tf.square(deltas), axis=[1, 2], keepdims=True))


def _stripes(images: tf.Tensor, seed: tf.Tensor, epsilon: float) -> tf.Tensor:
    """Makes the l_inf start: columns of +-epsilon, a sign for each channel."""
    _, _, width, channels = images.shape
    draws = randomness.uniform([1, 1, width, channels], seed)
    return tf.clip_by_value(images + epsilon * _signs(draws), 0.0, 1.0)


def _tiles(images: tf.Tensor, seed: tf.Tensor, epsilon: float) -> tf.Tensor:
    """Makes the l2 start: five rows of tiles with pyramids, a sign for each channel of a tile."""
    _, height, width, channels = images.shape
    side = max(min(height, width) // 5, 1)
    down, across = height // side, width // side
    draws = randomness.uniform([down, across, channels + 1], seed)
    unit = tf.range(side)
    both = tf.stack([pyramids(unit, unit, side, turned) for turned in (False, True)])
    turned = tf.cast(draws[..., 0] < 0.5, tf.int32)
    tiles = tf.einsum("yxij,yxc->yixjc", tf.gather(both, turned), _signs(draws[..., 1:]))
    tiles = tf.reshape(tiles, [down * side, across * side, channels])
    up, left = (height - down * side) // 2, (width - across * side) // 2
    pads = [[up, height - down * side - up], [left, width - across * side - left], [0, 0]]
    delta = epsilon * threat_model.steepest(tf.pad(tiles, pads)[None], "l2")
    return tf.clip_by_value(images + delta, 0.0, 1.0)


def _corner(draws: tf.Tensor, side: tf.Tensor, shape: tf.TensorShape) -> _Window:
    """Places a square in images of `shape` by two draws from [0, 1)."""
    ends = tf.constant(shape[1:3].as_list()) - side + 1
    at = tf.cast(draws * tf.cast(ends, tf.float32), tf.int32)
    # A draw just below 1 may round up.
    at = tf.minimum(at, ends - 1)
    return _Window(at[0], at[1], side)


def _propose_linf(best, origin, draws, side, epsilon: float) -> tf.Tensor:
    """Replaces a square of the l-infinity perturbation by the ball's ends; returns the images."""
    _, height, width, _ = best.shape
    window = _corner(draws[:2], side, best.shape)
    mask = _within(*_offsets(window, height, width), side)[None, :, :, None]
    low = tf.maximum(origin - epsilon, 0.0)
    high = tf.minimum(origin + epsilon, 1.0)
    positive = draws[5:] < 0.5
    new = tf.where(mask, tf.where(positive, high, low), best)
    # Where the square is in place already, its negative is tried.
    same = tf.reduce_all(tf.equal(new, best), axis=[1, 2, 3])
    opposite = tf.where(mask, tf.where(positive, low, high), best)
    return active_examples.select(same, opposite, new)


def _propose_l2(best, origin, draws, side, epsilon: float) -> tf.Tensor:
    """Moves the l2 perturbation of one square into another; returns the images."""
    _, height, width, channels = best.shape
    delta = best - origin
    window = _corner(draws[:2], side, best.shape)
    donor = _corner(draws[2:4], side, best.shape)
    offsets = _offsets(window, height, width)
    mask = tf.cast(_within(*offsets, side), tf.float32)[None, :, :, None]
    donor_mask = _within(*_offsets(donor, height, width), side)
    donor_mask = tf.cast(donor_mask, tf.float32)[None, :, :, None]
    # The patch gets the norm that is left in the ball and that of the two windows.
    spent = threat_model.length(delta, "l2")
    budget = tf.maximum(epsilon**2 - spent**2, 0.0) / channels
    budget += _norm_of_channels(delta * tf.maximum(mask, donor_mask)) ** 2
    old = delta * mask
    patch = pyramids(offsets[0][:, 0], offsets[1][0], side, draws[4] < 0.5)
    patch = patch[None, :, :, None] * _signs(draws[5:])
    patch += tf.math.divide_no_nan(old, _norm_of_channels(old))
    patch *= tf.math.divide_no_nan(tf.sqrt(budget), _norm_of_channels(patch))
    delta = delta * (1.0 - tf.maximum(mask, donor_mask)) + patch
    delta = epsilon * threat_model.steepest(delta, "l2")
    return tf.clip_by_value(origin + delta, 0.0, 1.0)


def square(
    logits_fn: losses.LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    seed: randomness.Seed,
    *,
    epsilon: float,
    norm: str = "linf",
    queries: int = AttackSettings.queries,
    p_init: float = 0.8,
    rescale: bool = True,
) -> tf.Tensor:
    """Replaces random squares of the perturbation where that increases the margin.

    Black box: forward passes only, one for each query. All examples see the
    same squares, so an example's result depends on the seed and not on its
    neighbours. An example that is broken leaves.

    Arguments and errors as of `pgd`, and:

    Args:
        images: float32 [batch, height, width, channels] in [0, 1], the last three
            known when this is traced.
        queries: forward passes after that on the start.
        p_init: share of the pixels that the first squares cover.
        rescale: stretch the schedule of the sizes, which is written for 10,000
            queries, to `queries`. AutoAttack does not.

    Returns:
        Images, float32, inside the ball and [0, 1]: the first that fooled the
        model, or else the one of the largest margin. An image that the model gets wrong
        unperturbed is returned as it is.
    """
    threat_model.check_threat_model(epsilon, norm)
    _, height, width, channels = images.shape
    schedule = tf.constant(sides(queries, height, width, p_init, rescale, norm))
    # Draws for one query: two corners, an orientation, a sign a channel.
    kinds = 5 + channels

    def judge(candidates, own):
        logits = losses.logits_of(logits_fn, candidates)
        return losses.margins_of(logits, own), losses.fooled(logits, own)

    propose = _propose_linf if norm == "linf" else _propose_l2
    left = ~judge(images, labels)[1]

    def begin():
        position, origin, own = active_examples.keep(
            left, (tf.range(tf.shape(images)[0]), images, labels)
        )
        start = (_stripes if norm == "linf" else _tiles)(origin, randomness.fold(seed, -1), epsilon)
        margins, wrong = judge(start, own)
        return _State(position, start, margins, wrong)

    def query(state, origin, own, draws, side):
        candidates = propose(state.best, origin, draws, side, epsilon)
        margins, wrong = judge(candidates, own)
        better = ((margins > state.margin) | wrong) & ~state.fooled
        return state._replace(
            best=active_examples.select(better, candidates, state.best),
            margin=tf.where(better, margins, state.margin),
            fooled=state.fooled | wrong,
        )

    def period(i, state, result):
        origin, own = tf.gather(images, state.position), tf.gather(labels, state.position)
        draws = randomness.uniform([_PERIOD, kinds], randomness.fold(seed, i))
        end = tf.minimum(i + _PERIOD, queries)
        i, state = tf.while_loop(
            lambda k, _: k < end,
            lambda k, inner: (
                k + 1,
                query(inner, origin, own, draws[k % _PERIOD], schedule[k]),
            ),
            (i, state),
            shape_invariants=(tf.TensorShape([]), active_examples.any_size(state)),
        )
        result = active_examples.put(result, state.position, state.best)
        return i, active_examples.keep(~state.fooled, state), result

    def search():
        first = begin()
        # Examples that the start has broken go no further.
        result = active_examples.put(images, first.position, first.best)
        first = active_examples.keep(~first.fooled, first)
        return active_examples.run(period, queries, first, result)

    return active_examples.unless_none(left, search, images)
