"""The list of runs: a line a run with its state, accuracies, sparsity, size and age."""

import pathlib
import time
from collections.abc import Iterable

from anpvs_tf.common.errors import UsageError, one_line
from anpvs_tf.methods.registry import METHODS
from anpvs_tf.reporting import measurements
from anpvs_tf.reporting.grouping import run_paths
from anpvs_tf.runs.directory import RunDirectory
from anpvs_tf.runs.finished_run import FinishedRun, open_run

_HEADS = [
    *("run", "dataset", "method", "seed", "state"),
    *("clean", "robust", "AutoAttack", "sparsity"),
    *("size", "age"),
]
_NOTHING = "-"


def text(paths: Iterable[str]) -> str:
    """Writes a table of the runs at `paths` and one level below, in the order of their paths.

    Raises:
        UsageError: a path that is no run directory and holds none.
    """
    found = {path.resolve(): path for path in run_paths(paths)}
    rows = [_HEADS, *(_row(path) for path in found.values())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _row(path: pathlib.Path) -> list[str]:
    directory = RunDirectory(path)
    files = [file for file in path.rglob("*") if file.is_file()]
    size = _size(sum(file.stat().st_size for file in files))
    age = _age(time.time() - max(file.stat().st_mtime for file in files))
    name = one_line(str(path))
    try:
        settings = directory.settings()
    except UsageError:
        return [name, *[_NOTHING] * 3, "damaged", *[_NOTHING] * 4, size, age]
    known = [name, one_line(settings.dataset), settings.method, str(settings.seed)]
    figures = [_NOTHING] * 4
    try:
        if directory.finished:
            state, figures = "finished", _figures(open_run(path))
        else:
            state = _unfinished(directory)
    except (UsageError, OSError, ValueError, LookupError, TypeError):
        state = "damaged"
    return [*known, state, *figures, size, age]


def _unfinished(directory: RunDirectory) -> str:
    if directory.in_use():
        return "running"
    rows = directory.metrics()
    return f"interrupted at epoch {rows[-1]['epoch'] if rows else 0}"


def _figures(run: FinishedRun) -> list[str]:
    auto = measurements.strongest_named(run, ("autoattack", "autoattack-rand"), "robust_accuracy")
    sparsity = measurements.sparsity(run) if METHODS[run.settings.method].prunes else None
    shares = [
        run.trained["clean_accuracy"],
        run.trained["robust_accuracy"],
        auto and auto.value,
        sparsity and sparsity.value,
    ]
    return [_NOTHING if share is None else f"{100 * share:.1f} %" for share in shares]


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _age(seconds: float) -> str:
    for name, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {name}"
    return f"{max(seconds, 0):.0f} s"
