"""The Kumaraswamy posterior of a gate's probability, in log space.

For a gate that is nearly shut (small `a`) or nearly open (small `b`) the
probability or its complement underflows in float32. The gate needs only the
logit of the probability, which stays finite, so the logit is sampled here.
"""

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

RAW_MIN = -10.0
RAW_MAX = 50.0

# Draws are kept this far from 0: the logarithm of a smaller one would be the only
# one beyond what a float32 uniform draw resolves.
UNIFORM_MIN = 2.0**-24


def concentrations(a_raw: tf.Tensor, b_raw: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Maps unconstrained parameters to the positive (a, b) of Kumaraswamy(a, b).

    Args:
        a_raw: any real values, any shape; values below -10 act as -10.
        b_raw: any real values, same shape; values outside [-10, 50] act as the bound.

    Returns:
        `(a, b)`, both positive, in the dtype of the arguments.
    """
    a = tf.math.softplus(tf.maximum(a_raw, RAW_MIN))
    b = tf.math.softplus(tf.clip_by_value(b_raw, RAW_MIN, RAW_MAX))
    return a, b


def log1mexp(x: tf.Tensor) -> tf.Tensor:
    """Computes log(1 - exp(-x)) for x > 0, accurate throughout, with finite gradients.

    `tfp.math.log1mexp` has the same value, but a NaN gradient where 1 - exp(-x)
    underflows to 0: both branches of its `where` are differentiated.
    """
    small = x < 0.6931472
    near = tf.math.log(-tf.math.expm1(-tf.where(small, x, 0.5)))
    far = tf.math.log1p(-tf.exp(-tf.where(small, 1.0, x)))
    return tf.where(small, near, far)


def _log_neg_log1mexp(x: tf.Tensor) -> tf.Tensor:
    """Computes log(-log(1 - exp(-x))) for x > 0, without underflow for large x."""
    large = x > 10.0
    near = tf.math.log(-log1mexp(tf.where(large, 10.0, x)))
    far = -x + 0.5 * tf.exp(-tf.where(large, x, 10.0))
    return tf.where(large, far, near)


def sample_logit(a: tf.Tensor, b: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
    """Draws log(pi / (1 - pi)), reparametrised, with pi ~ Kumaraswamy(a, b).

    Inverse-transform sampling, pi = (1 - (1 - u)^(1/b))^(1/a), with every power
    taken as a logarithm.

    Args:
        a, b: positive concentrations, any shape.
        uniform: draws from U[2^-24, 1), of a shape that broadcasts with `a`.

    Returns:
        The logits; finite, and with finite gradients, for every (a, b) that
        `concentrations` can return.
    """
    log_s = _log_neg_log1mexp(-tf.math.log1p(-uniform) / b) - tf.math.log(a)
    s = tf.exp(log_s)  # -log(pi)
    small = s < 0.01
    near_one = -log_s - 0.5 * s
    safe = tf.where(small, 0.01, s)
    elsewhere = -safe - log1mexp(safe)
    return tf.where(small, near_one, elsewhere)


def mean(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Computes E[pi] = b B(1 + 1/a, b), in (0, 1), of the shape of `a`."""
    # As `tfp.distributions.Kumaraswamy` does, which takes as long again to make as its mean.
    return tf.exp(tf.math.log(b) + tfp.math.lbeta(1.0 + 1.0 / a, b))


def kl_to_beta(a: tf.Tensor, b: tf.Tensor, prior: float) -> tf.Tensor:
    """Computes KL(Kumaraswamy(a, b) || Beta(prior, 1)) (Eq. 8), elementwise, in nats.

    Args:
        a, b: positive concentrations, any shape.
        prior: alpha / K, the prior's first concentration, positive.
    """
    # -psi(b) - 1/b is written as -psi(1 + b): the two large terms cancel for small b.
    harmonic = np.euler_gamma + tf.math.digamma(1.0 + b)
    return (prior / a - 1.0) * harmonic + tf.math.log(a * b / prior) + 1.0 / b - 1.0
