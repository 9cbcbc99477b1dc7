"""The losses that an attack maximises, by name: one value an example.

Losses see the outputs of a function images -> logits [batch, classes], or
logits [draws, batch, classes] of a stochastic model (see
`stochastic.expectation`), or a dict of "logits" and latent features; they are
means over draws.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

import tensorflow as tf

from anpvs_tf.attacks.settings import AttackSettings

Observer = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], None]
LogitsFn = Callable[[tf.Tensor], tf.Tensor | dict[str, tf.Tensor]]

# Keeps a quotient finite where the logits that scale it are equal.
_TINY = 1e-12


class Outputs(NamedTuple):
    """logits: float32 [(draws,) batch, classes]; latent: name -> [(draws,) batch, ...]."""

    logits: tf.Tensor
    latent: dict[str, tf.Tensor]


class Evaluation(NamedTuple):
    """losses [batch], logits [batch, classes], gradients of each loss in its own image."""

    losses: tf.Tensor
    logits: tf.Tensor
    gradients: tf.Tensor


@dataclasses.dataclass(frozen=True)
class AttackLoss:
    """Holds a loss and the facts that it needs about each example; made by `attack_loss`.

    name: a key of `LOSSES`; labels: int [batch]; targets: int [batch] or None;
    clean: float32 outputs of the unperturbed images that the loss compares with, name ->
    [batch, ...];
    gamma: weight of the vulnerability in "latent";
    rows: int [batch], of the examples in the batch that the attack began with, while it is
    `observed`.
    """

    name: str
    labels: tf.Tensor
    targets: tf.Tensor | None
    clean: dict[str, tf.Tensor]
    gamma: float
    rows: tf.Tensor | None = None

    def take(self, indices: tf.Tensor) -> "AttackLoss":
        """Returns the same loss for the examples at `indices`, int [examples]."""
        return dataclasses.replace(
            self,
            labels=tf.gather(self.labels, indices),
            targets=None if self.targets is None else tf.gather(self.targets, indices),
            clean={name: tf.gather(value, indices) for name, value in self.clean.items()},
            rows=None if self.rows is None else tf.gather(self.rows, indices),
        )


def _of_each(values: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Repeats int [batch] for each draw: the shape of the logits without the classes."""
    return values if logits.shape.rank == 2 else tf.broadcast_to(values, tf.shape(logits)[:-1])


