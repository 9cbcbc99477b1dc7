"""Dropout that the copies of an example share."""

import keras
import tensorflow as tf

from anpvs_tf.common import randomness


@keras.saving.register_keras_serializable("anpvs_tf")
class PairedDropout(keras.layers.Layer):
    """Dropout whose mask is shared by the copies of an example in a `randomness.scope`.

    Keras's own dropout draws different masks for the clean and the adversarial copy of an
    example, so that mere noise would count as vulnerability.

    Args:
        rate: share of the values that is dropped, in [0, 1).
        noise_shape: of the mask, as of `keras.layers.Dropout`: None in it is the input's size,
            1 shares the mask along that axis. The first axis, of examples, must be None.
        seed: integer for draws outside a `randomness.scope`.

    Raises:
        ValueError: for a rate out of range.
    """

    def __init__(
        self,
        rate: float,
        seed: int | None = None,
        noise_shape: tuple[int | None, ...] | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"rate must lie in [0, 1); received {rate}")
        if noise_shape is not None and noise_shape[0] is not None:
            raise ValueError(f"noise_shape must begin with None; received {noise_shape}")
        self.rate = rate
        self.noise_shape = None if noise_shape is None else tuple(noise_shape)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.supports_masking = True

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        if not training or self.rate == 0:
            return inputs
        seed = randomness.layer_seed(self.name, self.seed_generator)
        batch_size, *shape = keras.ops.shape(inputs)
        if self.noise_shape is not None:
            shape = [
                size if n is None else n
                for n, size in zip(self.noise_shape[1:], shape, strict=True)
            ]
        keep = randomness.per_example(
            lambda n, first: randomness.uniform([n, *shape], seed, first=first) >= self.rate,
            batch_size,
        )
        scale = tf.constant(1 / (1 - self.rate), inputs.dtype)
        return tf.where(keep, inputs * scale, tf.zeros([], inputs.dtype))

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return input_shape

    def get_config(self) -> dict:
        own = {"rate": self.rate, "seed": self.seed}
        if self.noise_shape is not None:
            own["noise_shape"] = self.noise_shape
        return super().get_config() | own
