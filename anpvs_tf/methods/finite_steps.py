"""Training steps whose losses or gradients are not finite: noticed, and on request left out."""

import keras
import numpy as np
import tensorflow as tf

from anpvs_tf.methods import batch_statistics
from anpvs_tf.methods.optimizer import updating


class FiniteStep:
    """A step that is judged before it is applied, and leaves no trace if it is left out.

    Made before the network runs: it keeps the moving statistics as they are then.

    Args:
        optimizer: if it has `skip_nonfinite`, a step that is not finite is left out.
        network: the network that is trained.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer, network: keras.Model):
        self.optimizer = optimizer
        self.scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        self.skips = getattr(updating(optimizer), "skip_nonfinite", False)
        statistics = batch_statistics.moving(network) if self.skips else []
        self._kept = [(variable, tf.identity(variable)) for variable in statistics]
        self._bad = tf.constant(False)

    def judge(
        self, losses: list[tf.Tensor], gradients: list[tf.Tensor]
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Judges whether a step is finite; restores the moving statistics if it is left out.

        Returns:
            1.0 if it is not finite on this replica, else 0.0; and the gradients to apply, which
            are NaN if the step is to be left out: that tells the optimizer.
        """
        # float16's gradients overflow now and then; its optimizer leaves those updates out.
        values = losses if self.scales else losses + gradients
        good = tf.reduce_all([tf.reduce_all(tf.math.is_finite(value)) for value in values])
        nonfinite = 1.0 - tf.cast(good, tf.float32)
        if not self.skips:
            return nonfinite, gradients
        # On all replicas or on none.
        replica = tf.distribute.get_replica_context()
        self._bad = replica.all_reduce(tf.distribute.ReduceOp.SUM, nonfinite) > 0.0
        for variable, value in self._kept:
            variable.assign(tf.where(self._bad, value, variable))
        return nonfinite, [tf.where(self._bad, np.nan, gradient) for gradient in gradients]

    def applied(self) -> tf.Tensor | float:
        """Returns 1 for a step that counts, else 0, and keeps the optimizer from counting it.

        Call it after the optimizer.
        """
        if not self.skips:
            return 1.0
        if not self.scales:  # A scaling optimizer does not count a step that it leaves out.
            self.optimizer.iterations.assign_sub(tf.where(self._bad, 1, 0))
        return tf.where(self._bad, 0.0, 1.0)
