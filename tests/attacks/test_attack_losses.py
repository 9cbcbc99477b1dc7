"""The losses of attacks against hand calculations."""

import numpy as np
import pytest
import tensorflow as tf

from anpvs_tf.attacks.losses import attack_loss, evaluate, fooled, logits_of
from anpvs_tf.methods import losses

LOGITS = tf.constant([[3.0, 1.0, 0.0, -2.0], [3.0, 1.0, 0.0, -2.0]])
LABELS = tf.constant([0, 1])
TARGETS = tf.constant([2, 3])


def identity(logits):
    return logits


def losses_of(name, logits, labels=LABELS, targets=TARGETS):
    made = attack_loss(name, identity, logits, labels, targets)
    return evaluate(identity, tf.convert_to_tensor(logits), made).losses.numpy()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("margin", [-2.0, 2.0]),
        ("dlr", [-2 / 3, 2 / 3]),
        ("dlr_targeted", [-3 / 4, -3 / 4]),
        ("ce", np.log(np.exp([3.0, 1.0, 0.0, -2.0]).sum()) - np.array([3.0, 1.0])),
    ],
)
def test_by_hand(name, expected):
    np.testing.assert_allclose(losses_of(name, LOGITS), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["dlr", "dlr_targeted"])
def test_dlr_does_not_change_with_shift_and_scale(name):
    np.testing.assert_allclose(
        losses_of(name, 1e4 * LOGITS + 70.0), losses_of(name, LOGITS), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "classes", "expected"),
    [("dlr", 2, -2.0), ("dlr", 3, -2 / 3), ("dlr_targeted", 2, -2.0), ("dlr_targeted", 3, -2.0)],
)
def test_few_classes(name, classes, expected):
    found = losses_of(name, LOGITS[:1, :classes], tf.constant([0]), tf.constant([1]))
    np.testing.assert_allclose(found, [expected], rtol=1e-5)


@pytest.mark.parametrize("name", ["ce", "margin", "dlr", "dlr_targeted"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4, 1e8])
def test_gradients_are_finite(name, scale):
    rows = [[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, -1.0], [4.0, 3.0, 2.0, 1.0]]
    logits = scale * tf.constant(rows)
    made = attack_loss(name, identity, logits, tf.constant([0, 3, 0]), tf.constant([1, 0, 3]))
    evaluation = evaluate(identity, logits, made)
    assert np.isfinite(evaluation.losses).all()
    assert np.isfinite(evaluation.gradients).all()


def test_latent_adds_the_vulnerability_of_the_example():
    def network(x):
        return {"logits": x, "first": x[:, :3], "second": tf.reshape(2 * x, [-1, 2, 2])}

    clean = tf.constant([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 1.0]])
    moved = clean + tf.constant([[0.1, 0.2, 0.3, -0.5], [0.0, 0.0, 0.0, 0.4]])
    made = attack_loss("latent", network, clean, LABELS, gamma=3.0)
    found = evaluate(network, moved, made)
    without = losses_of("ce", moved)
    np.testing.assert_allclose(
        found.losses - without, 3 * np.array([(0.2 + 0.55) / 2, (0.0 + 0.2) / 2]), rtol=1e-5
    )
    pairs = [[network(x[:1])[name] for name in ("first", "second")] for x in (clean, moved)]
    np.testing.assert_allclose(
        found.losses[0] - without[0], 3 * losses.vulnerability(*pairs), rtol=1e-5
    )


def test_an_examples_gradient_does_not_depend_on_the_batch():
    together = evaluate(identity, LOGITS, attack_loss("dlr", identity, LOGITS, LABELS))
    alone = evaluate(identity, LOGITS[:1], attack_loss("dlr", identity, LOGITS[:1], LABELS[:1]))
    np.testing.assert_array_equal(together.gradients[0], alone.gradients[0])


def test_one_forward_pass():
    calls = []

    def counted(x):
        calls.append(1)
        return x

    made = attack_loss("dlr", counted, LOGITS, LABELS)
    evaluate(counted, LOGITS, made)
    assert len(calls) == 1


def test_draws_are_averaged():
    shifts = tf.constant([[0.0, 0.0, 0.0, 0.0], [-5.0, 0.0, 0.0, 0.0]])

    def drawn(x):
        return x[None] + shifts[:, None]

    made = attack_loss("margin", drawn, LOGITS, LABELS)
    found = evaluate(drawn, LOGITS, made)
    np.testing.assert_allclose(found.losses, [(-2 + 3) / 2, (2 - 1) / 2])
    np.testing.assert_allclose(
        tf.exp(found.logits),
        (tf.nn.softmax(LOGITS) + tf.nn.softmax(LOGITS + shifts[1])) / 2,
        rtol=1e-5,
    )
    # A mean of gradients, which a sum over draws would double.
    np.testing.assert_allclose(found.gradients[0], [-1, 1, 0, 0])


def test_decisions_fall_on_the_mean_softmax():
    # The mean logits favour class 1, two of three draws class 0.
    drawn = tf.constant([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 9.0]]])
    logits = logits_of(lambda _: drawn, tf.zeros([1, 1]))
    probability = (2 / (1 + np.exp(-1)) + 1 / (1 + np.exp(9))) / 3
    np.testing.assert_allclose(tf.nn.softmax(logits)[0, 0], probability, rtol=1e-5)
    assert not fooled(logits, tf.constant([int(probability < 0.5)]))[0]


def test_errors():
    with pytest.raises(ValueError, match="hinge"):
        attack_loss("hinge", identity, LOGITS, LABELS)
    with pytest.raises(ValueError, match="targets"):
        attack_loss("dlr_targeted", identity, LOGITS, LABELS)
    with pytest.raises(ValueError, match="latent features"):
        attack_loss("latent", identity, LOGITS, LABELS)
