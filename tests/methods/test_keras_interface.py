"""RobustClassifier as Keras users take it: evaluate, validation, callbacks, their own data."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from anpvs_tf.attacks import pgd
from anpvs_tf.attacks.settings import usual_step_size
from anpvs_tf.common import randomness
from anpvs_tf.common.errors import UsageError
from anpvs_tf.methods.hyperparameters import Objective
from anpvs_tf.methods.optimizer import GroupedAdam
from anpvs_tf.methods.registry import METHODS
from anpvs_tf.methods.robust_classifier import RobustClassifier
from anpvs_tf.networks.gating import add_gates

RNG = np.random.default_rng(0)
IMAGES = RNG.random((10, 6, 6, 1)).astype(np.float32)
LABELS = np.arange(10) % 3


def classifier_of(method="anpvs", average=0.0, **conv):
    keras.utils.set_random_seed(1)
    images = keras.Input((6, 6, 1))
    x = keras.layers.Conv2D(4, 3, activation="relu", name="conv", **conv)(images)
    x = keras.layers.Dense(3, name="dense")(keras.layers.Flatten()(x))
    row = METHODS[method]
    network = add_gates(keras.Model(images, x), row.gate)
    objective = Objective(0.1, 0.05, 2, train_examples=10, lambda_vs=0.5)
    made = RobustClassifier(network, row, objective, seed=3)
    made.compile(optimizer=GroupedAdam(1e-2, average=average), jit_compile=False)
    return made


@pytest.mark.parametrize("method", ["anpvs", "standard"])
def test_evaluate_gives_the_accuracies_of_the_network_as_it_infers(method):
    classifier = classifier_of(method)
    # Batches of 4, 4 and 2: the last counts half.
    found = classifier.evaluate(IMAGES, LABELS, batch_size=4, return_dict=True, verbose=0)

    def logits(images):
        return classifier.network(images, training=False)["logits"]

    attacked = []
    for at in (0, 4, 8):
        seed = randomness.seed_of(3, "validation", 0)
        attack = {"epsilon": 0.1, "step_size": usual_step_size(0.1, 10), "steps": 10}
        attacked.append(
            pgd(
                logits,
                tf.constant(IMAGES[at : at + 4]),
                tf.constant(LABELS[at : at + 4]),
                seed,
                **attack,
            )
        )
    clean, adversarial = logits(IMAGES), logits(tf.concat(attacked, axis=0))
    hits = [np.mean(np.argmax(each, axis=1) == LABELS) for each in (clean, adversarial)]
    assert found["clean_accuracy"] == pytest.approx(hits[0], abs=1e-6)
    assert found["robust_accuracy"] == pytest.approx(hits[1], abs=1e-6)
    probabilities = np.exp(clean) / np.exp(clean).sum(axis=1, keepdims=True)
    nats = -np.log(probabilities[np.arange(10), LABELS]).mean()
    assert found["ce_clean"] == pytest.approx(nats, rel=1e-5)
    assert found["loss"] > 0


def test_callbacks_see_validation_and_save(tmp_path):
    classifier = classifier_of(average=0.5)
    whole, weights = tmp_path / "whole.keras", tmp_path / "only.weights.h5"
    callbacks = [
        keras.callbacks.EarlyStopping("val_robust_accuracy", mode="max", patience=1, baseline=2.0),
        keras.callbacks.ModelCheckpoint(whole),
        keras.callbacks.ModelCheckpoint(weights, save_weights_only=True),
    ]
    data = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(5)
    history = classifier.fit(
        data, epochs=5, validation_data=(IMAGES, LABELS), callbacks=callbacks, verbose=0
    ).history
    assert len(history["val_loss"]) < 5  # No accuracy is above the baseline.
    assert all(value > 0 for value in history["val_loss"] + history["val_ce_adversarial"])
    expected = classifier.evaluate(IMAGES, LABELS, return_dict=True, verbose=0)
    loaded = keras.models.load_model(whole)
    assert loaded.objective == classifier.objective
    fresh = classifier_of()
    fresh.load_weights(weights)
    for other in (loaded, fresh):
        found = other.evaluate(IMAGES, LABELS, return_dict=True, verbose=0)
        assert found == pytest.approx(expected, rel=1e-5)
    # What was saved goes on training as the other would: moments and averages are in it.
    for one in (classifier, loaded):
        one.fit(IMAGES, LABELS, batch_size=10, verbose=0)
    for one, other in zip(classifier.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_a_users_regularizers_are_minimised():
    plain = classifier_of()
    regularized = classifier_of(kernel_regularizer=keras.regularizers.L2(10.0))
    kernel = regularized.network.get_layer("conv").kernel
    expected = 10.0 * np.sum(kernel.numpy() ** 2)
    terms = regularized.update((IMAGES, LABELS))
    assert float(terms["regularization"]) == pytest.approx(expected, rel=1e-5)
    other = plain.update((IMAGES, LABELS))
    assert float(terms["loss"] - other["loss"]) == pytest.approx(expected, rel=1e-4)
    # Adam's first step goes by the sign of the gradient, which is that of a kernel so penalised.
    moved = kernel.numpy() - plain.network.get_layer("conv").kernel.numpy()
    assert np.any(moved != 0)
    update = tf.function(regularized.update, autograph=False)
    for _ in range(30):
        update((IMAGES, LABELS))
    assert np.sum(kernel.numpy() ** 2) < expected / 20


@pytest.mark.parametrize("awp", [0.0, 0.01])
def test_losses_that_are_added_in_calls_are_refused(awp):
    classifier = classifier_of(activity_regularizer="l1")
    classifier.objective = dataclasses.replace(classifier.objective, awp=awp)
    with pytest.raises(UsageError, match="layer 'conv' adds a loss when it is called"):
        classifier.update((IMAGES, LABELS))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES * 255, "images must be floats from 0 to 1; got float32 from .* divide them by 255"),
        (IMAGES * 2 - 1, "map black to 0, white to 1"),
        ((IMAGES * 255).astype(np.uint8), "got uint8 .*divide them by 255"),
    ],
)
def test_images_of_another_range_are_refused_before_training(images, message):
    classifier = classifier_of()
    data = tf.data.Dataset.from_tensor_slices((images, LABELS)).batch(5)
    for call in (
        lambda: classifier.fit(images, LABELS, verbose=0),
        lambda: classifier.fit(data, verbose=0),
        lambda: classifier.fit(IMAGES, LABELS, validation_data=(images, LABELS), verbose=0),
        lambda: classifier.fit(IMAGES, LABELS, 5, 1, 0, None, 0.0, (images, LABELS)),
        lambda: classifier.evaluate(images, LABELS, verbose=0),
    ):
        with pytest.raises(UsageError, match=message):
            call()
    assert int(classifier.optimizer.iterations) == 0


def test_labels_and_images_of_other_types_train_alike():
    kernels = []
    for images, labels in (
        (IMAGES, LABELS),
        (IMAGES, LABELS.astype(np.uint8)),
        (IMAGES, LABELS[:, np.newaxis].astype(np.int16)),
        (IMAGES.astype(np.float64), LABELS),
    ):
        classifier = classifier_of()
        classifier.update((images, labels))
        kernels.append(classifier.network.get_layer("conv").kernel.numpy())
    for kernel in kernels[1:]:
        np.testing.assert_array_equal(kernel, kernels[0])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((IMAGES, np.eye(3)[LABELS]), r"labels must be the numbers .* got \(10, 3\): .*argmax"),
        ((IMAGES, LABELS.astype(np.float32)), "labels must be integers from 0 to 2.*got float32"),
        ((IMAGES, LABELS, np.ones(10)), "sample_weight and class_weight are not supported"),
        ((IMAGES,), "got images alone"),
        (((IMAGES * 255).astype(np.uint8), LABELS), "got uint8: divide them by 255"),
    ],
)
def test_batches_of_another_kind_are_refused(data, message):
    with pytest.raises(UsageError, match=message):
        classifier_of().update(data)


def test_a_users_own_function_around_an_update_is_quiet(capfd, caplog):
    update = tf.function(classifier_of().update)
    update((IMAGES, LABELS))
    said = caplog.text + "".join(capfd.readouterr())
    assert "AutoGraph" not in said and "WARNING" not in said
