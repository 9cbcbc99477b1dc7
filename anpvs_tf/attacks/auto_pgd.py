"""Auto-PGD: gradient ascent that chooses its own step size (Croce & Hein 2020, Algorithm 1)."""

import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from anpvs_tf.attacks import active_examples, threat_model
from anpvs_tf.attacks import losses as attacks_losses
from anpvs_tf.attacks.losses import LogitsFn, evaluate, logits_of
from anpvs_tf.attacks.settings import STEPS, AttackSettings
from anpvs_tf.common import randomness


class _State(NamedTuple):
    """One row for each example that is left."""

    position: tf.Tensor  # int32, in the batch
    current: tf.Tensor  # the iterate
    previous: tf.Tensor  # the iterate before it
    gradient: tf.Tensor  # at `current`
    loss: tf.Tensor  # at `current`
    best: tf.Tensor  # the iterate of the highest loss, or the first that fools the model
    best_gradient: tf.Tensor
    best_loss: tf.Tensor
    step_size: tf.Tensor
    rises: tf.Tensor  # steps since the last checkpoint that increased the loss
    halved: tf.Tensor  # bool: the last checkpoint halved the step
    checked_loss: tf.Tensor  # `best_loss` at the last checkpoint
    fooled: tf.Tensor  # bool


def checkpoints(steps: int) -> list[int]:
    """Lists the steps after which the step size is reconsidered, and the last step."""
    fractions = [0.0, 0.22]
    while fractions[-1] < 1:
        fractions.append(
            fractions[-1] + max(fractions[-1] - fractions[-2] - 0.03, 0.06),
        )
    # Rounded first: 0.57 * 100 must not become 58.
    ends = {math.ceil(round(fraction * steps, 9)) for fraction in fractions[1:]}
    return sorted({end for end in ends if 0 < end < steps} | {steps})


def apgd(
    logits_fn: LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    seed: randomness.Seed,
    *,
    epsilon: float,
    norm: str = "linf",
    loss: str = "ce",
    steps: int = STEPS,
    targets: tf.Tensor | None = None,
    gamma: float = AttackSettings.gamma,
    momentum: float = 0.75,
    rho: float = 0.75,
) -> tf.Tensor:
    """Maximises a loss inside a ball, with momentum and a step size that halves.

    A step starts at 2 * epsilon. At each checkpoint it halves, and the search
    resumes at the best point so far, if fewer than rho of the steps since the
    last checkpoint increased the loss, or if neither the step size nor the best
    loss has changed since then. An example that is broken leaves the search at
    the next checkpoint, which changes nothing for the others.

    Arguments and errors as of `pgd`, and:

    Args:
        steps: number of gradient steps; one more gradient is computed, at the start.
        momentum: weight of the new step against the last one (the paper's alpha).
        rho: share of the steps that have to increase the loss.

    Returns:
        Images, float32, inside the ball and [0, 1]: the first iterate that fooled
        the model, or else the one of the highest loss. An image that the model gets wrong
        unperturbed is returned as it is. Of a `stochastic.expectation` always the
        iterate of the highest mean loss, as a draw that is fooled proves nothing.
    """
    threat_model.check_threat_model(epsilon, norm)
    maximised = attacks_losses.attack_loss(loss, logits_fn, images, labels, targets, gamma)
    ends = checkpoints(steps)
    lengths = tf.constant(np.diff([0, *ends]), tf.int32)

    # A stochastic model is fooled by chance, too: then nothing ends the search for the highest
    # mean loss.
    stochastic = getattr(logits_fn, "draws", 1) > 1

    def is_fooled(logits, labels):
        wrong = attacks_losses.fooled(logits, labels)
        return tf.zeros_like(wrong) if stochastic else wrong

    left = ~is_fooled(logits_of(logits_fn, images), labels)

    def begin():
        draw = threat_model.random_on_sphere(tf.shape(images), seed, epsilon, norm)
        start = threat_model.restrict(images, images + draw, epsilon, norm)
        position, start = active_examples.keep(left, (tf.range(tf.shape(images)[0]), start))
        here = maximised.take(position)
        losses, logits, gradients = evaluate(logits_fn, start, here)
        wrong = is_fooled(logits, here.labels)
        nothing = tf.zeros_like(position)
        return _State(
            position=position,
            current=start,
            previous=start,
            gradient=gradients,
            loss=losses,
            best=start,
            best_gradient=gradients,
            best_loss=losses,
            step_size=tf.fill(tf.shape(losses), 2.0 * epsilon),
            rises=nothing,
            halved=tf.ones_like(wrong),
            checked_loss=losses,
            fooled=wrong,
        )

    def step(state, here, origin, inertia):
        size = tf.reshape(state.step_size, [-1] + [1] * (images.shape.rank - 1))
        ahead = state.current + size * threat_model.steepest(state.gradient, norm)
        ahead = threat_model.restrict(origin, ahead, epsilon, norm)
        moved = state.current + (1.0 - inertia) * (ahead - state.current)
        moved += inertia * (state.current - state.previous)
        moved = threat_model.restrict(origin, moved, epsilon, norm)

        losses, logits, gradients = evaluate(logits_fn, moved, here)
        wrong = is_fooled(logits, here.labels)
        better = (losses > state.best_loss) | wrong
        better &= ~state.fooled
        return state._replace(
            current=moved,
            previous=state.current,
            gradient=gradients,
            loss=losses,
            best=active_examples.select(better, moved, state.best),
            best_gradient=active_examples.select(better, gradients, state.best_gradient),
            best_loss=tf.where(better, losses, state.best_loss),
            rises=state.rises + tf.cast(losses > state.loss, tf.int32),
            fooled=state.fooled | wrong,
        )

    def check(state, length):
        few = tf.cast(state.rises, tf.float32) < rho * tf.cast(length, tf.float32)
        halve = few | (~state.halved & (state.checked_loss >= state.best_loss))
        return state._replace(
            current=active_examples.select(halve, state.best, state.current),
            gradient=active_examples.select(halve, state.best_gradient, state.gradient),
            loss=tf.where(halve, state.best_loss, state.loss),
            step_size=tf.where(halve, state.step_size / 2, state.step_size),
            rises=tf.zeros_like(state.rises),
            halved=halve,
            checked_loss=state.best_loss,
        )

    def period(i, state, result):
        here = maximised.take(state.position)
        origin = tf.gather(images, state.position)

        def one(k, inner):
            # The first step of all has no step behind it.
            inertia = tf.where(tf.equal(i + k, 0), 0.0, 1.0 - momentum)
            return k + 1, step(inner, here, origin, inertia)

        _, state = tf.while_loop(
            lambda k, _: k < lengths[i],
            one,
            (0, state),
            shape_invariants=(tf.TensorShape([]), active_examples.any_size(state)),
        )
        result = active_examples.put(result, state.position, state.best)
        return i + 1, active_examples.keep(~state.fooled, check(state, lengths[i])), result

    def search():
        first = begin()
        # Examples that the start has broken go no further.
        result = active_examples.put(images, first.position, first.best)
        first = active_examples.keep(~first.fooled, first)
        return active_examples.run(period, len(ends), first, result)

    return active_examples.unless_none(left, search, images)
