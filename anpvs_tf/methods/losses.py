"""The terms of the training objective, each a scalar in float32."""

from collections.abc import Iterable

import tensorflow as tf

from anpvs_tf.methods.hyperparameters import REDUCTIONS


def cross_entropy(labels: tf.Tensor, logits: tf.Tensor, smoothing: float = 0.0) -> tf.Tensor:
    """Computes the mean cross-entropy in nats.

    Args:
        labels: int [batch].
        logits: [batch, classes].
        smoothing: share of the target that is spread evenly over all classes, the right one
            among them (Szegedy et al. 2016), in [0, 1).
    """
    logits = tf.cast(logits, tf.float32)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    if smoothing:
        spread = -tf.reduce_mean(tf.nn.log_softmax(logits), axis=-1)
        losses = (1.0 - smoothing) * losses + smoothing * spread
    return tf.reduce_mean(losses)


def accuracy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Computes the share of right predictions, float32.

    labels: int [batch]; logits: [batch, classes].
    """
    hits = tf.equal(tf.argmax(logits, axis=1, output_type=labels.dtype), labels)
    return tf.reduce_mean(tf.cast(hits, tf.float32))


def prediction_shift(clean: tf.Tensor, adversarial: tf.Tensor) -> tf.Tensor:
    """Computes KL(softmax(clean) || softmax(adversarial)) in nats, mean over the batch.

    The second term of TRADES (Zhang et al. 2019). Both: logits [batch, classes].
    """
    clean = tf.nn.log_softmax(tf.cast(clean, tf.float32))
    adversarial = tf.nn.log_softmax(tf.cast(adversarial, tf.float32))
    return tf.reduce_mean(tf.reduce_sum(tf.exp(clean) * (clean - adversarial), axis=-1))


def layer_vulnerability(
    clean: tf.Tensor, adversarial: tf.Tensor, reduction: str = "mean"
) -> tf.Tensor:
    """Measures how far one layer's features move under attack (Eq. 1), mean over the batch.

    Args:
        clean, adversarial: the layer's features, [batch, ...], row for row the
            same examples.
        reduction: over the features of the layer: "mean" (the scale of the
            published values) or "sum" (Eq. 2 to the letter).

    Raises:
        ValueError: for another reduction.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}; received {reduction!r}")
    distance = tf.abs(tf.cast(clean, tf.float32) - tf.cast(adversarial, tf.float32))
    if reduction == "mean":
        return tf.reduce_mean(distance)
    return tf.reduce_mean(tf.reduce_sum(distance, axis=range(1, distance.shape.rank)))


def vulnerability(
    clean: list[tf.Tensor],
    adversarial: list[tf.Tensor],
    reduction: str = "mean",
    shares: list[float] | None = None,
) -> tf.Tensor:
    """Computes the vulnerability of a network: the mean of its latent layers' (Eq. 2).

    Args:
        clean, adversarial, reduction: as in `layer_vulnerability`, for each layer.
        shares: for each layer the share of its features that is there; the others
            are 0 and count in a mean. None: all are there.
    """
    layers = [
        layer_vulnerability(*pair, reduction) for pair in zip(clean, adversarial, strict=True)
    ]
    if shares is not None and reduction == "mean":
        layers = [share * value for share, value in zip(shares, layers, strict=True)]
    return tf.reduce_mean(tf.stack(layers))


def squared_norm(weights: Iterable[tf.Tensor]) -> tf.Tensor:
    """Computes sum ||v||^2 / 2 over the weights, the unit of weight decay."""
    return tf.add_n([tf.nn.l2_loss(tf.cast(w, tf.float32)) for w in weights])
