"""The simulated integers of a LiteRT file against its interpreter, and attacks on them."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from anpvs_tf import attacks
from anpvs_tf.common import randomness
from anpvs_tf.common.errors import UsageError
from anpvs_tf.data.sources import Source
from anpvs_tf.evaluation import attacked_model
from anpvs_tf.evaluation.attacked_model import Subject
from anpvs_tf.evaluation.integer_network import IntegerNetwork
from anpvs_tf.serving import isolated_process, litert

pytest.importorskip("ai_edge_litert")

layers = keras.layers
IMAGES = np.random.default_rng(0).integers(0, 256, (80, 12, 12, 2), np.uint8)


def plain(x):
    """The layers of lenet5."""
    x = layers.Conv2D(6, 3, activation="relu")(x)
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(layers.MaxPooling2D()(x))
    x = layers.Dense(20)(layers.Flatten()(x))
    return layers.ReLU()(keras.ops.take(x, range(0, 20, 2), axis=-1))


def residual(x):
    """The layers of a ResNet, other pooling and activations."""
    x = layers.Conv2D(8, 3, padding="same", activation="relu6")(8.0 * x)
    y = layers.Conv2D(8, 1)(x)
    x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.AveragePooling2D(3, 2, "same")(x)
    x = layers.ReLU()(layers.AveragePooling2D(2, 1)(x + -0.2))
    return layers.GlobalAveragePooling2D()(x)


NETWORKS = {"plain": plain, "residual": residual}


def network(body):
    images = keras.Input(IMAGES.shape[1:])
    keras.utils.set_random_seed(0)
    return keras.Model(images, layers.Dense(4)(body(1.7 * images - 0.8)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """{name: (float network, directory of its files)}."""
    made = {}
    for name, body in NETWORKS.items():
        path = tmp_path_factory.mktemp(name)
        made[name] = network(body)
        litert.write(made[name], path, ("int8",), IMAGES)
        made[name] = made[name], path
    return made


def answers(path, images):
    """Logits by the program that checks exports, which knows nothing of the simulation."""
    return isolated_process.tflite_functions(path)["model_int8.tflite"](images)["logits"]


def pixels(images):
    return tf.constant(images, tf.float32) / 255.0


@pytest.mark.parametrize("name", NETWORKS)
def test_the_simulation_is_within_a_quantum_of_the_interpreter(folder, name):
    _, path = folder[name]
    integers = IntegerNetwork(path / "model_int8.tflite")
    assert (integers.image_shape, integers.classes) == ((12, 12, 2), 4)
    expected = answers(path, IMAGES)
    np.testing.assert_array_equal(integers.logits(pixels(IMAGES)), expected)
    quanta = (integers.simulate(pixels(IMAGES)) - expected) / integers.quantum
    assert np.abs(quanta).max() < 1.01 and np.mean(np.abs(quanta) < 0.01) > 0.8
    assert len(np.unique(np.round(expected / integers.quantum))) > 50


def gradients(function, images):
    with tf.GradientTape() as tape:
        tape.watch(images)
        logits = tf.reduce_sum(function(images)[:, 1])
    return tape.gradient(logits, images).numpy()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_gradient_is_that_of_the_network_before_rounding(folder, name):
    model, path = folder[name]
    images = pixels(IMAGES)
    integers = IntegerNetwork(path / "model_int8.tflite")
    found, expected = gradients(integers.logits, images), gradients(model, images)
    cosines = np.sum(found * expected, axis=(1, 2, 3))
    cosines /= np.linalg.norm(found.reshape(80, -1), axis=1)
    cosines /= np.linalg.norm(expected.reshape(80, -1), axis=1)
    assert np.median(cosines) > 0.98
    # Along it, the interpreter's own logit rises.
    moved = np.clip(np.round(IMAGES + 6 * np.sign(found)), 0, 255).astype(np.uint8)
    assert np.mean(answers(path, moved)[:, 1] > answers(path, IMAGES)[:, 1]) > 0.98
    # With the run at hand, its network's is added.
    run = Subject("a run", Source("images", IMAGES.shape[1:], 4), "", model)
    both = attacked_model.of_litert(str(path / "model_int8.tflite"), run)
    np.testing.assert_allclose(gradients(both.logits, images), found + expected, atol=1e-5)
    np.testing.assert_array_equal(both.logits(images), integers.logits(images))
    np.testing.assert_array_equal(both.simulated(images), integers.simulate(images))


def test_the_greatest_of_a_pool_is_that_before_rounding(tmp_path):
    # Two pixels that the first layer makes one integer, of which the second is greater.
    images = keras.Input([1, 2, 1])
    tiny = layers.Dense(1, use_bias=False, kernel_initializer="ones")
    x = layers.MaxPooling2D((1, 2))(tiny(images))
    made = keras.Model(images, layers.Dense(2, kernel_initializer="ones")(layers.Flatten()(x)))
    # Few images are calibrated on: 1 is far off, so that a quantum is wide.
    calibration = np.array([[[[0], [0]]], [[[255], [255]]]], np.uint8)
    tiny.set_weights([np.full([1, 1], 0.001, np.float32)])
    litert.write(made, tmp_path, ("int8",), calibration)
    integers = IntegerNetwork(tmp_path / "model_int8.tflite")
    found = gradients(integers.logits, tf.constant([0.5, 0.5001], shape=[1, 1, 2, 1]))
    assert found.ravel()[0] == 0 < found.ravel()[1]


@pytest.mark.parametrize("attack", ["pgd", "square"])
def test_what_attacks_find_fools_the_file_on_8_bit_images_of_the_ball(folder, attack):
    _, path = folder["plain"]
    integers = IntegerNetwork(path / "model_int8.tflite")
    labels = answers(path, IMAGES).argmax(axis=1)
    levels = 10
    own = {"pgd": {"steps": 10, "step_size": 2 / 255}, "square": {"queries": 100}}[attack]
    run = functools.partial(getattr(attacks, attack), epsilon=levels / 255, **own)
    crafted = run(integers.logits, pixels(IMAGES), labels, randomness.seed_of(0)).numpy()
    rounded = np.round(255 * crafted).astype(np.uint8)
    assert np.abs(rounded.astype(int) - IMAGES).max() == levels
    after = answers(path, rounded)
    # The attack saw what the file answers to such images (but for halves), and it broke many.
    assert np.mean(np.all(integers.logits(crafted) == after, axis=1)) > 0.95
    noise = IMAGES + levels * np.random.default_rng(1).choice([-1, 1], IMAGES.shape)
    noisy = answers(path, np.clip(noise, 0, 255).astype(np.uint8))
    broken, by_noise = (np.mean(found.argmax(axis=1) != labels) for found in (after, noisy))
    assert broken > max(0.25, 2 * by_noise)


def test_files_that_cannot_be_attacked_say_why(folder, tmp_path):
    _, path = folder["plain"]
    with pytest.raises(UsageError, match="has no images of 8-bit integers; make one by"):
        IntegerNetwork(path / "model.tflite")
    with pytest.raises(UsageError, match=r"absent\.tflite cannot be read"):
        IntegerNetwork(tmp_path / "absent.tflite")
    (tmp_path / "text.tflite").write_text("no network")
    with pytest.raises(UsageError, match=r"text\.tflite cannot be read"):
        IntegerNetwork(tmp_path / "text.tflite")
    litert.write(
        network(lambda x: layers.Flatten()(keras.ops.sigmoid(x))), tmp_path, ("int8",), IMAGES
    )
    with pytest.raises(UsageError, match="has the operator LOGISTIC; gradients are known of CONV"):
        IntegerNetwork(tmp_path / "model_int8.tflite")
    run = Subject("a run", Source("images", (12, 12, 2), 5), "", lambda images: images)
    with pytest.raises(UsageError, match="knows 4 classes; the run's network takes"):
        attacked_model.of_litert(str(path / "model_int8.tflite"), run)
