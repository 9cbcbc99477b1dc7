"""The report as one page: no other file, no network."""

import dataclasses
import pathlib
from html import escape

from anpvs_tf.methods.registry import METHODS
from anpvs_tf.reporting import formats, provenance, tables
from anpvs_tf.reporting.grouping import Group, Skipped, runs_of
from anpvs_tf.reporting.provenance import items, scrolling, sortable_head
from anpvs_tf.reporting.style import Picture
from anpvs_tf.reporting.tables import Row, Table

_HERE = pathlib.Path(__file__).parent

_TERMS = {
    "Attack, ε, l∞": "An adversary changes an image so that the network errs. Each pixel, a number "
    "from 0 to 1, may move by at most ε (the l∞ ball of radius ε).",
    "Clean accuracy": "Share of the unchanged test images that are classified correctly.",
    "White box, PGD-n": "The adversary knows the network. Projected gradient descent climbs the "
    "network's loss in n steps, from a random start. An image counts only if it is classified "
    "correctly before and after. One attack: the true robustness may be lower.",
    "AutoAttack": "Four strong attacks one after another, one of them without gradients. The "
    "figure to hold against other work.",
    "Black box": "The images were attacked on another network, which stands in for one that the "
    "adversary does not know.",
    "Latent feature": "A value inside the network, between the image and the classes' scores.",
    "Vulnerability, V": "How far latent features move when the image is attacked, on average. "
    "Lower is steadier.",
    "Gate, sparsity": "A gate opens or closes one feature, and is learned. Sparsity is the share "
    "of the features that is closed for good; they are left out of the network.",
    "Memory": "Size of the feature maps, in percent of the unpruned network's.",
    "xFLOPs": "How many times fewer arithmetic operations an image takes.",
    "Seed, n, ±": "A seed fixes all random draws of a training run. Figures are means over n "
    "seeds, with the standard deviation over them.",
    "Bold": "The best of its column.",
    "†": "Unreliable: a self-check of the evaluation failed, or another attack found over a point "
    "more. Do not quote it.",
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
    """The page as HTML.

    Args:
        absent: what the report lacks, and what would bring it.
        command: that made the report.
    """
    dataset = groups[0].settings.dataset
    methods = ", ".join(dict.fromkeys(group.method for group in groups))
    title = f"Robust and small networks on {dataset}"
    sections = {
        "summary": ("In short", _summary(groups, tables[0])),
        "terms": ("How to read this", _terms(groups)),
        "tables": ("Tables", "".join(_table(table) for table in tables)),
        "figures": ("Figures", "".join(_figure(figure) for figure in figures)),
        "checks": ("Are the figures to be believed?", provenance.checks(groups)),
        "runs": ("Runs", provenance.runs(groups, skipped)),
        "made": ("How this was made", provenance.made(groups, absent, command)),
    }
    links = "".join(
        f'<li><a href="#{name}">{head}</a></li>' for name, (head, _) in sections.items()
    )
    body = "".join(
        f'<section aria-labelledby="{name}"><h2 id="{name}">{head}</h2>{text}</section>\n'
        for name, (head, text) in sections.items()
    )
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(title)}: {escape(methods)}</title>
<style>
{(_HERE / "page.css").read_text()}</style>
</head>
<body>
<a class="skip" href="#content">Skip to the content</a>
<header>
<h1>{escape(title)}</h1>
<p>Image classifiers that were trained to withstand images changed on purpose to mislead them, some
of them made smaller on the way. How well do they do? Compared: {escape(methods)}.</p>
<nav aria-label="Contents"><ul>{links}</ul></nav>
</header>
<main id="content">
{body}</main>
<dialog id="enlarged" aria-label="Figure"><form method="dialog"><button>Close</button></form>
<div class="place"></div></dialog>
<script>
{(_HERE / "page.js").read_text()}</script>
</body>
</html>
"""


def _summary(groups: list[Group], table: Table) -> str:
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
        elif any(cell.unreliable for cell in tables.leading(column, table.rows)):
            lines.append(f"{extreme} {column.about}: undecided, the best figure is unreliable.")
    return items([escape(line) for line in lines])


def _terms(groups: list[Group]) -> str:
    terms = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in _TERMS.items())
    methods = "".join(
        f"<dt><code>{escape(name)}</code></dt><dd>{escape(METHODS[name].summary)}"
        f"{'' if METHODS[name].source == '-' else f' ({escape(METHODS[name].source)})'}</dd>"
        for name in dict.fromkeys(group.method for group in groups)
    )
    return f"<dl>{terms}</dl><h3>Methods of training</h3><dl>{methods}</dl>"


# ---- Tables ----


def _table(table: Table) -> str:
    heads = sortable_head("method") + sortable_head("n", "how many seeds", "descending")
    for column in table.columns:
        first = "ascending" if column.better is min else "descending"
        heads += sortable_head(formats.head(column), column.about, first)
    bodies = "".join(_row(table, row) for row in table.rows)
    notes = [*map(escape, table.notes), f"Files: tables/{table.name}.md, .csv, .tex"]
    return scrolling(
        table.title,
        f'<table id="{table.name}"><caption>{escape(table.title)}</caption>'
        f"<thead><tr>{heads}</tr></thead>{bodies}</table>",
    ) + items(notes, "notes")


def _row(table: Table, row: Row) -> str:
    label = escape(row.label)
    cells = f'<th scope="row" data-value="{label}">{label}</th>'
    cells += f'<td data-value="{len(row.seeds)}">{len(row.seeds)}</td>'
    for column in table.columns:
        cell = row.cells.get(column.key)
        if cell is None:
            cells += f"<td>{formats.NOTHING}</td>"
            continue
        mean = formats.number(column, cell.mean)
        text = f"<strong>{mean}</strong>" if cell.best else mean
        if cell.unreliable:
            text += ' <span class="unreliable" title="unreliable">†</span>'
        if cell.deviation is not None:
            text += f' <span class="spread">± {formats.number(column, cell.deviation)}</span>'
        if n := formats.runs_text(row, cell):
            text += f' <span class="n">({n})</span>'
        cells += f'<td data-value="{cell.mean:.8g}">{text}</td>'
    found = (
        f"<tbody><tr>{cells}</tr>"
        f'<tr class="more"><td colspan="{2 + len(table.columns)}"><details>'
        f"<summary>single runs and commands of {label}</summary>"
        f"{_single_runs(table, row)}</details></td></tr></tbody>"
    )
    if row.published:
        name = escape(f"{row.method}, published")
        known = "".join(
            f'<td data-value="{row.published[c.key]:g}">'
            f"{formats.published_number(c, row.published[c.key])}</td>"
            if c.key in row.published
            else f"<td>{formats.NOTHING}</td>"
            for c in table.columns
        )
        found += (
            f'<tbody class="published"><tr><th scope="row" data-value="{name}">{name}</th>'
            f'<td data-value="5">5</td>{known}</tr></tbody>'
        )
    return found


def _single_runs(table: Table, row: Row) -> str:
    """Every figure of every run behind the command that makes it."""
    found: dict[tuple[int, str], list[str]] = {}
    for column in table.columns:
        cell = row.cells.get(column.key)
        if cell is None:
            continue
        for value, seed, command in zip(cell.values, cell.seeds, cell.commands, strict=True):
            shown = f"{column.head} {formats.with_unit(column, value)}"
            found.setdefault((seed, command), []).append(shown)
    return items(
        [
            f"seed {seed}: {escape(', '.join(values))}<br><code>{escape(command)}</code>"
            for (seed, command), values in sorted(found.items(), key=lambda item: item[0][0])
        ]
    )


# ---- Figures ----


def _figure(figure: Figure) -> str:
    picture = figure.picture
    lines = items([f"<code>{escape(one)}</code>" for one in picture.commands])
    return (
        f'<figure id="{picture.name}"><h3>{escape(picture.title)}</h3>'
        f'<button type="button" class="enlarge" aria-label="Enlarge: {escape(picture.title)}">'
        f'<picture><source media="screen and (prefers-color-scheme: dark)" srcset="{figure.dark}">'
        f'<img src="{figure.light}" width="{figure.width}" alt="{escape(picture.alt)}"></picture>'
        f"</button><figcaption>{escape(picture.caption)} Files: figures/{picture.name}.png, .svg"
        f"<details><summary>commands behind this figure</summary>{lines}</details>"
        "</figcaption></figure>\n"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
