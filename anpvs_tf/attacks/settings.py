"""The settings of attacks, and which attack depends on which; imports no TensorFlow."""

import dataclasses
import numbers

# Counts are 32-bit numbers where TensorFlow counts; each restart is a stage of its own.
MOST, MOST_RESTARTS = 2**31 - 1, 10_000

NORMS = ("linf", "l2")

# Images evaluated at a time.
EVALUATION_BATCH = 250

# The defaults that depend on the attack: steps of PGD and of the others, draws of a stochastic
# model for AutoAttack's version for such models and for the others.
PGD_STEPS, STEPS = 40, 100
RAND_DRAWS, DRAWS = 20, 1
# The length of all steps of PGD together, in radii.
RADII = 2.5

# bin/evaluate.py's flags, by the settings that they set.
FLAGS = {
    "steps": "attack_steps",
    "step_size": "step_size",
    "restarts": "restarts",
    "draws": "eot",
    "targets": "targets",
    "queries": "queries",
    "gamma": "gamma",
}

_PGD = ("steps", "step_size", "restarts", "draws")
_APGD = ("steps", "restarts", "draws")

# The settings that each attack depends on, by its name.
USES: dict[str, tuple[str, ...]] = {
    "pgd": _PGD,
    "pgd-margin": _PGD,
    "pgd-latent": (*_PGD, "gamma"),
    "fgsm": ("draws",),
    "noise": ("noise_draws", "restarts", "draws"),
    "apgd-ce": _APGD,
    "apgd-dlr": _APGD,
    "apgd-t": (*_APGD, "targets"),
    "fab-t": ("steps", "targets", "draws"),
    "square": ("queries", "restarts", "draws"),
    "autoattack": ("steps", "restarts", "targets", "queries", "draws"),
    "autoattack-rand": _APGD,
}


def check_norm(norm: str) -> None:
    """Raises ValueError unless `norm` is one of `NORMS`."""
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {NORMS}; received {norm!r}")


def check_threat_model(epsilon: object, norm: str) -> None:
    """Raises ValueError unless `norm` is one of `NORMS` and epsilon positive and finite.

    The value of an epsilon that is a tensor (a schedule in training) is not checked.
    """
    check_norm(norm)
    if isinstance(epsilon, numbers.Real) and not 0.0 < epsilon < float("inf"):
        raise ValueError(f"epsilon must be positive and finite; received {epsilon!r}")


def usual_step_size(epsilon: float, steps: int) -> float:
    """Returns the length of a step of PGD that goes with a radius and a number of steps."""
    return RADII * epsilon / steps


@dataclasses.dataclass(frozen=True)
class AttackSettings:
    """Holds the settings that stages are made for. None stands for the attack's own default.

    The defaults are AutoAttack's where it has one.

    epsilon: radius of the ball, in pixel units.
    norm: "linf" or "l2".
    classes: of the model; no attack has more targets than there are wrong classes.
    steps: gradient steps; `PGD_STEPS` or `STEPS`.
    step_size: of PGD; `usual_step_size`.
    restarts: of attacks with a random start or a random search.
    targets: the most likely wrong classes, aimed at one after another.
    draws: of a stochastic model, over which the expectation is taken; `DRAWS`, or `RAND_DRAWS`
        for "autoattack-rand".
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
        check_threat_model(self.epsilon, self.norm)
        if self.classes < 2:
            raise ValueError(f"classes must be at least 2; received {self.classes}")
        for name in ("steps", "restarts", "targets", "draws", "queries", "noise_draws"):
            value = getattr(self, name)
            most = MOST_RESTARTS if name == "restarts" else MOST
            if value is not None and not 1 <= value <= most:
                raise ValueError(f"{name} must be from 1 to {most:,}; received {value}")
        if self.step_size is not None and not self.step_size > 0:
            raise ValueError(f"step_size must be positive; received {self.step_size}")


def resolve(attack: str, settings: AttackSettings) -> AttackSettings:
    """Fills in an attack's own defaults, and None for steps and step_size that it does not use.

    Raises:
        ValueError: for an unknown attack.
    """
    if attack not in USES:
        raise ValueError(f"attack must be one of {tuple(USES)}; received {attack!r}")
    uses = USES[attack]
    steps = settings.steps or (PGD_STEPS if "step_size" in uses else STEPS)
    return dataclasses.replace(
        settings,
        steps=steps if "steps" in uses else None,
        step_size=(settings.step_size or usual_step_size(settings.epsilon, steps))
        if "step_size" in uses
        else None,
        draws=settings.draws or (RAND_DRAWS if attack == "autoattack-rand" else DRAWS),
    )
