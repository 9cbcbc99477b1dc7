"""The tables of a report, in the layout of the paper's Tables 1 to 3, as data."""

import dataclasses
import statistics
from collections.abc import Sequence

from anpvs_tf.attacks import radius
from anpvs_tf.methods.registry import METHODS
from anpvs_tf.reporting import costs, measurements, published
from anpvs_tf.reporting.columns import SHARE, Column, comparison_columns
from anpvs_tf.reporting.grouping import Group, runs_of
from anpvs_tf.reporting.measurements import Attack, Measurement
from anpvs_tf.runs.finished_run import FinishedRun

# The methods of Table 3, which shows what each part of ANP-VS adds.
ABLATION = ("at", "at_vs", "anp", "anpvs")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One value over the runs of a group, in the column's unit (percent, not shares).

    Attributes:
        values, seeds, commands: one for each run that has the value.
        examples: how many test images it is of.
        unreliable: the value of at least one run is.
        best: it is the best of its column.
    """

    values: tuple[float, ...]
    seeds: tuple[int, ...]
    commands: tuple[str, ...]
    examples: int | None = None
    unreliable: bool = False
    best: bool = False

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation; None for a single run."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclasses.dataclass(frozen=True)
class Row:
    """A group of runs.

    published: {column: published value}, in the column's unit; with the method's last row.
    at_chance: the clean accuracy of one of its runs is not above chance; none of its cells is best.
    """

    label: str
    method: str
    seeds: tuple[int, ...]
    cells: dict[str, Cell]
    published: dict[str, float]
    at_chance: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """notes: on this table; key: the meaning of its signs."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    key: tuple[str, ...]


def build(groups: list[Group]) -> list[Table]:
    """Makes the tables for which there are values; Table 1 always."""
    tables = [comparison(groups), other_radii(groups), more_steps(groups), ablation(groups)]
    return [table for table in tables if table is not None]


def comparison(groups: list[Group]) -> Table:
    """Makes Table 1: accuracy, vulnerability, size."""
    columns, notes = comparison_columns(groups), costs.notes(groups)
    return _table("table1", "Table 1. Robustness and size", columns, groups, notes)


def other_radii(groups: list[Group]) -> Table | None:
    """Makes Table 2, first half: PGD with other radii."""
    sweep = measurements.epsilon_sweep(runs_of(groups), "pgd")
    points = {f"ε = {radius.as_text(epsilon)}": attack for epsilon, attack in sweep.items()}
    return _sweep_table(
        "table2a", "Table 2a. Accuracy, %, under PGD of other radii", points, groups
    )


def more_steps(groups: list[Group]) -> Table | None:
    """Makes Table 2, second half: PGD with other numbers of steps."""
    sweep = measurements.steps_sweep(runs_of(groups))
    points = {f"{steps} steps": attack for steps, attack in sweep.items()}
    title = "Table 2b. Accuracy, %, under PGD of more steps"
    return _sweep_table("table2b", title, points, groups)


def _sweep_table(
    name: str, title: str, points: dict[str, Attack], groups: list[Group]
) -> Table | None:
    if not points:
        return None
    columns = tuple(
        Column(
            head.replace(" = ", "").replace(" ", "_").replace("ε", "epsilon"),
            head,
            SHARE,
            max,
            lambda run, attack=attack: measurements.under_attack(run, attack),
            f"accuracy under {measurements.attack_text(attack)}, "
            f"ε = {radius.as_text(attack.epsilon)}",
        )
        for head, attack in points.items()
    )
    radii = {attack.epsilon for attack in points.values()}
    texts = measurements.in_words(points, "" if len(radii) > 1 else "steps")
    suffix = f", ε = {radius.as_text(radii.pop())}" if len(radii) == 1 else ""
    return _table(name, title, columns, groups, [f"{text}{suffix}." for text in texts])


def ablation(groups: list[Group]) -> Table | None:
    """Makes Table 3: adversarial training with vulnerability suppression, with gates, with both."""
    chosen = [group for group in groups if group.method in ABLATION]
    if len({group.method for group in chosen}) < 2:
        return None
    keys = ("clean_accuracy", "white_accuracy", "autoattack_accuracy", "white_vulnerability")
    columns = tuple(column for column in comparison_columns(chosen) if column.key in keys)
    parts = "; ".join(
        f"{name}: {METHODS[name].summary}"
        for name in ABLATION
        if any(group.method == name for group in chosen)
    )
    return _table("table3", "Table 3. What each part adds", columns, chosen, [f"{parts}."])


def _table(
    name: str, title: str, columns: tuple[Column, ...], groups: list[Group], notes: list[str] = ()
) -> Table:
    rows = []
    for group in groups:
        cells = {column.key: _cell(column, group) for column in columns}
        last = group is [one for one in groups if one.method == group.method][-1]
        known = published.figures(group.settings) if last else {}
        rows.append(
            Row(
                group.label,
                group.method,
                tuple(group.seeds),
                {key: cell for key, cell in cells.items() if cell is not None},
                {c.key: known[c.key] for c in columns if c.key in known},
                any(run.at_chance for run in group.runs),
            )
        )
    alike = len({measurements.conditions(run) for run in runs_of(groups)}) == 1
    marked = [_with_best(columns, rows, row) if alike else row for row in rows]
    notes = (*notes, *_notes(columns, marked, groups))
    return Table(name, title, columns, tuple(marked), notes, _key(marked))


