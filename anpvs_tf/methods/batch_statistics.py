"""The moving statistics of batch normalisations, which every replica takes of its own part."""

import keras
import tensorflow as tf


def moving(network: keras.Model, synchronized: bool = True) -> list[keras.Variable]:
    """Lists the moving statistics of batch normalisations."""
    return [
        variable
        for layer in network.layers
        if isinstance(layer, keras.layers.BatchNormalization)
        and (synchronized or not layer.synchronized)
        for variable in (layer.moving_mean, layer.moving_variance)
    ]


def agree(network: keras.Model, replica: tf.distribute.ReplicaContext) -> None:
    """Gives all replicas the mean of the moving statistics that each took of its own part.

    Keras would let them drift apart; then a checkpoint, which has the first replica's,
    would be no exact state, and every replica would craft on another network.
    """
    own = moving(network, synchronized=False)
    if own and replica.num_replicas_in_sync > 1:
        means = replica.all_reduce(
            tf.distribute.ReduceOp.MEAN, [tf.convert_to_tensor(v) for v in own]
        )
        for variable, mean in zip(own, means, strict=True):
            variable.assign(mean)


class Averages:
    """Moving averages of the moving statistics, for a network whose weights are averaged.

    The averaged weights need statistics of their own: the live ones belong to other weights.
    Their average, of the same decay, is what the averaged network would have seen as long as
    weights move slowly, and needs no pass over the data.

    Args:
        network: whose statistics are averaged. Make it in the scope of its strategy.

    Attributes:
        pairs: (a moving statistic, its average) for each.
    """

    def __init__(self, network: keras.Model):
        same = {"trainable": False, "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA}
        self.pairs = [
            (variable, tf.Variable(tf.convert_to_tensor(variable), **same))
            for variable in moving(network)
        ]

    def state(self) -> dict[str, tf.Variable]:
        """Returns the variables that a resumed run needs, by name."""
        return {f"average_{v.path.replace('/', '_')}": average for v, average in self.pairs}

    def advance(self, share: tf.Tensor) -> None:
        """Moves the averages by `share` of the way to the statistics."""
        for variable, average in self.pairs:
            average.assign_add(share * (tf.convert_to_tensor(variable) - average))
