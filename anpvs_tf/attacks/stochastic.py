"""Functions to attack, made of models that draw noise at each call."""

import tensorflow as tf

from anpvs_tf.attacks import losses


def expectation(logits_fn: losses.LogitsFn, draws: int) -> losses.LogitsFn:
    """Makes a function of several draws, for attacks on their mean (EOT, Athalye et al. 2018).

    Args:
        logits_fn: images -> logits, or a dict with "logits"; draws noise of its
            own (with TensorFlow's stateful random operations) at each call.
        draws: calls.

    Returns:
        A function images -> the same structure with a leading axis of draws.
        Losses and gradients of attacks are means over that axis; the mean of the
        softmax decides on the class.

    Raises:
        ValueError: if draws < 1.
    """
    if draws < 1:
        raise ValueError(f"the number of draws must be at least 1; received {draws}")

    def drawn(images):
        # The first call shows the structure; a loop makes the others, not a larger
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
