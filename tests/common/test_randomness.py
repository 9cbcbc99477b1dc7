import functools

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from anpvs_tf.attacks import threat_model
from anpvs_tf.common import randomness
from anpvs_tf.networks.shared_dropout import PairedDropout

SEED = tf.constant([3, 4])
DRAWS = {
    "bits": lambda seed: randomness.bits([7, 5], seed),
    "uniform": lambda seed: randomness.uniform([7, 5], seed, -1.0, 1.0),
    "normal": lambda seed: randomness.normal([7, 5], seed),
    "integers": lambda seed: randomness.integers([7, 5], seed, 0, 9),
    "fold": lambda seed: randomness.fold(seed, "name"),
    "l2 ball": lambda seed: threat_model.random_in_ball(tf.constant([7, 5]), seed, 2.0, "l2"),
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_seed_draws_the_same_with_and_without_xla(name):
    # The seed is an argument: what hangs on constants alone is computed before XLA.
    plain = DRAWS[name](SEED)
    compiled = tf.function(DRAWS[name], jit_compile=True)(SEED)

    np.testing.assert_allclose(compiled, plain, rtol=1e-5, atol=1e-6)
    assert len(np.unique(plain)) > 1


@pytest.mark.parametrize("shape", [[6], [7, 5], [3, 1, 1]])
def test_draws_are_those_of_tensorflows_kernels(shape):
    for ours, theirs in (
        (randomness.uniform, tf.random.stateless_uniform),
        (randomness.normal, tf.random.stateless_normal),
    ):
        expected = theirs(shape, SEED, alg="philox")
        np.testing.assert_allclose(ours(shape, SEED), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", [[3, 4], [-7, 2**31 - 1], [-(2**31), 0]])
def test_whole_numbers_are_tensorflows_bit_by_bit(seed):
    philox = {"alg": "philox"}
    full = {"minval": None, "maxval": None, "dtype": tf.int32} | philox
    shuffled = tf.random.experimental.stateless_shuffle(tf.range(30), seed, **philox)
    for ours, theirs in (
        (randomness.bits([7, 5], seed), tf.random.stateless_uniform([7, 5], seed, **full)),
        (
            randomness.integers([7, 5], seed, -3, 9),
            tf.random.stateless_uniform([7, 5], seed, -3, 9, tf.int32, **philox),
        ),
        (randomness.fold(seed, 11), tf.random.fold_in(seed, 11, **philox)),
        (randomness.permutation(30, seed), shuffled),
    ):
        np.testing.assert_array_equal(ours, theirs)


# ---- Parts of a draw ----


@pytest.mark.parametrize("row", [[], [1], [3], [2, 4]])
def test_the_parts_of_a_draw_are_those_of_tensorflows_whole_one(row):
    whole, philox = [7, *row], {"alg": "philox"}
    full = {"minval": None, "maxval": None, "dtype": tf.int32} | philox
    digits = functools.partial(randomness.integers, low=0, high=9)
    expected = {
        randomness.bits: tf.random.stateless_uniform(whole, SEED, **full),
        digits: tf.random.stateless_uniform(whole, SEED, 0, 9, tf.int32, **philox),
        randomness.uniform: tf.random.stateless_uniform(whole, SEED, **philox),
        randomness.normal: tf.random.stateless_normal(whole, SEED, **philox),
    }
    for draw, theirs in expected.items():
        rounding = {"rtol": 1e-5, "atol": 1e-6} if draw is randomness.normal else {"rtol": 0}
        for first in range(1, 6):
            for given in (first, tf.constant(first)):
                ours = draw([2, *row], SEED, first=given)
                np.testing.assert_allclose(ours, theirs[first : first + 2], **rounding)


def test_the_parts_of_a_draw_are_the_same_under_xla():
    def part(first):
        return randomness.normal([2, 3], SEED, first)

    for first in (1, 4):
        ours = tf.function(part, jit_compile=True)(tf.constant(first))
        np.testing.assert_allclose(ours, part(first), rtol=1e-5, atol=1e-6)


def test_a_device_makes_the_noise_of_its_own_examples_alone():
    replicas, examples, shape = 64, 2, (6, 6, 3)
    x = tf.ones([2 * examples, *shape])  # Two copies of each.
    layer = PairedDropout(0.5, name="dropout")

    @tf.function
    def dropped(replica):
        with randomness.scope(SEED, 2, replica, replicas):
            ball = threat_model.random_in_ball(tf.shape(x), SEED, 1.0, "l2")
            return layer(x, training=True), ball

    graph = dropped.get_concrete_function(tf.TensorSpec([], tf.int32)).graph
    sizes = [out.shape.num_elements() for op in graph.get_operations() for out in op.outputs]
    assert max(size or 0 for size in sizes) <= tf.size(x) + 4
    whole = [replicas * examples, *shape]
    u = tf.random.stateless_uniform(whole, randomness.fold(SEED, "dropout"), alg="philox")
    with randomness.scope(SEED, 1):
        balls = threat_model.random_in_ball(tf.constant(whole), SEED, 1.0, "l2").numpy()
    for replica in (0, 1, 63):
        mine = slice(examples * replica, examples * (replica + 1))
        noise, ball = (found.numpy() for found in dropped(replica))
        for copy in (slice(examples), slice(examples, None)):
            np.testing.assert_array_equal(noise[copy] > 0, u.numpy()[mine] >= 0.5)
            np.testing.assert_allclose(ball[copy], balls[mine], rtol=1e-5, atol=1e-6)


def test_draws_have_their_distributions():
    uniform, normal = (draw([20_000], SEED) for draw in (randomness.uniform, randomness.normal))

    assert stats.kstest(uniform, "uniform").pvalue > 0.01
    assert stats.kstest(normal, "norm").pvalue > 0.01
