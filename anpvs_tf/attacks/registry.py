"""The attacks by name, each a list of stages; AutoAttack (Croce & Hein 2020) is one of them.

A stage is one restart or one target class of one attack. A later stage need only get the
examples that the earlier ones have not broken.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from anpvs_tf.attacks import active_examples, entry, losses, stochastic
from anpvs_tf.attacks.auto_pgd import apgd
from anpvs_tf.attacks.fast_adaptive_boundary import fab
from anpvs_tf.attacks.fast_gradient_sign import fgsm
from anpvs_tf.attacks.image_range import check_pixels
from anpvs_tf.attacks.projected_gradient import pgd
from anpvs_tf.attacks.settings import AttackSettings, resolve
from anpvs_tf.attacks.square_attack import square
from anpvs_tf.attacks.uniform_noise import random_noise
from anpvs_tf.common import randomness


@dataclasses.dataclass(frozen=True)
class Stage:
    """One pass over the examples that are left.

    name: unique in its list, like "apgd-t/target3"; the part before the slash
    is the same for the stages of one attack.
    run: (logits_fn, images, labels, seed) -> adversarial images, as of `pgd`. The
    seed may be the same for every stage: each folds its name into it. Compiled
    once for each `logits_fn`, whatever the batch size; stages of one attack share
    the compilation.
    """

    name: str
    run: Callable[[losses.LogitsFn, tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


def wrong_classes(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Ranks the wrong classes, the most likely first: int32 [batch, classes - 1]."""
    classes = logits.shape[-1]
    own = tf.one_hot(labels, classes, on_value=True, off_value=False)
    others = tf.where(own, tf.constant(float("-inf")), logits)
    return tf.math.top_k(others, classes - 1).indices


def _compiled(attack, settings: AttackSettings, targeted: bool, **own):
    """Compiles an attack to a function (logits_fn, images, labels, seed, rank) -> images.

    rank, an int tensor, says which wrong class a targeted attack aims at: 0 is
    the most likely one at the images, which are unperturbed.
    """

    @entry.compiled
    def run(logits_fn, images, labels, seed, rank):
        if settings.draws is not None and settings.draws > 1:
            logits_fn = stochastic.expectation(logits_fn, settings.draws)
        aim = {}
        if targeted:
            logits = losses.logits_of(logits_fn, images)
            aim["targets"] = wrong_classes(logits, labels)[:, rank]
        return attack(
            logits_fn,
            images,
            labels,
            seed,
            epsilon=settings.epsilon,
            norm=settings.norm,
            **own,
            **aim,
        )

    return run


def _stages(
    name: str,
    attack: Callable[..., tf.Tensor],
    settings: AttackSettings,
    targeted: bool = False,
    restarts: int | None = None,
    **own: object,
) -> list[Stage]:
    """Makes a stage for each restart and, if targeted, each class; `own` goes to the attack."""
    run = _compiled(attack, settings, targeted, **own)
    restarts = settings.restarts if restarts is None else restarts
    targets = min(settings.targets, settings.classes - 1) if targeted else 1

    def stage(restart, rank):
        full = name
        if targeted:
            full += f"/target{rank + 1}"
        if restarts > 1:
            full += f"/restart{restart + 1}"

        def run_stage(logits_fn, images, labels, seed):
            return run(logits_fn, images, labels, randomness.fold(seed, full), tf.constant(rank))

        return Stage(full, run_stage)

    return [stage(restart, rank) for restart in range(restarts) for rank in range(targets)]


def _pgd(name: str, settings: AttackSettings, loss: str) -> list[Stage]:
    own = {name: getattr(settings, name) for name in ("steps", "step_size", "gamma")}
    own["loss"] = loss
    return _stages(name, pgd, settings, **own)


def _fgsm(settings: AttackSettings) -> list[Stage]:
    return _stages("fgsm", fgsm, settings, restarts=1)


def _noise(settings: AttackSettings) -> list[Stage]:
    return _stages("noise", random_noise, settings, draws=settings.noise_draws)


def _apgd(name: str, settings: AttackSettings, loss: str) -> list[Stage]:
    targeted = loss == "dlr_targeted"
    return _stages(name, apgd, settings, targeted, loss=loss, steps=settings.steps)


def _fab(settings: AttackSettings) -> list[Stage]:
    # It starts at the image, so that a restart would repeat it.
    return _stages("fab-t", fab, settings, True, restarts=1, steps=settings.steps)


def _square(settings: AttackSettings) -> list[Stage]:
    # AutoAttack leaves the schedule as it is written for 10,000 queries.
    return _stages("square", square, settings, queries=settings.queries, rescale=False)


def _standard(settings: AttackSettings) -> list[Stage]:
    return [
        *_apgd("apgd-ce", settings, "ce"),
        *_apgd("apgd-t", settings, "dlr_targeted"),
        *_fab(settings),
        *_square(settings),
    ]


def _rand(settings: AttackSettings) -> list[Stage]:
    return [*_apgd("apgd-ce", settings, "ce"), *_apgd("apgd-dlr", settings, "dlr")]


ATTACKS: dict[str, Callable[[AttackSettings], list[Stage]]] = {
    "pgd": lambda settings: _pgd("pgd", settings, "ce"),
    "pgd-margin": lambda settings: _pgd("pgd-margin", settings, "margin"),
    "pgd-latent": lambda settings: _pgd("pgd-latent", settings, "latent"),
    "fgsm": _fgsm,
    "noise": _noise,
    "apgd-ce": lambda settings: _apgd("apgd-ce", settings, "ce"),
    "apgd-dlr": lambda settings: _apgd("apgd-dlr", settings, "dlr"),
    "apgd-t": lambda settings: _apgd("apgd-t", settings, "dlr_targeted"),
    "fab-t": _fab,
    "square": _square,
    "autoattack": _standard,
    "autoattack-rand": _rand,
}


def stages(attack: str, settings: AttackSettings) -> list[Stage]:
    """Lists the stages of an attack, in the order in which they are run.

    Args:
        attack: a name in `ATTACKS`.

    Raises:
        ValueError: for an unknown attack.
    """
    settings = resolve(attack, settings)
    return ATTACKS[attack](settings)


def worst_case(
    stages: list[Stage],
    logits_fn: losses.LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    seed: randomness.Seed,
) -> tf.Tensor:
    """Attacks stage by stage the examples that no earlier stage has broken.

    Args:
        stages: as of `stages`.
        logits_fn, images, labels, seed: as of `pgd`.

    Returns:
        [batch, ...]: of each example, an image that fools the model, or else that of the largest
        margin. An image that the model gets wrong unperturbed is returned as it is.

    Raises:
        UsageError: images outside [0, 1].
    """
    check_pixels(images)
    worst, labels = tf.convert_to_tensor(images), tf.convert_to_tensor(labels)
    if not len(worst):
        return worst
    logits = losses.logits_of(logits_fn, worst)
    largest = losses.margins_of(logits, labels)
    left = np.flatnonzero(~losses.fooled(logits, labels).numpy())
    for stage in stages:
        if not len(left):
            break
        own = tf.gather(labels, left)
        attacked = stage.run(logits_fn, tf.gather(images, left), own, seed)
        logits = losses.logits_of(logits_fn, attacked)
        margins, wrong = losses.margins_of(logits, own), losses.fooled(logits, own)
        before, most = tf.gather(worst, left), tf.gather(largest, left)
        better = wrong | (margins > most)
        worst = active_examples.put(worst, left, active_examples.select(better, attacked, before))
        largest = active_examples.put(largest, left, tf.where(better, margins, most))
        left = left[~wrong.numpy()]
    return worst
