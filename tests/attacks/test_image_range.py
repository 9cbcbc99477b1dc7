"""Images outside [0, 1] are refused, because a radius of 8/255 means nothing there."""

import numpy as np
import pytest
import tensorflow as tf

from anpvs_tf.attacks.image_range import check_pixels
from anpvs_tf.common.errors import UsageError

IMAGES = np.linspace(0, 1, 24, dtype=np.float32).reshape(2, 2, 2, 3)


@pytest.mark.parametrize(
    "images",
    [IMAGES, tf.constant(IMAGES), IMAGES.astype(np.float64), IMAGES * (1 + 1e-7), IMAGES[:0]],
)
def test_images_in_the_range_pass(images):
    check_pixels(images)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES * 255, "float32 from 0 to 255: divide them by 255; .*--input_range"),
        ((IMAGES * 255).astype(np.uint8), "uint8 from 0 to 255: divide them by 255"),
        (tf.constant(IMAGES * 2 - 1), "float32 from -1 to 1: map black to 0, white to 1"),
        (IMAGES * 1.01, "from 0 to 1.01: map"),
        (np.full([1, 2, 2, 1], np.nan), "float64 from nan to nan"),
        (np.ones([1, 2, 2, 1], int), "int64 from 1 to 1: divide"),
    ],
)
def test_other_images_are_refused_with_the_range_that_was_seen(images, message):
    with pytest.raises(UsageError, match=message):
        check_pixels(images)
