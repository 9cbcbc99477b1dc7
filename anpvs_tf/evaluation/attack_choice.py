"""The choice of an evaluation's attacks and their settings; imports no TensorFlow."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from anpvs_tf.attacks import radius
from anpvs_tf.attacks import settings as attack_settings
from anpvs_tf.attacks.settings import USES, AttackSettings
from anpvs_tf.common.errors import UsageError

if TYPE_CHECKING:
    from anpvs_tf.evaluation.attacked_model import Subject

TRANSFER = "transfer"
LATENT = "pgd-latent"
ATTACKS = (*USES, TRANSFER)


def resolve(attack: str, settings: AttackSettings) -> AttackSettings:
    """Fills in an attack's own defaults, as `attacks.settings.resolve`, for all of `ATTACKS`."""
    return attack_settings.resolve("pgd" if attack == TRANSFER else attack, settings)


def uses(attack: str) -> tuple[str, ...]:
    """Returns the names of the settings that an attack depends on."""
    return USES["pgd" if attack == TRANSFER else attack]


def description(
    attack: str, settings: AttackSettings, sources: "Sequence[Subject]" = ()
) -> dict[str, Any]:
    """Describes an attack as records hold it: its name and the settings that it depends on."""
    found = {name: getattr(resolve(attack, settings), name) for name in uses(attack)}
    if attack == TRANSFER:
        found["sources"] = [source.name for source in sources]
    return {"name": attack, **found}


@dataclasses.dataclass(frozen=True)
class Choice:
    """The attacks that a user asks for. None and () stand for the usual ones.

    Attributes:
        attacks: of `ATTACKS`.
        epsilons: radii, in pixel units; each is attacked by every attack.
        norm: of all radii.
        steps: numbers of gradient steps; each is tried.
        step_size: of PGD.
        others: fields of `AttackSettings` that are the same for all attacks.
    """

    attacks: tuple[str, ...]
    epsilons: tuple[float, ...] = ()
    norm: str | None = None
    steps: tuple[int, ...] = ()
    step_size: float | None = None
    others: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def chosen_attacks(
    choice: Choice, usual: Mapping[str, Any], classes: int, latent: bool
) -> list[tuple[str, AttackSettings]]:
    """Lists the attacks of a choice, in order, each with its settings, none twice.

    Args:
        usual: the settings of the run, or of the dataset, that say how it is usually attacked:
            norm, epsilon, eval_attack_steps, eval_step_size.
        classes: of the model.
        latent: whether its latent features are known.

    Raises:
        UsageError: an unknown attack, or a setting out of range.
    """
    if unknown := [name for name in choice.attacks if name not in ATTACKS]:
        raise UsageError(f"unknown attack {', '.join(unknown)!r}; choose of {', '.join(ATTACKS)}")
    if LATENT in choice.attacks and not latent:
        raise UsageError(f"--attack={LATENT} needs --run_dir alone: it attacks latent features")
    norm = choice.norm or usual["norm"]
    if norm != usual["norm"] and not choice.epsilons:
        raise UsageError(f"--norm={norm} needs --epsilons: the usual ones are of {usual['norm']}")
    chosen, known = [], []
    for epsilon in choice.epsilons or (usual["epsilon"],):
        if epsilon > 1 and norm == "linf":
            raise UsageError(
                f"--epsilons must lie in (0, 1], in pixel units; got {epsilon:g}"
                f"{radius.meant(epsilon)}"
            )
        for attack in choice.attacks:
            own = {}
            # The published step reaches the published epsilon; other radii and step counts
            # take the attack's own.
            as_usual = norm == usual["norm"] and epsilon == usual["epsilon"] and not choice.steps
            if "step_size" in uses(attack) and as_usual:
                own = {"steps": usual["eval_attack_steps"], "step_size": usual["eval_step_size"]}
            if choice.step_size is not None:
                own["step_size"] = choice.step_size
            for count in choice.steps or (own.pop("steps", None),):
                try:
                    settings = AttackSettings(
                        **{"epsilon": epsilon, "norm": norm, "classes": classes, "steps": count},
                        **own,
                        **choice.others,
                    )
                except ValueError as error:
                    raise UsageError(str(error)) from error
                resolved = resolve(attack, settings)
                if (one := (description(attack, resolved), epsilon)) not in known:
                    known.append(one)
                    chosen.append((attack, resolved))
    return chosen
