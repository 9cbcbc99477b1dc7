"""The attacks as a user calls them: on images that are checked, and compiled.

The modules of the attacks hold plain functions, for callers that compile them as a part of
something larger, such as a training step: a compilation made here keeps its `logits_fn` alive.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import tensorflow as tf

from anpvs_tf.attacks import (
    auto_pgd,
    fast_adaptive_boundary,
    fast_gradient_sign,
    projected_gradient,
    square_attack,
    uniform_noise,
)
from anpvs_tf.attacks.image_range import check_pixels

Function = TypeVar("Function", bound=Callable[..., tf.Tensor])


def compiled(attack: Function) -> Function:
    """Compiles an attack once for each `logits_fn`, settings and shape, whatever the batch size.

    Keep the same `logits_fn` object to use a compilation again.

    Args:
        attack: (logits_fn, images, labels, seed, ...) -> images.

    Returns:
        The same function. Called outside a graph, it refuses images outside [0, 1], and returns
        an empty batch as it is: no model is called on it.
    """
    run = tf.function(attack, autograph=False, reduce_retracing=True)

    @functools.wraps(attack)
    def call(logits_fn: Any, images: Any, *arguments: Any, **settings: Any) -> tf.Tensor:
        if tf.executing_eagerly():
            images = tf.convert_to_tensor(images)
            check_pixels(images)
            if not images.shape[0]:
                return images
        return run(logits_fn, images, *arguments, **settings)

    return call


apgd = compiled(auto_pgd.apgd)
fab = compiled(fast_adaptive_boundary.fab)
fgsm = compiled(fast_gradient_sign.fgsm)
pgd = compiled(projected_gradient.pgd)
random_noise = compiled(uniform_noise.random_noise)
square = compiled(square_attack.square)
