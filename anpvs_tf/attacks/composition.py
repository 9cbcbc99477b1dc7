"""Attacks made of attacks: restarts, every target class, expectation over randomness.

A wrapped attack has the signature of an attack,
`(logits_fn, images, labels, seed, **settings)`, and hands its settings on. Wrap
once and keep the result: what is compiled belongs to the function object.
"""

from collections.abc import Callable

import tensorflow as tf

from anpvs_tf.attacks import active_examples, losses
from anpvs_tf.common import randomness

Attack = Callable[..., tf.Tensor]


def _rounds(
    logits_fn: losses.LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    count: int,
    attack_round: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
) -> tf.Tensor:
    """Attacks again and again what is left; the worst case of each example.

    `attack_round(i, position)` attacks the examples at `position`. The worst case
    is an image that fools the model, or else the one of the largest margin.
    """
    images, labels = tf.convert_to_tensor(images), tf.convert_to_tensor(labels)
    logits = losses.logits_of(logits_fn, images)
    margins = losses.margins_of(logits, labels)
    left = ~losses.fooled(logits, labels)
    position = active_examples.keep(left, tf.range(tf.shape(images)[0]))

    def one(i, position, worst, largest):
        attacked = attack_round(i, position)
        own = tf.gather(labels, position)
        logits = losses.logits_of(logits_fn, attacked)
        margins, wrong = losses.margins_of(logits, own), losses.fooled(logits, own)
        before, most = tf.gather(worst, position), tf.gather(largest, position)
        better = wrong | (margins > most)
        worst = active_examples.put(
            worst, position, active_examples.select(better, attacked, before)
        )
        largest = active_examples.put(largest, position, tf.where(better, margins, most))
        return i + 1, active_examples.keep(~wrong, position), worst, largest

    _, _, worst, _ = tf.while_loop(
        lambda i, position, *_: (i < count) & (tf.size(position) > 0),
        one,
        (0, position, images, margins),
        shape_invariants=(
            tf.TensorShape([]),
            *active_examples.any_size((position, images, margins)),
        ),
    )
    return worst


def restarts(attack: Attack, count: int) -> Attack:
    """Attacks `count` times with different seeds; later times only what is not yet broken.

    An example that the model gets wrong unperturbed is returned as it is.
    Restart i has the seed `randomness.fold(seed, i)`. Raises ValueError if count < 1.
    """
    if count < 1:
        raise ValueError(f"the number of restarts must be at least 1; received {count}")

    def attack_with_restarts(logits_fn, images, labels, seed, **settings):
        def attack_round(i, position):
            rows = tf.gather(images, position), tf.gather(labels, position)
            return attack(logits_fn, *rows, randomness.fold(seed, i), **settings)

        return _rounds(logits_fn, images, labels, count, attack_round)

    return attack_with_restarts


def wrong_classes(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Every wrong class, the most likely first: int32 [batch, classes - 1]."""
    classes = logits.shape[-1]
    own = tf.one_hot(labels, classes, on_value=True, off_value=False)
    others = tf.where(own, tf.constant(float("-inf")), logits)
    return tf.math.top_k(others, classes - 1).indices


def targets(attack: Attack, count: int) -> Attack:
    """Attacks once for each of the `count` most likely wrong classes, later only what is left.

    Classes are ranked at the unperturbed image; where there are fewer wrong
    classes, all are used. `attack` takes `targets`, int [batch]. Seeds and what
    is misclassified unperturbed as in `restarts`. Raises ValueError if count < 1.
    """
    if count < 1:
        raise ValueError(f"the number of target classes must be at least 1; received {count}")

    def attack_every_target(logits_fn, images, labels, seed, **settings):
        logits = losses.logits_of(logits_fn, images)
        ranked = wrong_classes(logits, labels)

        def attack_round(i, position):
            rows = tf.gather(images, position), tf.gather(labels, position)
            targets = tf.gather(ranked, position)[:, i]
            return attack(logits_fn, *rows, randomness.fold(seed, i), targets=targets, **settings)

        rounds = min(count, logits.shape[-1] - 1)
        return _rounds(logits_fn, images, labels, rounds, attack_round)

    return attack_every_target


def expectation(logits_fn: losses.LogitsFn, draws: int) -> losses.LogitsFn:
    """Expectation over a stochastic model's randomness (Athalye et al. 2018).

    Args:
        logits_fn: images -> logits, or a dict with "logits"; draws noise of its
            own (with TensorFlow's stateful random operations) at each call.
        draws: calls.

    Returns:
        A function images -> the same structure with a leading axis of draws.
        Losses and gradients of attacks are means over it, decisions fall on the
        mean of the softmax.

    Raises:
        ValueError: if draws < 1.
    """
    if draws < 1:
        raise ValueError(f"the number of draws must be at least 1; received {draws}")

    def drawn(images):
        # The first call tells the structure; a loop makes the others, not a larger
        # batch, as the model may share one draw (of its weights) over a batch.
        first = logits_fn(images)
        if draws == 1:
            return tf.nest.map_structure(lambda value: value[None], first)
        others = tf.map_fn(
            lambda _: logits_fn(images),
            tf.range(draws - 1),
            fn_output_signature=tf.nest.map_structure(
                lambda value: tf.TensorSpec(value.shape, value.dtype), first
            ),
        )
        return tf.nest.map_structure(
            lambda one, rest: tf.concat([one[None], rest], 0), first, others
        )

    drawn.draws = draws
    return drawn
