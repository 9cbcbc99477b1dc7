"""Image folders that tests make."""

import numpy as np
import tensorflow as tf

RNG = np.random.default_rng(0)


def write(path, image):
    """Writes an array [H, W, C] as a PNG file; returns the array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tf.io.encode_png(image).numpy())
    return image


def noise_image(*shape):
    return RNG.integers(0, 256, shape).astype(np.uint8)


def touch(root, *names):
    """Empty files: what a folder is, as far as it can be seen without reading an image."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