def _at(logits: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
    classes = _of_each(classes, logits)
    return tf.gather(logits, classes, axis=-1, batch_dims=classes.shape.rank)


def _margin(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    own = tf.one_hot(_of_each(labels, logits), logits.shape[-1], on_value=True, off_value=False)
    others = tf.where(own, tf.constant(float("-inf"), logits.dtype), logits)
    return tf.reduce_max(others, axis=-1) - _at(logits, labels)


def cross_entropy(outputs: Outputs, loss: AttackLoss) -> tf.Tensor:
    """Computes the cross-entropy in nats."""
    labels = _of_each(loss.labels, outputs.logits)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, outputs.logits)


def margin(outputs: Outputs, loss: AttackLoss) -> tf.Tensor:
    """Computes the best wrong logit minus the right one: positive if the model is fooled.

    The loss of Carlini & Wagner 2017.
    """
    return _margin(outputs.logits, loss.labels)


def dlr(outputs: Outputs, loss: AttackLoss) -> tf.Tensor:
    """Computes the difference of logits ratio (Croce & Hein 2020, Eq. 6).

    The margin divided by z_1 - z_3, the largest minus the third largest logit: it
    does not change when the logits are shifted or scaled. With two classes there
    is no third logit, and it is the margin.
    """
    logits = outputs.logits
    margins = _margin(logits, loss.labels)
    if logits.shape[-1] < 3:
        return margins
    top = tf.math.top_k(logits, 3).values
    return margins / (top[..., 0] - top[..., 2] + _TINY)


def difference(outputs: Outputs, loss: AttackLoss) -> tf.Tensor:
    """Computes the target's logit minus the right one: positive once the target is likelier."""
    return _at(outputs.logits, loss.targets) - _at(outputs.logits, loss.labels)


def dlr_targeted(outputs: Outputs, loss: AttackLoss) -> tf.Tensor:
    """Computes the targeted difference of logits ratio (Croce & Hein 2020, Eq. 7).

    (z_target - z_label) / (z_1 - (z_3 + z_4) / 2). With fewer than four classes
    the difference is not divided.
    """
    logits, behind = outputs.logits, difference(outputs, loss)
    if logits.shape[-1] < 4:
        return behind
    top = tf.math.top_k(logits, 4).values
    return behind / (top[..., 0] - (top[..., 2] + top[..., 3]) / 2 + _TINY)


def latent(outputs: Outputs, loss: AttackLoss) -> tf.Tensor:
    """Computes cross-entropy + gamma * the example's vulnerability (Eq. 1, 2, mean reduction)."""
    distances = []
    for name, clean in loss.clean.items():
        moved = tf.abs(tf.cast(outputs.latent[name], tf.float32) - clean)
        leading = outputs.logits.shape.rank - 1
        distances.append(tf.reduce_mean(moved, axis=list(range(leading, moved.shape.rank))))
    vulnerability = tf.add_n(distances) / len(distances)
    return cross_entropy(outputs, loss) + loss.gamma * vulnerability


def kl(outputs: Outputs, loss: AttackLoss) -> tf.Tensor:
    """Computes KL(f(x) || f(x~)) in nats: how far the prediction moved (Zhang et al. 2019)."""
    clean = tf.nn.log_softmax(loss.clean["logits"])
    moved = tf.nn.log_softmax(outputs.logits)
    return tf.reduce_sum(tf.exp(clean) * (clean - moved), axis=-1)


LOSSES: dict[str, Callable[[Outputs, AttackLoss], tf.Tensor]] = {
    "ce": cross_entropy,
    "margin": margin,
    "dlr": dlr,
    "difference": difference,
    "dlr_targeted": dlr_targeted,
    "latent": latent,
    "kl": kl,
}


def outputs_of(logits_fn: LogitsFn, images: tf.Tensor) -> Outputs:
    """Calls the function; returns logits in float32, and latent features if there are any."""
    result = logits_fn(images)
    if not isinstance(result, dict):
        return Outputs(tf.cast(result, tf.float32), {})
    others = {name: value for name, value in result.items() if name != "logits"}
    return Outputs(tf.cast(result["logits"], tf.float32), others)


def _over_draws(logits: tf.Tensor) -> tf.Tensor:
    """Merges the draws of [(draws,) batch, classes], if any, into the log of their mean softmax."""
    if logits.shape.rank == 2:
        return logits
    draws = tf.cast(tf.shape(logits)[0], tf.float32)
    return tf.reduce_logsumexp(tf.nn.log_softmax(logits), axis=0) - tf.math.log(draws)


def logits_of(logits_fn: LogitsFn, images: tf.Tensor) -> tf.Tensor:
    """Computes the logits that decide on the class, float32 [batch, classes]."""
    return _over_draws(outputs_of(logits_fn, images).logits)


def fooled(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Says which examples are misclassified, bool [batch]; logits as of `logits_of`."""
    return tf.not_equal(tf.argmax(logits, axis=1), tf.cast(labels, tf.int64))


def margins_of(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Computes the best wrong logit minus the right one, [batch]; logits as of `logits_of`."""
    return _margin(logits, labels)


def attack_loss(
    loss: str,
    logits_fn: LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    targets: tf.Tensor | None = None,
    gamma: float = AttackSettings.gamma,
) -> AttackLoss:
    """Makes the loss that an attack maximises for these examples.

    Args:
        loss: a name in `LOSSES`.
        logits_fn: images -> logits, or a dict of "logits" and latent features,
            which "latent" needs. It is called only for "latent" and "kl", once.
        images: the unperturbed images, [batch, ...].
        labels: int [batch].
        targets: int [batch], the wrong classes to aim at; for "difference" and "dlr_targeted".
        gamma: weight of the vulnerability; for "latent".

    Raises:
        ValueError: for an unknown loss, or if it needs targets or latent features that are missing.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {tuple(LOSSES)}; received {loss!r}")
    if loss in ("difference", "dlr_targeted") and targets is None:
        raise ValueError(f"the loss {loss!r} needs targets")
    clean = {}
    if loss == "kl":
        clean["logits"] = tf.stop_gradient(logits_of(logits_fn, images))
    if loss == "latent":
        outputs = outputs_of(logits_fn, images)
        if not outputs.latent:
            raise ValueError("the loss 'latent' needs a function that returns latent features")
        for name, value in outputs.latent.items():
            features = tf.cast(value, tf.float32)
            if outputs.logits.shape.rank == 3:
                features = tf.reduce_mean(features, axis=0)
            clean[name] = tf.stop_gradient(features)
    rows = tf.range(tf.shape(images)[0]) if _OBSERVERS else None
    return AttackLoss(loss, labels, targets, clean, gamma, rows)


def evaluate(logits_fn: LogitsFn, images: tf.Tensor, loss: AttackLoss) -> Evaluation:
    """Computes loss, logits and gradient at `images`, in one forward and one backward pass."""

    def run(images):
        with tf.GradientTape() as tape:
            tape.watch(images)
            outputs = outputs_of(logits_fn, images)
            losses = LOSSES[loss.name](outputs, loss)
            if losses.shape.rank == 2:
                losses = tf.reduce_mean(losses, axis=0)
            # A sum, not a mean: an example's gradient must not depend on the batch size.
            total = tf.reduce_sum(losses)
        gradients = tape.gradient(total, images, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return losses, _over_draws(outputs.logits), gradients

    if not tf.executing_eagerly():
        # A function that is not inlined: inside the cycle of a loop, TensorFlow's oneDNN pass
        # often misses the gradient of a max pooling, which then takes ten times as long.
        run = tf.function(run, autograph=False, experimental_attributes={"_noinline": True})
    found = Evaluation(*run(images))
    if _OBSERVERS and loss.rows is not None:
        seen = (loss.rows, found.losses, fooled(found.logits, loss.labels))
        tf.py_function(_OBSERVERS[-1], seen, [])
    return found


# Functions of `observed`; most of the time there are none.
_OBSERVERS: list[Observer] = []


@contextlib.contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Lets a function see each evaluation of the attacks that are traced in the block.

    Nothing is added to attacks that were traced before.

    Args:
        observer: takes rows int [examples], those of the batch that are still attacked; their
            losses [examples], and whether they are fooled, bool [examples]. Called in order.
    """
    _OBSERVERS.append(observer)
    try:
        yield
    finally:
        _OBSERVERS.pop()
