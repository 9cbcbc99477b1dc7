"""Measures how far latent features move under an attack (Eq. 1)."""

from collections.abc import Mapping

import tensorflow as tf


def movement(
    clean: Mapping[str, tf.Tensor], attacked: Mapping[str, tf.Tensor]
) -> dict[str, tf.Tensor]:
    """Returns how far each feature of each example moved, {latent layer: [batch, ...]}.

    Args:
        clean, attacked: a network's outputs on images and on the attacked images: "logits",
            which are left out, and latent features by layer.
    """
    return {name: tf.abs(clean[name] - attacked[name]) for name in clean if name != "logits"}
