"""The columns of a report's tables: what is looked up, how it is shown, what is better."""

import dataclasses
from collections.abc import Callable, Iterable

from anpvs_tf.methods.registry import METHODS
from anpvs_tf.reporting import measurements, published
from anpvs_tf.reporting.grouping import Group, runs_of
from anpvs_tf.reporting.measurements import Lookup, Measurement, trained, white_box
from anpvs_tf.runs.finished_run import FinishedRun


@dataclasses.dataclass(frozen=True)
class Unit:
    """How values are shown: value * scale with so many digits."""

    scale: float
    digits: int
    symbol: str


PERCENT = Unit(100.0, 2, "%")
SHARE = Unit(100.0, 2, "")  # Percent, where the title says so.
DISTANCE = Unit(1.0, 4, "")
FACTOR = Unit(1.0, 2, "")


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        key: its name in files.
        better: max or min, what the best of the column is.
        about: what it holds, in words.
        unpruned: what it shows of a network that is not pruned, in its unit; without a method
            that prunes, a column that shows nothing else is left out. None if pruning does
            not decide it.
    """

    key: str
    head: str
    unit: Unit
    better: Callable
    look_up: Lookup
    about: str
    unpruned: float | None = None


def _strongest(names: Iterable[str], key: str) -> Lookup:
    def look_up(run: FinishedRun) -> Measurement | None:
        return measurements.strongest_named(run, names, key)

    return look_up


def _white_vulnerability(run: FinishedRun) -> Measurement | None:
    return white_box(run, "vulnerability")


_MOVES = "vulnerability, how far latent features move, under the"

# fmt: off
_COMPARISON = (
    Column("clean_accuracy", "clean", PERCENT, max, trained("clean_accuracy"),
           "accuracy on unchanged test images"),
    Column("white_accuracy", "white box PGD", PERCENT, max, white_box,
           "accuracy under an adversary who knows the network, PGD"),
    Column("autoattack_accuracy", "AutoAttack", PERCENT, max,
           _strongest(("autoattack", "autoattack-rand"), "robust_accuracy"),
           "accuracy under strong attacks together, AutoAttack"),
    Column("black_accuracy", "black box", PERCENT, max,
           _strongest(("transfer",), "robust_accuracy"),
           "accuracy under images that were crafted on another network"),
    Column("white_vulnerability", "V white box", DISTANCE, min, _white_vulnerability,
           f"{_MOVES} white-box attack"),
    Column("black_vulnerability", "V black box", DISTANCE, min,
           _strongest(("transfer",), "vulnerability"),
           f"{_MOVES} black-box attack"),
    Column("memory", "memory", PERCENT, min, trained("efficiency/feature_map_memory"),
           "memory of the feature maps, relative to the unpruned network's", 100.0),
    Column("flops_reduction", "xFLOPs", FACTOR, max, trained("efficiency/flops_reduction"),
           "saving of arithmetic operations, as a factor", 1.0),
    Column("sparsity", "sparsity", PERCENT, max, measurements.sparsity,
           "share of features (of a method that prunes weights: of weights) that are pruned", 0.0),
)
# fmt: on


def comparison_columns(groups: list[Group]) -> tuple[Column, ...]:
    """Chooses the columns of Table 1 for which there are values, ours or published."""
    prunes = any(METHODS[group.method].prunes for group in groups)
    found = []
    for column in _COMPARISON:
        measured = (column.look_up(run) for run in runs_of(groups))
        known = (published.figures(group.settings).get(column.key) for group in groups)
        values = [one.value * column.unit.scale for one in measured if one is not None]
        values += [value for value in known if value is not None]
        if any(prunes or round(value, column.unit.digits) != column.unpruned for value in values):
            found.append(column)
    attacks = {measurements.attack_of(run.trained) for run in runs_of(groups)}
    steps = next(iter(attacks)).values.get("steps") if len(attacks) == 1 else None
    if steps is None:
        return tuple(found)
    named = {"white_accuracy": f"white box PGD-{steps}"}
    return tuple(dataclasses.replace(one, head=named.get(one.key, one.head)) for one in found)
