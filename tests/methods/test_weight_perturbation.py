"""AWP's shift, by hand."""

import keras
import numpy as np
import tensorflow as tf

from anpvs_tf.methods import weight_perturbation


def test_a_kernel_is_shifted_uphill_by_a_share_of_its_norm():
    kernels = [keras.Variable(np.array(w, np.float32)) for w in ([[3.0, 4.0]], [[1.0]], [[1.0]])]
    gradients = [tf.constant(g) for g in ([[0.0, 2.0]], [[0.0]], [[np.inf]])]
    run = tf.distribute.get_strategy().run
    found = run(lambda: weight_perturbation.shifts(kernels, gradients, 0.1))
    np.testing.assert_allclose(found[0], [[0.0, 0.5]], rtol=1e-6)  # A tenth of 5.
    np.testing.assert_array_equal(found[1:], [[[0.0]], [[0.0]]])
