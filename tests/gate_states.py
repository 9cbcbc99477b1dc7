"""Gates of every kind in chosen states."""

import numpy as np

from anpvs_tf.networks.beta_bernoulli import BetaBernoulliGate
from anpvs_tf.networks.gating import GATE_KINDS

KINDS = tuple(GATE_KINDS)


def set_random(gate, is_open, rng):
    """Prunes all but `is_open` (bool [features]): their mean is under the threshold, not 0."""
    size = len(is_open)
    if isinstance(gate, BetaBernoulliGate):
        gate.a_raw.assign(np.where(is_open, rng.normal(1, 1, size), -9.0))
        gate.b_raw.assign(np.where(is_open, rng.normal(0.5, 0.3, size), 5.0))
    else:
        # Of either sign; a signal-to-noise ratio of at least 10, or at most 0.9.
        mu = rng.uniform(0.5, 1.5, size) * rng.choice([-1, 1], size)
        gate.raw_mu.assign(mu)
        low = np.log(mu**2 / 0.9)
        gate.raw_log_variance.assign(np.where(is_open, low - 2.5, low + rng.uniform(0, 3, size)))
    np.testing.assert_array_equal(gate.importance() > gate.prune_threshold, is_open)


def set_certain(gate, is_open):
    """Masks that in training too are 1 where `is_open`, else 0, whatever is drawn."""
    if isinstance(gate, BetaBernoulliGate):
        gate.a_raw.assign(np.where(is_open, 50.0, -10.0))
        gate.b_raw.assign(np.where(is_open, -10.0, 0.5413))
    else:
        gate.raw_mu.assign(np.where(is_open, 1.0, 0.0))
        gate.raw_log_variance.assign(np.full(len(is_open), -40.0))
