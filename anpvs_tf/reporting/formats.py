"""Tables as Markdown, CSV and LaTeX."""

import csv
import io
import textwrap

from anpvs_tf.reporting.columns import Column
from anpvs_tf.reporting.tables import Cell, Row, Table

NOTHING = "–"  # noqa: RUF001


def number(column: Column, value: float) -> str:
    return f"{value:.{column.unit.digits}f}"


def published_number(column: Column, value: float) -> str:
    """Writes a published value with the digits that it has in the paper."""
    return f"{value:.{min(column.unit.digits, 3)}f}"


def with_unit(column: Column, value: float) -> str:
    return number(column, value) + (f" {column.unit.symbol}" if column.unit.symbol else "")


def head(column: Column) -> str:
    return f"{column.head}, {column.unit.symbol}" if column.unit.symbol == "%" else column.head


def runs_text(row: Row, cell: Cell | None = None) -> str:
    """Writes the number n of runs of a row; of a cell only if it differs from the row's."""
    if cell is None:
        return f"n = {len(row.seeds)}"
    return f"n = {len(cell.values)}" if len(cell.values) != len(row.seeds) else ""


def _parts(column: Column, row: Row) -> tuple[str, str, str, Cell] | None:
    """Writes (mean, standard deviation or "", n or "", cell); None if the row has no such cell."""
    cell = row.cells.get(column.key)
    if cell is None:
        return None
    spread = "" if cell.deviation is None else number(column, cell.deviation)
    return number(column, cell.mean), spread, runs_text(row, cell), cell


def markdown(table: Table) -> str:
    """Writes a table as Markdown, with its title and notes."""

    def shown(column, row):
        found = _parts(column, row)
        if found is None:
            return NOTHING
        mean, spread, n, cell = found
        text = f"{mean} ± {spread}" if spread else mean
        text = f"**{text}**" if cell.best else text
        return text + (" †" if cell.unreliable else "") + (f" ({n})" if n else "")

    def published(column, row):
        value = row.published.get(column.key)
        return NOTHING if value is None else published_number(column, value)

    lines = [f"**{table.title}**", ""]
    lines.append("| " + " | ".join(["method", "runs", *map(head, table.columns)]) + " |")
    lines.append("| --- " * (2 + len(table.columns)) + "|")
    for row in table.rows:
        cells = [row.label, runs_text(row), *(shown(column, row) for column in table.columns)]
        lines.append("| " + " | ".join(cells) + " |")
        if row.published:
            cells = [f"{row.method}, published", "n = 5"]
            cells += [published(column, row) for column in table.columns]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(f"- {note}" for note in (*table.notes, *table.key))]) + "\n"


def comma_separated(table: Table) -> str:
    """Writes a table as CSV: of each column mean, standard deviation, n, whether unreliable.

    Units are the table's: percent, not shares.
    """
    heads = ["method", "source", "seeds"]
    for column in table.columns:
        heads += [f"{column.key}{ending}" for ending in ("", "_std", "_n", "_unreliable")]
    text = io.StringIO()
    writer = csv.DictWriter(text, heads, lineterminator="\n")
    writer.writeheader()
    for row in table.rows:
        seeds = " ".join(map(str, row.seeds))
        line = {"method": row.label, "source": "measured", "seeds": seeds}
        for key, cell in row.cells.items():
            line |= {
                key: f"{cell.mean:.6g}",
                f"{key}_std": "" if cell.deviation is None else f"{cell.deviation:.6g}",
                f"{key}_n": len(cell.values),
                f"{key}_unreliable": int(cell.unreliable),
            }
        writer.writerow(line)
        if row.published:
            line = {"method": row.method, "source": "published"}
            for key, value in row.published.items():
                line |= {key: f"{value:g}", f"{key}_n": 5}
            writer.writerow(line)
    return text.getvalue()


_LATEX = {
    **{character: "\\" + character for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "†": r"$^\dagger$",
    "∞": r"$\infty$",
    "ε": r"$\epsilon$",
    "–": "--",  # noqa: RUF001
}


def latex_text(text: str) -> str:
    """Escapes the characters of a text that LaTeX would misread."""
    return "".join(_LATEX.get(character, character) for character in text)


def latex(table: Table) -> str:
    """Writes a table as LaTeX, which needs no package.

    Standard deviation and n stand under a mean, to keep the table narrow.
    """

    def stacked(lines, line):
        return rf"\begin{{tabular}}[{line}]{{@{{}}r@{{}}}}" + r"\\".join(lines) + r"\end{tabular}"

    def shown(column, row):
        found = _parts(column, row)
        if found is None:
            return "--"
        mean, spread, n, cell = found
        mean = rf"\textbf{{{mean}}}" if cell.best else mean
        small = [rf"$\pm$ {spread}"] if spread else []
        small += [f"({n})"] if n else []
        dagger = r"$^\dagger$" if cell.unreliable else ""
        return stacked([mean + dagger, *(rf"\tiny {text}" for text in small)], "t")

    def published(column, row):
        value = row.published.get(column.key)
        return "--" if value is None else rf"\textit{{{published_number(column, value)}}}"

    caption = table.title.partition(". ")[2]  # LaTeX counts tables itself.
    wide = max(len(row.label) for row in table.rows) > 20
    first = r"p{9em}" if wide else "l"
    lines = [r"\begin{table}", r"\centering\scriptsize\setlength{\tabcolsep}{2.5pt}"]
    lines += [rf"\caption{{{latex_text(caption)}}}"]
    lines += [rf"\begin{{tabular}}{{{first}r{'r' * len(table.columns)}}}", r"\hline"]
    wrapped = [textwrap.wrap(head(c), 9, break_long_words=False) for c in table.columns]
    heads = [stacked(map(latex_text, one), "b") for one in wrapped]
    lines += [" & ".join(["method", "$n$", *heads]) + r" \\", r"\hline"]
    for row in table.rows:
        cells = [latex_text(row.label), str(len(row.seeds))]
        cells += [shown(column, row) for column in table.columns]
        lines.append(" & ".join(cells) + r" \\")
        if row.published:
            cells = [rf"\textit{{{latex_text(f'{row.method}, published')}}}", r"\textit{5}"]
            cells += [published(column, row) for column in table.columns]
            lines.append(" & ".join(cells) + r" \\")
    lines += [r"\hline", r"\end{tabular}", ""]
    notes = " ".join(map(latex_text, (*table.notes, *table.key)))
    lines += [rf"\vspace{{2pt}}\parbox{{\linewidth}}{{\scriptsize {notes}}}"]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


# How a table becomes a file, by the ending of its name.
BY_ENDING = {"md": markdown, "csv": comma_separated, "tex": latex}
