"""The attacks by name, each a list of stages; AutoAttack (Croce & Hein 2020) is one of them.

A stage is one restart or one target class of one attack. Who runs the stages one
after another over a data set need only give a stage what the earlier ones have
not broken.
"""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from anpvs_tf.attacks import composition, losses, threat_model
from anpvs_tf.attacks.auto_pgd import apgd
from anpvs_tf.attacks.fast_adaptive_boundary import fab
from anpvs_tf.attacks.fast_gradient_sign import fgsm
from anpvs_tf.attacks.projected_gradient import pgd
from anpvs_tf.attacks.square_attack import square
from anpvs_tf.attacks.uniform_noise import random_noise
from anpvs_tf.common import randomness


@dataclasses.dataclass(frozen=True)
class Stage:
    """One pass over what is left.

    name: unique in its list, like "apgd-t/target3"; what comes before the slash
    is the same for the stages of one attack.
    run: (logits_fn, images, labels, seed) -> adversarial images, as of `pgd`. The
    seed may be the same for every stage: each folds its name into it. Compiled
    once for each `logits_fn`, whatever the batch size; stages of one attack share
    what is compiled.
    """

    name: str
    run: Callable[[losses.LogitsFn, tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What stages are made for. None stands for the attack's own default.

    The defaults are AutoAttack's where it has an opinion.

    epsilon: radius of the ball, in pixel units.
    norm: "linf" or "l2".
    classes: of the model; no attack has more targets than there are wrong classes.
    steps: gradient steps; 40 for PGD, 100 for the others.
    step_size: of PGD; 2.5 * epsilon / steps.
    restarts: of what has a random start or random search.
    targets: the most likely wrong classes, aimed at one after another.
    draws: expectation over so many draws of a stochastic model; 1, or 20 for
        "autoattack-rand".
    queries: of Square.
    noise_draws: of random noise.
    gamma: weight of the vulnerability in "pgd-latent".
    """

    epsilon: float
    norm: str = "linf"
    classes: int = 10
    steps: int | None = None
    step_size: float | None = None
    restarts: int = 1
    targets: int = 9
    draws: int | None = None
    queries: int = 5000
    noise_draws: int = 10
    gamma: float = 1.0

    def __post_init__(self):
        threat_model.check_threat_model(self.epsilon, self.norm)
        if self.classes < 2:
            raise ValueError(f"classes must be at least 2; received {self.classes}")
        for name in ("steps", "restarts", "targets", "draws", "queries", "noise_draws"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1; received {value}")
        if self.step_size is not None and not self.step_size > 0:
            raise ValueError(f"step_size must be positive; received {self.step_size}")


def _compiled(attack, settings: Settings, targeted: bool, **own):
    """A compiled (logits_fn, images, labels, seed, rank) -> adversarial images.

    rank, an int tensor, says which wrong class a targeted attack aims at: 0 is
    the most likely one at the images, which are unperturbed.
    """

    @tf.function(autograph=False, reduce_retracing=True)
    def run(logits_fn, images, labels, seed, rank):
        if settings.draws is not None and settings.draws > 1:
            logits_fn = composition.expectation(logits_fn, settings.draws)
        aim = {}
        if targeted:
            logits = losses.logits_of(logits_fn, images)
            aim["targets"] = composition.wrong_classes(logits, labels)[:, rank]
        # The Python function: a compiled attack would keep this logits_fn alive.
        return attack.python_function(
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
    settings: Settings,
    targeted: bool = False,
    restarts: int | None = None,
    **own: object,
) -> list[Stage]:
    """A stage for each restart and, if targeted, each target class; `own` goes to the attack."""
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


def _pgd(name: str, settings: Settings, loss: str) -> list[Stage]:
    own = {name: getattr(settings, name) for name in ("steps", "step_size", "gamma")}
    own["loss"] = loss
    return _stages(name, pgd, settings, **own)


def _fgsm(settings: Settings) -> list[Stage]:
    return _stages("fgsm", fgsm, settings, restarts=1)


def _noise(settings: Settings) -> list[Stage]:
    return _stages("noise", random_noise, settings, draws=settings.noise_draws)


def _apgd(name: str, settings: Settings, loss: str) -> list[Stage]:
    targeted = loss == "dlr_targeted"
    return _stages(name, apgd, settings, targeted, loss=loss, steps=settings.steps)


def _fab(settings: Settings) -> list[Stage]:
    # It starts at the image, so that a restart would repeat it.
    return _stages("fab-t", fab, settings, True, restarts=1, steps=settings.steps)


def _square(settings: Settings) -> list[Stage]:
    # AutoAttack leaves the schedule as it is written for 10,000 queries.
    return _stages("square", square, settings, queries=settings.queries, rescale=False)


def _standard(settings: Settings) -> list[Stage]:
    return [
        *_apgd("apgd-ce", settings, "ce"),
        *_apgd("apgd-t", settings, "dlr_targeted"),
        *_fab(settings),
        *_square(settings),
    ]


def _rand(settings: Settings) -> list[Stage]:
    return [*_apgd("apgd-ce", settings, "ce"), *_apgd("apgd-dlr", settings, "dlr")]


@dataclasses.dataclass(frozen=True)
class Kind:
    """An attack by name: how its stages are made, and which settings they depend on."""

    make: Callable[[Settings], list[Stage]]
    uses: tuple[str, ...]


_PGD = ("steps", "step_size", "restarts", "draws")
_APGD = ("steps", "restarts", "draws")

ATTACKS: dict[str, Kind] = {
    "pgd": Kind(lambda settings: _pgd("pgd", settings, "ce"), _PGD),
    "pgd-margin": Kind(lambda settings: _pgd("pgd-margin", settings, "margin"), _PGD),
    "pgd-latent": Kind(lambda settings: _pgd("pgd-latent", settings, "latent"), (*_PGD, "gamma")),
    "fgsm": Kind(_fgsm, ("draws",)),
    "noise": Kind(_noise, ("noise_draws", "restarts", "draws")),
    "apgd-ce": Kind(lambda settings: _apgd("apgd-ce", settings, "ce"), _APGD),
    "apgd-dlr": Kind(lambda settings: _apgd("apgd-dlr", settings, "dlr"), _APGD),
    "apgd-t": Kind(lambda settings: _apgd("apgd-t", settings, "dlr_targeted"), (*_APGD, "targets")),
    "fab-t": Kind(_fab, ("steps", "targets", "draws")),
    "square": Kind(_square, ("queries", "restarts", "draws")),
    "autoattack": Kind(_standard, ("steps", "restarts", "targets", "queries", "draws")),
    "autoattack-rand": Kind(_rand, _APGD),
}


def resolve(attack: str, settings: Settings) -> Settings:
    """The settings with an attack's own defaults filled in, and None for what it does not use.

    Raises:
        ValueError: for an unknown attack.
    """
    if attack not in ATTACKS:
        raise ValueError(f"attack must be one of {tuple(ATTACKS)}; received {attack!r}")
    uses = ATTACKS[attack].uses
    steps = settings.steps or (40 if "step_size" in uses else 100)
    return dataclasses.replace(
        settings,
        steps=steps if "steps" in uses else None,
        step_size=(settings.step_size or 2.5 * settings.epsilon / steps)
        if "step_size" in uses
        else None,
        draws=settings.draws or (20 if attack == "autoattack-rand" else 1),
    )


def stages(attack: str, settings: Settings) -> list[Stage]:
    """The stages of an attack, in the order in which they are run.

    Args:
        attack: a name in `ATTACKS`.

    Raises:
        ValueError: for an unknown attack.
    """
    settings = resolve(attack, settings)
    return ATTACKS[attack].make(settings)
