"""What all gates have in common, and the beta-Bernoulli gate: theory of its mask, inference."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from gate_states import KINDS, set_random
from scipy import integrate, special

from anpvs_tf.common import randomness
from anpvs_tf.networks.beta_bernoulli import BetaBernoulliGate
from anpvs_tf.networks.gate import gates_of
from anpvs_tf.networks.gating import GATE_KINDS
from anpvs_tf.networks.shared_dropout import PairedDropout


def built(features=8, kind="beta_bernoulli", **kwargs):
    gate = GATE_KINDS[kind](name="gate", **kwargs)
    gate.build((None, features))
    return gate


def test_mean_of_the_mask_agrees_with_theory():
    features, a, tau = 40_000, 0.3132617, 0.1
    gate = built(features)
    with randomness.scope(randomness.seed_of(1)):
        masks = gate.sample_mask(2).numpy()

    # E[m] = E_u E_pi sigmoid((logit pi + logit u) / tau), with pi = v^(1/a) for b = 1.
    def integrand(u, v):
        log_pi = np.log(v) / a
        logit_pi = log_pi - np.log(-np.expm1(log_pi))
        return special.expit((logit_pi + special.logit(u)) / tau)

    expected, _ = integrate.dblquad(integrand, 0, 1, 0, 1, epsabs=1e-4)
    # The features' pi are independent; a variance of at most 1/4 each, five sigma.
    assert masks.mean() == pytest.approx(expected, abs=5 * 0.5 / np.sqrt(features))
    assert expected == pytest.approx(0.2385, abs=0.01)  # nearly the Bernoulli's own mean


def test_pi_is_shared_by_the_examples_and_u_is_not():
    gate = built(2000)
    with randomness.scope(randomness.seed_of(3)):
        masks = gate.sample_mask(64).numpy()
    # With pi near 0 or 1 for most features, examples agree far more often than independent
    # draws of pi would let them: P(agree) = E[pi^2 + (1-pi)^2] against E[pi]^2 + (1-E[pi])^2.
    open_ = masks > 0.5
    agreement = (open_[0] == open_[1]).mean()
    a = 0.3132617
    second_moment = a / (a + 2)
    mean = a / (a + 1)
    assert agreement == pytest.approx(1 - 2 * mean + 2 * second_moment, abs=5 * 0.5 / 2000**0.5)
    assert np.any(open_[0] != open_[1])


def test_inference_multiplies_by_the_mean_and_zeroes_what_is_pruned():
    gate = built(3)
    gate.a_raw.assign([-1.0, 2.0, -9.0])
    gate.b_raw.assign([0.5413, 0.5413, 3.0])
    outputs = gate(tf.ones([2, 3]), training=False).numpy()
    np.testing.assert_allclose(outputs[0, :2], [0.2385, 0.6802], atol=5e-5)
    assert 0 < gate.mean()[2] < 1e-3
    np.testing.assert_array_equal(outputs[:, 2], 0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_channels_of_an_image_share_their_mask(kind):
    gate = GATE_KINDS[kind]()
    outputs = gate(tf.ones([4, 5, 6, 7]), training=True).numpy()
    np.testing.assert_array_equal(outputs, np.broadcast_to(outputs[:, :1, :1], outputs.shape))
    assert len(np.unique(outputs[:, 0, 0])) > 4


def test_kl_is_added_to_the_losses_with_its_weight():
    gate = built(10, kl_weight=0.5)
    gate(tf.ones([1, 10]), training=True)
    assert float(gate.losses[0]) == pytest.approx(0.5 * 10 * 7.050, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_a_function_of_the_scope_and_the_layers_name(kind):
    gate, other = built(50, kind), GATE_KINDS[kind](name="other")
    other.build((None, 50))

    def draw(layer, seed, copies=1, batch=6, place=(0, 1)):
        with randomness.scope(randomness.seed_of(seed), copies, *place):
            return layer.sample_mask(batch).numpy()

    first = draw(gate, 7)
    np.testing.assert_array_equal(first, draw(gate, 7))
    assert not np.array_equal(first, draw(gate, 8))
    assert not np.array_equal(first, draw(other, 7))
    pairs = draw(gate, 7, copies=2)
    np.testing.assert_array_equal(pairs[:3], pairs[3:])
    assert not np.array_equal(first[0], first[1])
    # The replicas' parts of the global batch; to rounding, which goes by the place in memory.
    np.testing.assert_allclose(draw(gate, 7, 1, 3, (1, 2)), first[3:], rtol=1e-5)
    # Outside a scope: Keras's convention, a seed that advances.
    assert not np.array_equal(gate.sample_mask(6), gate.sample_mask(6))


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_extremes_give_finite_outputs_and_gradients_in_every_precision(dtype):
    a_raw = np.repeat([-100.0, -10.0, 0.0, 20.0, 100.0], 4)
    b_raw = np.tile([-100.0, -10.0, 0.5, 100.0], 5)
    gate = BetaBernoulliGate(dtype=dtype, name="gate")
    gate.build((None, 20))
    gate.a_raw.assign(a_raw)
    gate.b_raw.assign(b_raw)
    assert gate.a_raw.dtype == "float32"
    for seed in range(5):
        with randomness.scope(randomness.seed_of(seed)), tf.GradientTape() as tape:
            outputs = gate(tf.ones([32, 20]), training=True)
            loss = tf.reduce_sum(tf.cast(outputs, tf.float32)) + gate.kl()
        assert outputs.dtype == gate.compute_dtype
        for gradient in tape.gradient(loss, gate.trainable_variables):
            tf.debugging.assert_all_finite(gradient, "gradient")


@pytest.mark.parametrize(
    ("kind", "own"),
    [("beta_bernoulli", {"prior": 1e-3}), ("information_bottleneck", {"initial_mu": 2.0})],
)
def test_saves_and_loads(kind, own, tmp_path):
    images = keras.Input((4,))
    gate = GATE_KINDS[kind](name="g", prune_threshold=0.5, **own)
    gate.trainable = False
    model = keras.Model(images, gate(PairedDropout(0.2)(images)))
    gate.close(np.array([False, True, False, True]))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(tf.ones([1, 4])), model(tf.ones([1, 4])))
    (held,) = gates_of(loaded)
    assert held.prune_threshold == 0.5 and not held.trainable
    assert {name: getattr(held, name) for name in own} == own


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_gate_acts_with_its_mean_and_adds_no_kl(kind):
    gate = built(60, kind)
    gate.close(np.arange(60) == 2)
    images = tf.ones([4, 60])
    assert gate(images, training=True).numpy().std(axis=0).max() > 0
    gate.trainable = False
    outputs = gate(images, training=True).numpy()
    np.testing.assert_array_equal(outputs, np.tile(gate.mean_mask(), [4, 1]))
    np.testing.assert_array_equal(outputs == 0, np.tile(np.arange(60) == 2, [4, 1]))
    assert gate.losses == [] and gate.trainable_variables == []
    gate.trainable = True
    gate(images, training=True)
    assert float(gate.losses[0]) == float(gate.kl())


@pytest.mark.parametrize("kind", KINDS)
def test_closed_features_stay_closed(kind):
    gate = built(400, kind)
    shut = np.arange(400) % 2 == 1
    before = gate.mean().numpy()
    gate.close(shut)
    np.testing.assert_array_equal(np.asarray(gate.mean_mask()) == 0, shut)
    np.testing.assert_array_equal(gate.mean().numpy()[~shut], before[~shut])
    optimizer = keras.optimizers.Adam(0.05)
    for step in range(60):
        with randomness.scope(randomness.seed_of(step)), tf.GradientTape() as tape:
            outputs = gate(tf.ones([4, 400]), training=True)
            # Every feature gains by being open.
            loss = gate.kl() - 10 * tf.reduce_sum(outputs)
        # A relaxed Bernoulli of probability 1e-4 may open once in thousands of draws.
        assert np.abs(outputs.numpy()[:, shut]).max() < 1e-6 or kind == "beta_bernoulli"
        assert np.mean(np.abs(outputs.numpy()[:, shut]) < 1e-6) > 0.99
        gradients = tape.gradient(loss, gate.trainable_variables)
        optimizer.apply(gradients, gate.trainable_variables)
    assert not np.any(gate.mean_mask().numpy()[shut])
    assert gate.mean().numpy()[~shut].mean() > 1.2 * before[~shut].mean()


@pytest.mark.parametrize(
    ("argument", "value"), [("temperature", 0.0), ("prior", -1.0), ("prune_threshold", 1.0)]
)
def test_bad_arguments_are_named(argument, value):
    with pytest.raises(ValueError, match=f"{argument}.*{value}"):
        BetaBernoulliGate(**{argument: value})


@pytest.mark.parametrize("kind", KINDS)
def test_the_most_important_features_are_kept_and_feel_no_kl(kind):
    gate = built(5, kind, min_active=2)
    set_random(gate, np.array([True, False, False, False, False]), np.random.default_rng(0))
    for parameter in gate.trainable_variables:  # No two of equal importance.
        parameter.assign_add(np.array([0.0, 0.3, -0.2, 0.1, -0.1]))
    values = gate.importance().numpy()
    second = int(np.argsort(values)[-2])
    np.testing.assert_array_equal(gate.is_open(), [i in (0, second) for i in range(5)])
    assert float(gate.mean_mask()[second]) == float(gate.mean()[second]) > 0
    kl = gate.feature_kl().numpy()
    assert float(gate.kl()) == pytest.approx(kl.sum() - kl[0] - kl[second], rel=1e-5)
    with tf.GradientTape() as tape:
        total = gate.kl()
    for gradient in tape.gradient(total, gate.trainable_variables):
        assert not np.any(gradient.numpy()[[0, second]])
        assert np.all(gradient.numpy()[[i for i in range(5) if i not in (0, second)]])
    again = type(gate).from_config(gate.get_config())
    assert again.min_active == 2
    # Of equal features the first stay; of a small gate all.
    fresh = built(5, kind, min_active=3)
    np.testing.assert_array_equal(fresh.kept(), [True] * 3 + [False] * 2)
    assert np.all(built(2, kind, min_active=3).kept())
