"""Optimizers with a learning rate of the gates' own, averages of weights, the rates' schedules."""

import keras
import tensorflow as tf

from anpvs_tf.methods.hyperparameters import DECAYS


@keras.saving.register_keras_serializable("anpvs_tf")
class GroupedAdam(keras.optimizers.Adam):
    """Adam whose learning rate for gate parameters is a multiple of the others'.

    One optimizer with two rates, because two optimizers cannot be applied in one
    step under `tf.distribute.MirroredStrategy`.

    Keras's own `use_ema` cannot be used under a distribution strategy (its averages
    are assigned on each replica), so the average is kept here.

    Args:
        learning_rate: of the weights; a number or a schedule.
        gate_rate_multiple: the gates' learning rate over the weights'.
        average: decay of the moving average of the variables, in [0, 1); 0 keeps none.
        gates_until: the step from which gates no longer move; None: they always do.
        skip_nonfinite: leave a variable, its moments and its average as they are if its
            gradient is not finite.
    """

    def __init__(
        self,
        learning_rate=1e-3,
        gate_rate_multiple: float = 10.0,
        average: float = 0.0,
        skip_nonfinite: bool = False,
        gates_until: int | None = None,
        **kwargs,
    ):
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.gate_rate_multiple = gate_rate_multiple
        self.gates_until = gates_until
        self.average = average
        self.skip_nonfinite = skip_nonfinite
        self._averages = []

    def build(self, variables) -> None:
        if self.built:
            return
        super().build(variables)
        if self.average:
            self._averages = self.add_optimizer_variables(variables, "weight_average")

    def update_step(self, gradient, variable, learning_rate) -> None:
        if not self.skip_nonfinite:
            return self._update_step(gradient, variable, learning_rate)
        good = tf.reduce_all(tf.math.is_finite(gradient))

        def update():
            self._update_step(gradient, variable, learning_rate)
            return True

        tf.cond(good, update, lambda: False)

    def _update_step(self, gradient, variable, learning_rate) -> None:
        if is_gate_variable(variable):
            rate = learning_rate * self.gate_rate_multiple
            if self.gates_until is not None:
                rate = tf.where(self.iterations < self.gates_until, rate, 0.0)
            super().update_step(gradient, variable, rate)
        else:
            self._update_weight(gradient, variable, learning_rate)
        if self._averages:
            average = self._averages[self._get_variable_index(variable)]
            share = tf.cast(self.average_share(), variable.dtype)
            self.assign_add(average, share * (tf.convert_to_tensor(variable) - average))

    def _update_weight(self, gradient, variable, learning_rate) -> None:
        super().update_step(gradient, variable, learning_rate)

    def average_share(self) -> tf.Tensor:
        """Computes how far the averages move towards the values after this update, in (0, 1]."""
        # The average begins with the weights after the first update.
        return tf.where(tf.equal(self.iterations, 0), 1.0, 1.0 - self.average)

    def averages(self) -> list:
        """Lists moving averages in the order of the trained variables; empty if none are kept."""
        return list(self._averages)

    def slots(self) -> list[list]:
        """Lists the moments and averages, each a list with a variable for each trained one."""
        kept = [self._momentums, self._velocities, self._averages]
        return [variables for variables in kept if variables]

    def get_config(self) -> dict:
        own = {"gate_rate_multiple": self.gate_rate_multiple, "average": self.average}
        own |= {"skip_nonfinite": self.skip_nonfinite, "gates_until": self.gates_until}
        return super().get_config() | own


@keras.saving.register_keras_serializable("anpvs_tf")
class GroupedSGD(GroupedAdam):
    """Stochastic gradient descent with Nesterov's momentum for the weights, Adam for the gates.

    Gates keep Adam because the KL divergence has to move each of them by about the same
    distance, whatever the size of its gradient, before features can be pruned.

    Args:
        momentum: of the weights, in [0, 1).

    The others are `GroupedAdam`'s.
    """

    def __init__(self, learning_rate=0.1, momentum: float = 0.9, **kwargs):
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.momentum = momentum

    def _update_weight(self, gradient, variable, learning_rate) -> None:
        # As keras.optimizers.SGD; the variable of Adam's first moment holds the velocity.
        rate = tf.cast(learning_rate, variable.dtype)
        step = rate * tf.cast(gradient, variable.dtype)
        velocity = self._momentums[self._get_variable_index(variable)]
        moved = self.momentum * tf.convert_to_tensor(velocity) - step
        self.assign(velocity, moved)
        self.assign_add(variable, self.momentum * moved - step)

    def get_config(self) -> dict:
        return super().get_config() | {"momentum": self.momentum}


def updating(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Returns the optimizer that moves variables: the inner one, if `optimizer` scales the loss."""
    return getattr(optimizer, "inner_optimizer", optimizer)


OPTIMIZERS = {"adam": GroupedAdam, "sgd": GroupedSGD}


def is_gate_variable(variable) -> bool:
    """Says whether a variable is a gate's parameter (by name: replicas have no `path`)."""
    return "gate_" in variable.name


def learning_rate_schedule(
    learning_rate: float, total_steps: int, decay_at: tuple[float, ...], decay: str = "steps"
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Makes the schedule of the learning rate.

    Args:
        learning_rate: at the start.
        total_steps: of the whole run.
        decay_at: shares of `total_steps`, increasing.
        decay: "steps" divides by ten at each share (the published schedule);
            "linear" falls to 0 from the first share to the end; "one_cycle" grows
            linearly to `learning_rate` until the first share, then falls linearly to 0
            (Smith & Topin 2018; for adversarial training Wong et al. 2020).

    Raises:
        ValueError: for another decay.
    """
    if decay == "linear":
        return LinearDecay(learning_rate, round(decay_at[0] * total_steps), total_steps)
    if decay == "one_cycle":
        return OneCycle(learning_rate, round(decay_at[0] * total_steps), total_steps)
    if decay != "steps":
        raise ValueError(f"decay must be one of {DECAYS}; received {decay!r}")
    boundaries = [max(1, round(share * total_steps)) for share in decay_at]
    values = [learning_rate * 0.1**i for i in range(len(boundaries) + 1)]
    return keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, values)


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


@keras.saving.register_keras_serializable("anpvs_tf")
class OneCycle(LinearDecay):
    """Linear from 0 to the learning rate at step `begin`, then linear to 0 at step `end`."""

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        # The first step's rate is not 0: the step would be lost.
        growth = (tf.cast(step, tf.float32) + 1.0) / max(1, self.begin)
        return super().__call__(step) * tf.minimum(growth, 1.0)