def _cell(column: Column, group: Group) -> Cell | None:
    found: list[tuple[int, Measurement]] = []
    for run in group.runs:
        measured = column.look_up(run)
        if measured is not None:
            found.append((run.settings.seed, measured))
    if not found:
        return None
    # Values of fewer images do not enter the mean of values of more.
    most = max(one.examples or 0 for _, one in found)
    found = [(seed, one) for seed, one in found if (one.examples or 0) == most]
    return Cell(
        tuple(one.value * column.unit.scale for _, one in found),
        tuple(seed for seed, _ in found),
        tuple(one.command for _, one in found),
        most or None,
        any(one.unreliable for _, one in found),
    )


def _with_best(columns: tuple[Column, ...], rows: list[Row], row: Row) -> Row:
    """Marks the best cells of `row`, but none of a column whose best value is unreliable."""
    cells = dict(row.cells)
    for column in columns:
        first = leading(column, rows)
        cell = cells.get(column.key)
        if cell in first and not any(other.unreliable for other in first):
            cells[column.key] = dataclasses.replace(cell, best=True)
    return dataclasses.replace(row, cells=cells)


def leading(column: Column, rows: Sequence[Row]) -> list[Cell]:
    """Finds the cells with the best mean as it is shown.

    There are none if all are equal, or not of the same number of images. A network at chance
    is not robust even if no attack changes its answers, so its row takes no part.
    """
    rows = [row for row in rows if not row.at_chance]
    cells = [row.cells[column.key] for row in rows if column.key in row.cells]
    if len({cell.examples for cell in cells}) > 1:
        return []
    shown = [round(cell.mean, column.unit.digits) for cell in cells]
    if len(set(shown)) < 2:
        return []
    best = column.better(shown)
    return [cell for cell, mean in zip(cells, shown, strict=True) if mean == best]


def conditions_text(run: FinishedRun) -> str:
    """Describes in words how a run was evaluated after training."""
    record = run.trained
    norm = {"linf": "l∞"}.get(record["threat_model"]["norm"], record["threat_model"]["norm"])
    return (
        f"{record['examples']:,} {record['split']} images of {record['dataset']}, {norm} "
        f"ε = {radius.as_text(record['threat_model']['epsilon'])}, "
        f"{measurements.attack_text(measurements.attack_of(record))}"
    )


def _notes(columns: tuple[Column, ...], rows: list[Row], groups: list[Group]) -> list[str]:
    runs = runs_of(groups)
    kinds = {measurements.conditions(run): conditions_text(run) for run in runs}
    if len(kinds) == 1:
        notes = [f"Evaluated on {next(iter(kinds.values()))}."]
    else:
        notes = [
            "The rows were not evaluated alike, so none is called best: "
            + "; ".join(kinds.values())
            + "."
        ]
    if len(kinds) == 1:
        partial: dict[str, list[str]] = {}
        for column in columns:
            held = {row.label: row.cells[column.key] for row in rows if column.key in row.cells}
            counts = {label: cell.examples for label, cell in held.items()}
            if set(counts.values()) - {runs[0].trained["examples"]}:
                alike = len(set(counts.values())) == 1
                texts = [
                    f"{count:,}" if alike else f"{count:,} ({label})"
                    for label, count in counts.items()
                ]
                partial.setdefault(", ".join(dict.fromkeys(texts)), []).append(column.head)
        notes += [f"{', '.join(heads)}: the first {n} images." for n, heads in partial.items()]
    if stuck := [row.label for row in rows if row.at_chance]:
        notes.append(
            f"At chance: {', '.join(stuck)}. Clean accuracy is not above that of a constant "
            "answer, so none of these values is called best."
        )
    if any(row.published for row in rows):
        notes.append(
            "Published: Madaan, Shin and Hwang (ICML 2020), means of 5 seeds after 200 epochs."
        )
        if groups[0].settings.dataset.startswith("cifar"):
            notes.append(
                "The published values come from code that attacks standardised images; ε is not "
                "the same there as in pixels."
            )
    return notes


def _key(rows: list[Row]) -> tuple[str, ...]:
    cells = [cell for row in rows for cell in row.cells.values()]
    key = []
    if any(cell.deviation is not None for cell in cells):
        key.append("Mean ± standard deviation over n seeds.")
    if any(cell.best for cell in cells):
        key.append("Bold: best of the column.")
    if any(cell.unreliable for cell in cells):
        key.append(
            "†: unreliable. A self-check failed, or another attack found over a point more. A "
            "column whose best value is unreliable has no bold one."
        )
    return tuple(key)
