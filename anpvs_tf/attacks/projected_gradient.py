"""Projected gradient descent (Madaan et al. 2020, Eq. 4; Madry et al. 2018)."""

import tensorflow as tf

from anpvs_tf.attacks import losses, threat_model
from anpvs_tf.attacks.settings import AttackSettings
from anpvs_tf.common import randomness


def pgd(
    logits_fn: losses.LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    seed: randomness.Seed,
    *,
    epsilon: float,
    step_size: float,
    steps: int,
    norm: str = "linf",
    random_start: bool = True,
    start: tf.Tensor | None = None,
    loss: str = "ce",
    targets: tf.Tensor | None = None,
    gamma: float = AttackSettings.gamma,
) -> tf.Tensor:
    """Maximises a loss inside a ball around each image; returns the last iterate.

    Works on any function images -> logits.

    Args:
        logits_fn: maps images [batch, ...] to logits [batch, classes] (or to another
            output that `losses` accepts).
        images: float32 in [0, 1].
        labels: int [batch], the true classes.
        seed: int32 [2], or `randomness.ExampleSeeds`; the random start is a function of it.
        epsilon: radius of the ball, in pixel units, positive.
        step_size: length of a step in the same norm, positive.
        steps: number of gradient steps.
        norm: "linf" or "l2".
        random_start: start at a uniform draw from the ball instead of its centre.
        start: images to start from instead, moved into the ball.
        loss: the loss to maximise, a name in `losses.LOSSES`. The gradients of "kl" and
            of the vulnerability in "latent" vanish at the clean image, so start elsewhere.
        targets: int [batch], for "dlr_targeted".
        gamma: weight of the vulnerability, for "latent".

    Returns:
        Adversarial images, float32, inside the ball and [0, 1].

    Raises:
        ValueError: for another norm, loss, or epsilon.
    """
    threat_model.check_threat_model(epsilon, norm)
    maximised = losses.attack_loss(loss, logits_fn, images, labels, targets, gamma)

    def step(perturbed):
        gradients = losses.evaluate(logits_fn, perturbed, maximised).gradients
        moved = perturbed + step_size * threat_model.steepest(gradients, norm)
        return threat_model.restrict(images, moved, epsilon, norm)

    if start is None:
        start = images
        if random_start:
            start += threat_model.random_in_ball(tf.shape(images), seed, epsilon, norm)
    start = threat_model.restrict(images, start, epsilon, norm)
    _, adversarial = tf.while_loop(
        lambda i, _: i < steps,
        lambda i, x: (i + 1, step(x)),
        (0, start),
        maximum_iterations=steps,
    )
    return tf.stop_gradient(adversarial)
