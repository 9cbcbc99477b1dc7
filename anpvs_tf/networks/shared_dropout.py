"""Dropout that the copies of an example share."""

import keras
import tensorflow as tf

from anpvs_tf.common import randomness


@keras.saving.register_keras_serializable("anpvs_tf")
class PairedDropout(keras.layers.Layer):
    """Dropout whose mask is shared by the copies of an example in a `noise.scope`.

    Keras's own dropout draws the clean and the adversarial copy of an example
    different masks, which would count as vulnerability what is only noise.

    Args:
        rate: share of the values that is dropped, in [0, 1).
        seed: integer for draws outside a `noise.scope`.

    Raises:
        ValueError: for a rate out of range.
    """

    def __init__(self, rate: float, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"rate must lie in [0, 1); received {rate}")
        self.rate = rate
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.supports_masking = True

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        if not training or self.rate == 0:
            return inputs
        seed = randomness.layer_seed(self.name, self.seed_generator)
        batch_size, *shape = keras.ops.shape(inputs)
        keep = randomness.per_example(
            lambda n: randomness.uniform([n, *shape], seed) >= self.rate, batch_size
        )
        scale = tf.constant(1 / (1 - self.rate), inputs.dtype)
        return tf.where(keep, inputs * scale, tf.zeros([], inputs.dtype))

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return input_shape

    def get_config(self) -> dict:
        return super().get_config() | {"rate": self.rate, "seed": self.seed}
