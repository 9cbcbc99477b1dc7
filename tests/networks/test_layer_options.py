"""Every option of every layer that has a rule: freezing heeds it or refuses it, by generation.

The options are those of `get_config`, so that an option that a new Keras brings fails here until
it has other values in `OTHERS` or is in `NOTHING_TO_FREEZE`.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from gate_states import set_random

from anpvs_tf.common.errors import UsageError
from anpvs_tf.networks import bayesian, graph
from anpvs_tf.networks.gate import Gate, gates_of
from anpvs_tf.networks.gating import add_gates
from anpvs_tf.networks.shared_dropout import PairedDropout
from anpvs_tf.pruning.frozen import FrozenNetwork

layers = keras.layers
CHANNELS = 6
VECTOR = np.linspace(0.3, 0.9, CHANNELS).tolist()
IMAGES = np.random.default_rng(0).random((2, 8, 8, 3)).astype(np.float32)

# What a layer needs to be made.
NEEDED = {
    layers.Conv1D: {"filters": 6, "kernel_size": 3},
    layers.Conv2D: {"filters": 6, "kernel_size": 3},
    layers.Conv2DTranspose: {"filters": 6, "kernel_size": 3},
    layers.Dense: {"units": 5},
    layers.DepthwiseConv1D: {"kernel_size": 3},
    layers.DepthwiseConv2D: {"kernel_size": 3},
    layers.Normalization: {"mean": VECTOR, "variance": VECTOR},
    layers.Rescaling: {"scale": 0.5},
    layers.AveragePooling1D: {"pool_size": 2},
    layers.AveragePooling2D: {"pool_size": 2},
    layers.Dropout: {"rate": 0.3},
    layers.SpatialDropout2D: {"rate": 0.3},
    layers.GaussianDropout: {"rate": 0.3},
    PairedDropout: {"rate": 0.3},
    layers.GaussianNoise: {"stddev": 0.3},
    layers.Activation: {"activation": "relu"},
    layers.Permute: {"dims": (2, 1, 3)},
    layers.RepeatVector: {"n": 3},
    layers.Reshape: {"target_shape": (-1, CHANNELS)},
}
# Other values of the options, by name.
OTHERS = {
    "activation": ["tanh", "softmax", "log_softmax"],
    "alpha": [0.4],
    "approximate": [True],
    "axis": [1, -2, [1, 2, 3]],
    "center": [False],
    "cropping": [((0, 1), (2, 0))],
    "data_format": ["channels_first"],
    "depth_multiplier": [2],
    "dilation_rate": [(2, 2)],
    "dims": [(3, 1, 2)],
    "dtype": ["mixed_bfloat16"],
    "epsilon": [0.5],
    "filters": [4],
    "groups": [2, 3],
    "interpolation": ["bilinear"],
    "invert": [True],
    "keepdims": [True],
    "kernel_constraint": ["max_norm"],
    "kernel_size": [(1, 3)],
    "lora": [2],
    "max_value": [0.4],
    "mean": [0.2],
    "n": [2],
    "negative_slope": [0.4],
    "noise_shape": [(None, 1, 1, CHANNELS)],
    "offset": [0.1, VECTOR],
    "output_padding": [(1, 0)],
    "padding": ["same", ((0, 1), (2, 0))],
    "pool_size": [(1, 3)],
    "renorm": [True],
    "quantize": ["int8"],
    "scale": [False, VECTOR, [0.5, 2.0]],
    "shared_axes": [[1, 2], [1], [3], [1, 2, 3]],
    "size": [(2, 1)],
    "strides": [(2, 2)],
    "synchronized": [True],
    "target_shape": [(4, -1, CHANNELS), (-1,), (-1, 2)],
    "threshold": [0.1],
    "units": [4],
    "use_bias": [False],
    "variance": [0.7],
}
# The same of layers of sequences.
OTHERS_1D = OTHERS | {
    "activation": ["tanh"],
    "cropping": [(0, 1)],
    "dilation_rate": [2],
    "groups": [2],
    "kernel_size": [1],
    "padding": ["same", "causal", (0, 2)],
    "pool_size": [3],
    "size": [3],
    "strides": [2],
}
# They decide how weights begin and are trained, not what the layer computes of them.
NOTHING_TO_FREEZE = {
    *("name", "trainable", "seed", "rate", "stddev", "momentum", "lora_alpha", "lora_rank"),
    *("renorm_clipping", "renorm_momentum"),
    *("quantization_config", "prior", "prior_sigma", "initial_sigma", "posterior_init"),
}


def is_idle(option):
    ends = ("_initializer", "_regularizer", "_constraint")
    return option in NOTHING_TO_FREEZE or (option.endswith(ends) and option not in OTHERS)


# Refused whatever their options are: the copies of an example would not share their noise.
NOISY = (layers.SpatialDropout2D, layers.GaussianDropout, layers.GaussianNoise)
TYPES = [t for t in graph._kind_of_type if not issubclass(t, Gate) and t not in bayesian.LAYERS]


def network(layer):
    """A gated convolution, the layer, and a convolution or dense layer behind it."""
    images = keras.Input((8, 8, 3))
    x = layers.Conv2D(CHANNELS, 3, activation="relu", name="before")(images)
    merges = isinstance(layer, layers.Concatenate) or "merging" in type(layer).__module__
    inputs = [x, layers.Conv2D(CHANNELS, 3, activation="relu", name="beside")(images)]
    if "1D" in type(layer).__name__:
        x = layers.Reshape((36, CHANNELS))(x)
    if isinstance(layer, layers.RepeatVector):
        x = layers.GlobalAveragePooling2D()(x)
    x = layer(inputs if merges else x)
    if len(x.shape) > 2:
        x = layers.Dense(5, activation="relu", name="behind")(x)
    return keras.Model(images, layers.Dense(4, name="logits")(layers.Flatten()(x)))


def outcome(make, compare_plain=False):
    """ "handled", "refused", or "no layer" where Keras itself takes no such option.

    Raises:
        AssertionError: the frozen network computes something else.
    """
    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(2)
    try:
        model = network(make())
        expected = np.asarray(model(IMAGES), np.float32)
    except (AttributeError, ValueError, TypeError, NotImplementedError, tf.errors.OpError):
        return "no layer"
    for weight in model.weights:
        if "seed" not in weight.path:
            low = 0.5 if "variance" in weight.path or "gamma" in weight.path else -0.5
            weight.assign(rng.uniform(low, 0.9, weight.shape))
    expected = np.asarray(model(IMAGES), np.float32)
    scale = np.abs(expected).max()
    # Of 8 bits' mantissa, if the layer computes in bfloat16.
    computes = {layer.compute_dtype for layer in model.layers}
    tolerance = (0.03 if "bfloat16" in computes else 2e-5) * scale
    try:
        if compare_plain:
            plain = add_gates(model, kind=None)
            np.testing.assert_allclose(plain(IMAGES)["logits"], expected, atol=tolerance)
        gated = add_gates(model)
        for gate in gates_of(gated):
            set_random(gate, np.arange(gate.features) % 2 == 0, rng)
        frozen = FrozenNetwork(gated)
    except UsageError as error:
        assert "\n" not in str(error)
        return "refused"
    logits = np.asarray(gated(IMAGES)["logits"], np.float32)
    np.testing.assert_allclose(frozen(tf.constant(IMAGES)), logits, atol=tolerance)
    return "handled"


@pytest.mark.parametrize("layer_type", TYPES, ids=lambda t: t.__name__)
def test_freezing_heeds_or_refuses_every_option(layer_type):
    needed = NEEDED.get(layer_type, {})
    base = outcome(lambda: layer_type(**needed), compare_plain=True)
    assert base == ("refused" if layer_type in NOISY else "handled")
    options = list(layer_type(**needed).get_config())
    # These are not given, but called for.
    options += ["lora", "quantize"] if hasattr(layer_type, "enable_lora") else []
    unknown = [name for name in options if name not in OTHERS and not is_idle(name)]
    assert unknown == []
    others = OTHERS_1D if "1D" in layer_type.__name__ else OTHERS
    found = {}
    for name in options:
        for value in others.get(name, []) if not is_idle(name) else []:

            def make(name=name, value=value):
                if name not in ("lora", "quantize"):
                    return layer_type(**needed | {name: value})
                layer = layer_type(**needed)
                layer.build((None, 6, 6, CHANNELS))
                layer.enable_lora(2) if name == "lora" else layer.quantize(value)
                return layer

            found[name, str(value)] = outcome(make)
    print(layer_type.__name__, len(options), found)
    counts = [list(found.values()).count(each) for each in ("handled", "refused")]
    assert sum(counts) or not found
