"""Small gated networks with every kind of layer, and what is compared of networks."""

import keras
import numpy as np
import tensorflow as tf
from gate_states import set_random

from anpvs_tf.networks import architectures
from anpvs_tf.networks.gate import Gate
from anpvs_tf.networks.gating import GATE_KINDS
from anpvs_tf.networks.shared_dropout import PairedDropout

layers = keras.layers


def residual(kind="beta_bernoulli"):
    """Every supported layer, residual branches, gates before and after normalisation."""
    gate = GATE_KINDS[kind]
    images = x = keras.Input((16, 16, 3))
    x = layers.Rescaling(2.0, -1.0)(x)
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    for block in range(2):
        y = gate(name=f"inner{block}")(layers.ReLU()(layers.BatchNormalization()(x)))
        y = layers.Conv2D(12, 3, padding="same")(y)
        y = layers.BatchNormalization()(gate(name=f"outer{block}")(y))
        y = layers.LeakyReLU()(y)
        y = layers.DepthwiseConv2D(3, padding="same")(y)
        y = layers.Dropout(0.5)(layers.Conv2D(8, 3, padding="same")(y))
        x = layers.Add()([x, y])
    gated = gate(name="last")(layers.ReLU()(x))
    x = layers.Concatenate()([x, gated, layers.AveragePooling2D(3, 1, "same")(gated)])
    x = layers.Conv2D(9, 3, strides=2)(layers.ZeroPadding2D(1)(x))
    x = layers.Activation("sigmoid")(x)
    return keras.Model(images, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def small_vgg(kind="beta_bernoulli"):
    """Same layers as vgg16: normalisation, batch normalisation, same padding, two pools."""
    gate = GATE_KINDS[kind]
    images = x = keras.Input((8, 8, 3))
    x = layers.Normalization(mean=[0.5, 0.4, 0.3], variance=[0.1, 0.2, 0.3])(x)
    for i, filters in enumerate((6, 9)):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = PairedDropout(0.3)(gate(name=f"gate{i}")(x))
        x = layers.MaxPooling2D()(x)
    x = gate(name="flatten_gate")(layers.Flatten()(x))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Dense(20, use_bias=False)(x)))
    return keras.Model(images, layers.Dense(10)(gate(name="dense_gate")(x)))


def lenet(kind="beta_bernoulli"):
    return architectures.lenet5((28, 28, 1), 10, kind)


NETWORKS = {"lenet": lenet, "small_vgg": small_vgg, "residual": residual}


def randomise(network, share, rng):
    """Random weights, statistics and gates; `share` of each gate's features are pruned.

    A share of None leaves one feature of each gate, the first.
    """
    for layer in network.layers:
        if isinstance(layer, Gate):
            size = layer.features
            shut = np.ones(size, bool) if share is None else rng.random(size) < share
            # Feature 0 stays: of the flattened map it is a place of channel 0.
            shut[0] = False
            set_random(layer, ~shut, rng)
        elif isinstance(layer, layers.BatchNormalization):
            size = layer.gamma.shape
            layer.gamma.assign(rng.uniform(-1.5, 1.5, size))
            layer.beta.assign(rng.normal(0, 0.3, size))
            layer.moving_mean.assign(rng.normal(0, 0.3, size))
            layer.moving_variance.assign(rng.uniform(0.5, 2, size))
        elif getattr(layer, "bias", None) is not None:
            layer.bias.assign(rng.normal(0, 0.3, layer.bias.shape))


def logits_and_gradient(function, images):
    with tf.GradientTape() as tape:
        tape.watch(images)
        outputs = function(images)
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs
        weighted = tf.reduce_sum(logits * tf.range(logits.shape[1], dtype=tf.float32))
    return logits.numpy(), tape.gradient(weighted, images).numpy()
