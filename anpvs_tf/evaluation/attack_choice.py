"""Which attacks an evaluation runs, with which settings."""

from typing import Any

from anpvs_tf.attacks import registry
from anpvs_tf.attacks.registry import Settings
from anpvs_tf.evaluation.attacked_model import Subject

TRANSFER = "transfer"


ATTACKS = (*registry.ATTACKS, TRANSFER)


def resolve(attack: str, settings: Settings) -> Settings:
    """As `autoattack.resolve`, for every attack here."""
    return registry.resolve("pgd" if attack == TRANSFER else attack, settings)


def uses(attack: str) -> tuple[str, ...]:
    """The settings that an attack depends on."""
    return registry.ATTACKS["pgd" if attack == TRANSFER else attack].uses


def description(attack: str, settings: Settings, sources: list[Subject] = ()) -> dict[str, Any]:
    """An attack and what it depends on, as records hold them."""
    found = {name: getattr(resolve(attack, settings), name) for name in uses(attack)}
    if attack == TRANSFER:
        found["sources"] = [source.name for source in sources]
    return {"name": attack, **found}
