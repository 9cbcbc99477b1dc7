"""The report as one page, which loads nothing else."""

import dataclasses
from typing import Any

from anpvs_tf.common import templates
from anpvs_tf.methods.registry import METHODS
from anpvs_tf.reporting import formats, provenance
from anpvs_tf.reporting.columns import Column
from anpvs_tf.reporting.grouping import Group, Skipped, runs_of
from anpvs_tf.reporting.style import Picture
from anpvs_tf.reporting.tables import Row, Table, leading

_TERMS = {
    "Attack, ε, l∞": "An adversary changes an image so that the network errs. Each pixel, a number "
    "from 0 to 1, may move by at most ε (the l∞ ball of radius ε).",
    "Clean accuracy": "Share of the unchanged test images that are classified correctly.",
    "White box, PGD-n": "The adversary knows the network. Projected gradient descent climbs the "
    "network's loss in n steps, from a random start. An image counts only if it is classified "
    "correctly before and after. One attack: the true robustness may be lower.",
    "AutoAttack": "Four strong attacks one after another, one of them without gradients. The "
    "accuracy to compare with other work.",
    "Black box": "The images were attacked on another network, which stands in for one that the "
    "adversary does not know.",
    "Latent feature": "A value inside the network, between the image and the classes' scores.",
    "Vulnerability, V": "How far latent features move when the image is attacked, on average. "
    "Lower is steadier.",
    "Gate, sparsity": "A gate opens or closes one feature, and is learned. Sparsity is the share "
    "of the features that is closed for good; they are left out of the network.",
    "Memory": "Size of the feature maps, in percent of the unpruned network's.",
    "xFLOPs": "How many times fewer arithmetic operations an image takes.",
    "Seed, n, ±": "A seed fixes all random draws of a training run. Values are means over n "
    "seeds, with the standard deviation over them.",
    "Bold": "The best of its column.",
    "†": "Unreliable: a self-check of the evaluation failed, or another attack found over a point "
    "more. Do not quote it.",
}

# Terms that the page leaves out without this column.
_TERMS_OF_COLUMNS = {
    "AutoAttack": "autoattack_accuracy",
    "Black box": "black_accuracy",
    "Gate, sparsity": "sparsity",
    "Memory": "memory",
    "xFLOPs": "flops_reduction",
}


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure on the page: light and dark are data URIs; width in pixels of the screen."""

    picture: Picture
    light: str
    dark: str
    width: int


def render(
    groups: list[Group],
    skipped: list[Skipped],
    tables: list[Table],
    figures: list[Figure],
    absent: list[str],
    command: str,
) -> str:
    """Renders the page as HTML, by `templates/page.html`.

    Args:
        absent: the parts that the report lacks, with the commands that would add them.
        command: that made the report.
    """
    held: dict[str, Any] = {
        "dataset": groups[0].settings.dataset,
        "methods": [METHODS[name] for name in dict.fromkeys(group.method for group in groups)],
        "summary": _summary(groups, tables[0]),
        "terms": _terms(tables),
        "tables": tables,
        "figures": figures,
        "checked": provenance.checked(runs_of(groups)),
        "unchecked": provenance.unchecked(runs_of(groups)),
        "runs": provenance.runs(runs_of(groups)),
        "skipped": skipped,
        "versions": provenance.versions(runs_of(groups)),
        "absent": absent,
        "command": command,
        # Functions that the templates call.
        "formats": formats,
        "first_order": _first_order,
        "head": _head,
        "single_runs": _single_runs,
    }
    return templates.environment("anpvs_tf.reporting").get_template("page.html").render(held)


def _summary(groups: list[Group], table: Table) -> list[str]:
    runs = runs_of(groups)
    seeds = sorted({run.settings.seed for run in runs})
    methods = len({group.method for group in groups})
    of = f"{len(groups)} settings of " if len(groups) > methods else ""
    lines = [
        f"{_count(len(runs), 'run')} of {of}{_count(methods, 'method')}, "
        f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}."
    ]
    lines += [note for note in table.notes if note.startswith(("Evaluated", "The rows"))]
    for column in table.columns:
        extreme = "Lowest" if column.better is min else "Highest"
        best = [row for row in table.rows if column.key in row.cells and row.cells[column.key].best]
        if best:
            names = " and ".join(
                f"{row.label}, {formats.with_unit(column, row.cells[column.key].mean)} "
                f"(n = {len(row.cells[column.key].values)})"
                for row in best
            )
            lines.append(f"{extreme} {column.about}: {names}.")
        elif any(cell.unreliable for cell in leading(column, table.rows)):
            lines.append(f"{extreme} {column.about}: undecided, the best value is unreliable.")
    return lines


def _terms(tables: list[Table]) -> dict[str, str]:
    """Chooses the terms that occur in the tables, with their meanings."""
    columns = {column.key for table in tables for column in table.columns}
    cells = [cell for table in tables for row in table.rows for cell in row.cells.values()]
    absent = {term for term, key in _TERMS_OF_COLUMNS.items() if key not in columns}
    absent |= set() if any(cell.best for cell in cells) else {"Bold"}
    absent |= set() if any(cell.unreliable for cell in cells) else {"†"}
    return {term: meaning for term, meaning in _TERMS.items() if term not in absent}


def _head(column: Column) -> str:
    """Writes the head of a column, which breaks between words only."""
    text = formats.head(column).replace("-", "\N{NON-BREAKING HYPHEN}")
    for kept in (", %", " = ", " steps"):
        text = text.replace(kept, kept.replace(" ", "\N{NO-BREAK SPACE}"))
    return text


def _first_order(column: Column) -> str:
    """Returns the order of the first click on a column's head, which puts the best on top."""
    return "ascending" if column.better is min else "descending"


def _single_runs(table: Table, row: Row) -> list[tuple[int, str, str]]:
    """Lists (seed, values, the command that makes them) of every run of a row, by seed."""
    found: dict[tuple[int, str], list[str]] = {}
    for column in table.columns:
        cell = row.cells.get(column.key)
        if cell is None:
            continue
        for value, seed, command in zip(cell.values, cell.seeds, cell.commands, strict=True):
            if round(value, column.unit.digits) == column.unpruned:
                continue
            shown = f"{column.head} {formats.with_unit(column, value)}"
            found.setdefault((seed, command), []).append(shown)
    by_seed = sorted(found.items(), key=lambda item: item[0][0])
    return [(seed, ", ".join(figures), command) for (seed, command), figures in by_seed]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
