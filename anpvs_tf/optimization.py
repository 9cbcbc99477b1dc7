"""Adam with a learning rate for gates of their own, and how the rates fall."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("anpvs_tf")
class GroupedAdam(keras.optimizers.Adam):
    """Adam whose learning rate for gate parameters is a multiple of the others'.

    One optimizer with two rates, because two optimizers cannot be applied in one
    step under `tf.distribute.MirroredStrategy`.

    Args:
        learning_rate: of the weights; a number or a schedule.
        gate_rate_multiple: the gates' learning rate over the weights'.
    """

    def __init__(self, learning_rate=1e-3, gate_rate_multiple: float = 10.0, **kwargs):
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.gate_rate_multiple = gate_rate_multiple

    def update_step(self, gradient, variable, learning_rate) -> None:
        if is_gate_variable(variable):
            learning_rate = learning_rate * self.gate_rate_multiple
        super().update_step(gradient, variable, learning_rate)

    def slots(self) -> tuple[list, list]:
        """The two moments, each a list with a variable for each trained one."""
        return self._momentums, self._velocities

    def get_config(self) -> dict:
        return super().get_config() | {"gate_rate_multiple": self.gate_rate_multiple}


def is_gate_variable(variable) -> bool:
    """Whether a variable is a gate's parameter (by name: replicas have no `path`)."""
    return "gate_" in variable.name


def learning_rate_schedule(
    learning_rate: float, total_steps: int, decay_at: tuple[float, ...], decay: str = "steps"
) -> keras.optimizers.schedules.LearningRateSchedule:
    """How the learning rate falls.

    Args:
        learning_rate: at the start.
        total_steps: of the whole run.
        decay_at: shares of `total_steps`, increasing.
        decay: "steps" divides by ten at each share (the published schedule);
            "linear" falls to 0 from the first share to the end.

    Raises:
        ValueError: for another decay.
    """
    if decay == "linear":
        return LinearDecay(learning_rate, round(decay_at[0] * total_steps), total_steps)
    if decay != "steps":
        raise ValueError(f"decay must be one of {DECAYS}; received {decay!r}")
    boundaries = [max(1, round(share * total_steps)) for share in decay_at]
    values = [learning_rate * 0.1**i for i in range(len(boundaries) + 1)]
    return keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, values)


DECAYS = ("steps", "linear")


@keras.saving.register_keras_serializable("anpvs_tf")
class LinearDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Constant until step `begin`, then linear to 0 at step `end`."""

    def __init__(self, learning_rate: float, begin: int, end: int):
        self.learning_rate = learning_rate
        self.begin = begin
        self.end = end

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        left = (self.end - tf.cast(step, tf.float32)) / max(1, self.end - self.begin)
        return self.learning_rate * tf.clip_by_value(left, 0.0, 1.0)

    def get_config(self) -> dict:
        return {"learning_rate": self.learning_rate, "begin": self.begin, "end": self.end}
