import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from anpvs_tf.attacks import threat_model
from anpvs_tf.common import randomness

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


def test_draws_have_their_distributions():
    uniform, normal = (draw([20_000], SEED) for draw in (randomness.uniform, randomness.normal))

    assert stats.kstest(uniform, "uniform").pvalue > 0.01
    assert stats.kstest(normal, "norm").pvalue > 0.01
