"""The moving statistics of batch normalisations, which every replica has of its own part."""

import keras
import tensorflow as tf


def moving(network: keras.Model, synchronized: bool = True) -> list[keras.Variable]:
    """The moving statistics of batch normalisations."""
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
