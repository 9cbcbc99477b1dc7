"""The columns of a report's tables: what is looked up, how it is shown, what is better."""

import dataclasses
from collections.abc import Callable

from anpvs_tf.reporting import measurements, published
from anpvs_tf.reporting.grouping import Group, runs_of
from anpvs_tf.reporting.measurements import Lookup


@dataclasses.dataclass(frozen=True)
class Unit:
    """How figures are shown: value * scale with so many digits."""

    scale: float
    digits: int
    symbol: str


PERCENT = Unit(100.0, 2, "%")
SHARE = Unit(100.0, 2, "")  # Percent, where the title says so.
DISTANCE = Unit(1.0, 4, "")
FACTOR = Unit(1.0, 2, "")


@dataclasses.dataclass(frozen=True)
class Column:
    """about: what it holds, in words; better: max or min, what the best of the column is."""

    key: str
    head: str
    about: str
    unit: Unit
    better: Callable
    look_up: Lookup


def comparison_columns(groups: list[Group]) -> tuple[Column, ...]:
    """The columns of Table 1 for which there are figures, ours or published."""
    trained, white_box = measurements.trained, measurements.white_box
    attacks = {measurements.attack_of(run.trained) for run in runs_of(groups)}
    steps = next(iter(attacks)).values.get("steps") if len(attacks) == 1 else None

    def named(names, key):
        return lambda run: measurements.strongest_named(run, names, key)

    found = (
        Column(
            "clean_accuracy",
            "clean",
            "accuracy on unchanged test images",
            PERCENT,
            max,
            trained("clean_accuracy"),
        ),
        Column(
            "white_accuracy",
            f"white box PGD-{steps}" if steps else "white box PGD",
            "accuracy under an adversary who knows the network, PGD",
            PERCENT,
            max,
            white_box,
        ),
        Column(
            "autoattack_accuracy",
            "AutoAttack",
            "accuracy under strong attacks together, AutoAttack",
            PERCENT,
            max,
            named(("autoattack", "autoattack-rand"), "robust_accuracy"),
        ),
        Column(
            "black_accuracy",
            "black box",
            "accuracy under images that were crafted on another network",
            PERCENT,
            max,
            named(("transfer",), "robust_accuracy"),
        ),
        Column(
            "white_vulnerability",
            "V white box",
            "vulnerability, how far latent features move, under the white-box attack",
            DISTANCE,
            min,
            lambda run: white_box(run, "vulnerability"),
        ),
        Column(
            "black_vulnerability",
            "V black box",
            "vulnerability, how far latent features move, under the black-box attack",
            DISTANCE,
            min,
            named(("transfer",), "vulnerability"),
        ),
        Column(
            "memory",
            "memory",
            "memory of the feature maps, relative to the unpruned network's",
            PERCENT,
            min,
            trained("efficiency/feature_map_memory"),
        ),
        Column(
            "flops_reduction",
            "xFLOPs",
            "saving of arithmetic operations, as a factor",
            FACTOR,
            max,
            trained("efficiency/flops_reduction"),
        ),
        Column(
            "sparsity",
            "sparsity",
            "share of features (of a method that prunes weights: of weights) that are pruned",
            PERCENT,
            max,
            measurements.sparsity,
        ),
    )
    return tuple(
        column
        for column in found
        if any(column.look_up(run) for run in runs_of(groups))
        or any(column.key in published.figures(group.settings) for group in groups)
    )
