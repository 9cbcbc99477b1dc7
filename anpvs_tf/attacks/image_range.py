"""Checks that images are in [0, 1], the range that the radii of threat models refer to."""

import numpy as np
import tensorflow as tf

from anpvs_tf.common.errors import UsageError

# Rounding of pixels that were computed to be 0 or 1.
_TOLERANCE = 1e-6


def check_pixels(images: np.ndarray | tf.Tensor) -> None:
    """Refuses images that are no floating-point numbers in [0, 1].

    Args:
        images: [batch, ...], with values: an array or an eager tensor. An empty batch passes.

    Raises:
        UsageError: integers, values outside [0, 1], or NaN; the message says which were found.
    """
    images = tf.convert_to_tensor(images)
    low, high = (float(found(images)) for found in (tf.reduce_min, tf.reduce_max))
    if images.dtype.is_floating and low >= -_TOLERANCE and high <= 1.0 + _TOLERANCE:
        return
    of_bytes = low >= 0 and (high > 2 or not images.dtype.is_floating)
    remedy = "divide them by 255" if of_bytes else "map black to 0, white to 1"
    raise UsageError(
        f"images must be floats from 0 to 1; got {images.dtype.name} from {low:g} to {high:g}: "
        f"{remedy}; a model that takes other values needs a Rescaling layer at its input "
        "(bin/evaluate.py: --input_range)"
    )
