"""Keras models of the kinds that users bring: each is gated and evaluated rightly, or refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from anpvs_tf.common.errors import UsageError
from anpvs_tf.data.sources import Source
from anpvs_tf.evaluation import attacked_model
from anpvs_tf.networks.gating import add_gates
from anpvs_tf.pruning.frozen import FrozenNetwork

layers = keras.layers
SOURCE = Source("own", (6, 6, 3), 4)
IMAGES = np.random.default_rng(0).random((5, 6, 6, 3)).astype(np.float32)


def own_activation(x):
    return keras.ops.where(x > 0, x, 0.3 * x)


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = layers.Dense(4)

    def call(self, images, training=None):
        return self.inner(keras.ops.reshape(images, (-1, 108)))


@keras.saving.register_keras_serializable("tests")
class Doubled(layers.Layer):
    def call(self, x):
        return 2.0 * x


def features(x, activation="relu", name=None):
    return layers.Conv2D(4, 3, activation=activation, name=name)(x)


def functional(body=features, head=None, inputs=None):
    images = keras.Input((6, 6, 3)) if inputs is None else inputs
    x = layers.Flatten()(body(images))
    return keras.Model(images, (head or layers.Dense(4))(x))


def sequential(activation=None):
    parts = [layers.Conv2D(4, 3, activation="relu"), layers.Flatten()]
    parts.append(layers.Dense(4, activation))
    return keras.Sequential([keras.Input((6, 6, 3)), *parts])


def subclassed():
    model = Subclassed()
    model(IMAGES)
    return model


def two_outputs():
    images = keras.Input((6, 6, 3))
    x = layers.Flatten()(features(images))
    return keras.Model(images, [layers.Dense(4)(x), layers.Dense(2)(x)])


def two_inputs():
    images, other = keras.Input((6, 6, 3)), keras.Input((6, 6, 3))
    x = layers.Flatten()(layers.Add()([features(images), features(other)]))
    return keras.Model([images, other], layers.Dense(4)(x))


def a_dict():
    images = keras.Input((6, 6, 3))
    x = layers.Flatten()(features(images))
    return keras.Model(images, {"scores": layers.Dense(4)(x)})


def any_size():
    images = keras.Input((None, None, 3))
    x = layers.GlobalAveragePooling2D()(features(images))
    return keras.Model(images, layers.Dense(4)(x))


def twice():
    return add_gates(functional())


def integers():
    images = keras.Input((6, 6, 3), dtype="uint8")
    return functional(lambda x: features(layers.Rescaling(1 / 255)(x)), inputs=images)


def operator(x):
    x = features(x)
    return layers.Conv2D(4, 1, activation="relu")(x + layers.Conv2D(4, 1)(x))


class Recurrent:
    """A last layer whose activation is not the last thing that it does."""

    def __call__(self, x):
        return layers.LSTM(4, activation="sigmoid")(layers.Reshape((4, 16))(x))


def noisy(x):
    return layers.GaussianNoise(0.5)(features(x))


# How a model is made, and what add_gates and evaluation say of it; None: it is taken.
MODELS = {
    "functional": (functional, None, None),
    "sequential": (sequential, None, None),
    "subclassed": (subclassed, "functional", None),
    "two outputs": (two_outputs, "2 outputs", "returns 2 outputs"),
    "two inputs": (two_inputs, "input", "cannot classify"),
    "a dict with another name": (a_dict, None, None),
    "any size": (any_size, "must take images of one size", None),
    "gates twice": (twice, "gates already", None),
    "a layer called logits": (
        lambda: functional(lambda x: features(x, name="logits")),
        "'logits'.*rename",
        None,
    ),
    "a layer called a gate": (
        lambda: functional(lambda x: layers.MaxPooling2D(name="a_gate")(features(x, name="a"))),
        "'a_gate'.*rename",
        None,
    ),
    "an activation of one's own": (
        lambda: functional(lambda x: features(x, own_activation)),
        None,
        "cannot be loaded: .*own_activation",
    ),
    "an operator": (lambda: functional(operator), None, None),
    "a layer of one's own": (lambda: functional(lambda x: Doubled()(features(x))), None, None),
    "integers": (integers, "takes uint8", None),
    "values to 255": (
        lambda: functional(lambda x: features(layers.Rescaling(1 / 255)(x))),
        None,
        None,
    ),
    "softmax in the last layer": (
        lambda: functional(head=layers.Dense(4, "softmax")),
        "softmax",
        None,
    ),
    "a softmax layer": (
        lambda: functional(lambda x: features(x), lambda x: layers.Softmax()(layers.Dense(4)(x))),
        "softmax|Softmax",
        None,
    ),
    "sigmoid in the last layer": (lambda: functional(head=layers.Dense(4, "sigmoid")), None, None),
    "softmax of a Sequential": (lambda: sequential("softmax"), "softmax", None),
    "sigmoid of a Sequential": (lambda: sequential("sigmoid"), None, None),
    "an operation of sigmoid": (
        lambda: functional(head=lambda x: keras.ops.sigmoid(layers.Dense(4)(x))),
        None,
        "returns probabilities",
    ),
    "a recurrent layer that ends in sigmoid": (
        lambda: functional(head=Recurrent()),
        "no activation",
        "returns probabilities",
    ),
    "dropout in inference too": (
        lambda: functional(lambda x: layers.Dropout(0.3)(features(x), training=True)),
        "training=True",
        None,
    ),
    "noise in training": (lambda: functional(noisy), "noise", None),
}


@pytest.mark.parametrize("name", MODELS)
def test_gates_are_added_or_the_model_is_refused(name):
    make, message, _ = MODELS[name]
    model = make()
    if message:
        with pytest.raises(UsageError, match=message) as error:
            add_gates(model)
        assert "\n" not in str(error.value)
        return
    plain = add_gates(model, kind=None)
    takes = model.inputs[0].dtype
    images = IMAGES if takes == "float32" else np.round(IMAGES * 255).astype(takes)
    expected = model(images)
    expected = next(iter(expected.values())) if isinstance(expected, dict) else expected
    np.testing.assert_allclose(plain(images)["logits"], expected, rtol=1e-5, atol=1e-6)
    gated = add_gates(model)
    logits = gated(images)["logits"]
    np.testing.assert_allclose(
        FrozenNetwork(gated)(tf.constant(images)), logits, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", MODELS)
def test_it_is_evaluated_by_its_logits_or_refused(name, tmp_path):
    make, _, message = MODELS[name]
    keras.utils.set_random_seed(3)  # Else few images may have all logits in [0, 1].
    model = make()
    path = str(tmp_path / "model.keras")
    model.save(path)
    if message:
        with pytest.raises(UsageError, match=message) as error:
            subject = attacked_model.of_model(path, SOURCE)
            attacked_model.check_logits(subject, subject.logits(tf.constant(IMAGES)).numpy())
        assert "\n" not in str(error.value)
        return
    subject = attacked_model.of_model(path, SOURCE)
    high = 255.0 if name in ("integers", "values to 255") else 1.0
    assert subject.input_range == (0.0, high)
    images = (np.round(IMAGES * 255) / 255).astype(np.float32)
    takes = "uint8" if name == "integers" else "float32"
    given = (images * high).round().astype(takes) if high > 1 else images
    expected = model(given, training=False)
    if isinstance(expected, dict):
        expected = expected["logits"] if "logits" in expected else expected["scores"]
    logits = subject.logits(tf.constant(images, tf.float32)).numpy()
    attacked_model.check_logits(subject, logits)
    if "softmax" in name:
        logits = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    elif name.startswith("sigmoid"):
        logits = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    # It passes a gradient that an attack can use.
    variable = tf.Variable(tf.constant(images, tf.float32))
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(subject.logits(variable)[:, 0])
    assert np.any(tape.gradient(value, variable).numpy() != 0)
