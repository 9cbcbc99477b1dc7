"""Keeps the network of the best epoch, against robust overfitting (Rice et al. 2020)."""

import keras
import tensorflow as tf


class Best:
    """The weights of the epoch with the highest robust accuracy on validation.

    Args:
        network: the network whose weights are kept.
        first_epoch: the first epoch that counts: before, the network is not yet what
            was asked for (warm-ups of the attack and of the KL, pruning).
    """

    def __init__(self, network: keras.Model, first_epoch: int = 1):
        self.network = network
        self.first_epoch = first_epoch
        self.epoch = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.accuracy = tf.Variable(-1.0, dtype=tf.float64, trainable=False)
        self.weights = [tf.Variable(w.value, trainable=False) for w in network.weights]

    def checkpoint(self) -> tf.train.Checkpoint:
        """Makes a checkpoint of everything that a resumed run needs."""
        return tf.train.Checkpoint(
            epoch=self.epoch, accuracy=self.accuracy, weights=list(self.weights)
        )

    def offer(self, epoch: int, accuracy: float) -> None:
        """Keeps the network's weights unless those kept before are better; of equals, the later."""
        if epoch < self.first_epoch or accuracy < float(self.accuracy):
            return
        self.epoch.assign(epoch)
        self.accuracy.assign(accuracy)
        for kept, weight in zip(self.weights, self.network.weights, strict=True):
            kept.assign(weight)

    def restore(self) -> None:
        """Gives the network the kept weights; if none were kept, its own stay."""
        if self.epoch > 0:
            for kept, weight in zip(self.weights, self.network.weights, strict=True):
                weight.assign(kept)
