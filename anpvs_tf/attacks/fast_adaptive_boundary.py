"""FAB: a small perturbation to the other side of the decision boundary (Croce & Hein 2020b).

"Minimally distorted Adversarial Examples with a Fast Adaptive Boundary Attack",
in its targeted form.
"""

from typing import NamedTuple

import tensorflow as tf

from anpvs_tf.attacks import active_examples, losses, threat_model
from anpvs_tf.attacks.settings import STEPS
from anpvs_tf.common import randomness

# Iterations between two checks of which examples are left.
_PERIOD = 10


class _State(NamedTuple):
    """One row for each example that is left."""

    position: tf.Tensor  # int32, in the batch
    current: tf.Tensor  # the iterate
    nearest: tf.Tensor  # of the iterates that fooled the model; the image if there is none
    distance: tf.Tensor  # its distance from the image; infinite if there is none


def project(
    points: tf.Tensor, normals: tf.Tensor, offsets: tf.Tensor, norm: str = "linf"
) -> tf.Tensor:
    """Computes the shortest moves inside the box [0, 1]^n from points onto hyperplanes.

    Solves min ||d|| subject to <w, x + d> = b and 0 <= x + d <= 1, exactly. The
    optimal d moves every coordinate towards the plane, by min(t * v, room):
    v is 1 for "linf" and |w| for "l2" (Lagrange), room is the way to the side of
    the box. How near that comes to the plane is piecewise linear in t, with a
    kink where a coordinate meets its side; sorting the kinks gives the t that
    reaches the plane.

    Args:
        points: [examples, n], in [0, 1].
        normals: w, [examples, n].
        offsets: b, [examples].
        norm: "linf" or "l2".

    Returns:
        d, [examples, n]; where the plane misses the box, the move to the corner
        that is nearest to the plane; 0 where w is 0.
    """
    scale = tf.reduce_max(tf.abs(normals), axis=1)
    gap = tf.math.divide_no_nan(offsets - tf.reduce_sum(normals * points, axis=1), scale)
    normals = tf.math.divide_no_nan(normals, scale[:, None])
    direction = tf.sign(normals) * tf.where(gap < 0, -1.0, 1.0)[:, None]
    gap = tf.abs(gap)
    weights = tf.abs(normals)
    room = tf.where(direction > 0, 1.0 - points, points)
    speed = tf.ones_like(weights) if norm == "linf" else weights
    # A coordinate without weight never meets its side in time to matter.
    kinks = tf.where(weights > 0, room / tf.maximum(speed, 1e-30), 0.0)

    order = tf.argsort(kinks, axis=1)
    kinks = tf.gather(kinks, order, batch_dims=1)
    stopped = tf.gather(weights * room, order, batch_dims=1)
    moving = tf.gather(weights * speed, order, batch_dims=1)
    before = tf.cumsum(stopped, axis=1, exclusive=True)  # by those at their side at kink k
    rate = tf.cumsum(moving, axis=1, reverse=True)  # of those still moving just before it
    reached = tf.reduce_sum(tf.cast(before + kinks * rate < gap[:, None], tf.int32), axis=1)
    k = tf.minimum(reached, tf.shape(points)[1] - 1)[:, None]
    time = tf.math.divide_no_nan(
        gap[:, None] - tf.gather(before, k, batch_dims=1), tf.gather(rate, k, batch_dims=1)
    )
    return direction * tf.minimum(tf.maximum(time, 0.0) * speed, room)


def fab(
    logits_fn: losses.LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    seed: randomness.Seed,
    *,
    targets: tf.Tensor,
    epsilon: float,
    norm: str = "linf",
    steps: int = STEPS,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
    shortest: bool = False,
) -> tf.Tensor:
    """Walks along the boundary between the label and a target class, close to the image.

    A step goes to the linearised boundary from the iterate and from the image,
    overshoots both moves by eta, and mixes them with a bias to the image's. An
    iterate that fools the model is pulled back to the image by 1 - beta.

    Arguments and errors as of `pgd`; the seed is not used. And:

    Args:
        targets: int [batch], the wrong classes whose boundaries are sought. Any
            wrong class counts as fooling the model.
        steps: each costs two forward passes and one backward pass.
        alpha_max: upper bound of the weight of the image's move.
        eta: overshoot, above 1.
        beta: share that is kept of a perturbation that fools the model, below 1.
        shortest: walk to the last step and return the smallest perturbation,
            instead of the first that lies inside the ball.

    Returns:
        Images, float32, inside the ball and [0, 1]. An image is returned as it is
        if no perturbation within epsilon was found, or if the model gets it wrong
        unperturbed.
    """
    threat_model.check_threat_model(epsilon, norm)
    features = images.shape.rank - 1

    def flat(tensor):
        return tf.reshape(tensor, [tf.shape(tensor)[0], -1])

    def lengths(moves):
        return threat_model.length(moves, norm)[(slice(None), *[0] * features)]

    def begin():
        left = ~losses.fooled(losses.logits_of(logits_fn, images), labels)
        position, origin = active_examples.keep(left, (tf.range(tf.shape(images)[0]), images))
        infinite = tf.fill(tf.shape(position), tf.constant(float("inf")))
        return _State(position, origin, origin, infinite)

    def step(state, origin, own, target):
        lead = losses.AttackLoss("difference", own, target, {}, 0.0)
        behind, _, normals = losses.evaluate(logits_fn, state.current, lead)
        normals, here = flat(normals), flat(state.current)
        offsets = tf.reduce_sum(normals * here, axis=1) - behind
        # Both projections in one: half of the cost is the number of operations.
        moves = project(
            tf.concat([here, flat(origin)], 0),
            tf.concat([normals, normals], 0),
            tf.concat([offsets, offsets], 0),
            norm,
        )
        from_here, from_origin = tf.split(moves, 2)
        far = tf.maximum(threat_model.length(from_here, norm), 1e-8)
        near = tf.maximum(threat_model.length(from_origin, norm), 1e-8)
        bias = tf.minimum(far / (far + near), alpha_max)
        ahead = (1.0 - bias) * (here + eta * from_here)
        ahead += bias * (flat(origin) + eta * from_origin)
        current = tf.reshape(tf.clip_by_value(ahead, 0.0, 1.0), tf.shape(origin))

        wrong = losses.fooled(losses.logits_of(logits_fn, current), own)
        distance = lengths(current - origin)
        better = wrong & (distance < state.distance)
        if not shortest:
            better &= state.distance > epsilon
        return state._replace(
            current=active_examples.select(wrong, origin + beta * (current - origin), current),
            nearest=active_examples.select(better, current, state.nearest),
            distance=tf.where(better, distance, state.distance),
        )

    def period(i, state, result):
        origin = tf.gather(images, state.position)
        own = tf.gather(labels, state.position)
        target = tf.gather(targets, state.position)
        end = tf.minimum(i + _PERIOD, steps)
        i, state = tf.while_loop(
            lambda k, _: k < end,
            lambda k, inner: (k + 1, step(inner, origin, own, target)),
            (i, state),
            shape_invariants=(tf.TensorShape([]), active_examples.any_size(state)),
        )
        inside = state.distance <= epsilon
        result = active_examples.put(
            result, state.position, active_examples.select(inside, state.nearest, origin)
        )
        return i, state if shortest else active_examples.keep(~inside, state), result

    state = begin()
    return active_examples.run(period, steps, state, images)
