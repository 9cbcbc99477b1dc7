"""Dropout that the copies of an example share."""

import numpy as np
import pytest
import tensorflow as tf

from anpvs_tf.common import randomness
from anpvs_tf.networks.shared_dropout import PairedDropout


def test_dropout_keeps_the_expectation_and_pairs_share_it():
    layer = PairedDropout(0.3, name="dropout")
    with randomness.scope(randomness.seed_of(0), copies=2):
        outputs = layer(tf.ones([200, 100]), training=True).numpy()
    np.testing.assert_array_equal(outputs[:100], outputs[100:])
    # 10,000 Bernoulli(0.7) / 0.7: standard error sqrt(0.3 / 0.7) / 100.
    assert outputs[:100].mean() == pytest.approx(1.0, abs=5 * (0.3 / 0.7) ** 0.5 / 100)
    np.testing.assert_array_equal(layer(tf.ones([2, 3]), training=False), np.ones([2, 3]))
    with pytest.raises(ValueError, match="rate"):
        PairedDropout(1.0)
