"""The result of a sweep: its trials, the Pareto front, the trial to export."""

import json
import pathlib
import shlex
from typing import Any

from anpvs_tf.common.errors import UsageError
from anpvs_tf.reporting import pareto
from anpvs_tf.runs.finished_run import FinishedRun, open_run
from anpvs_tf.runs.settings import as_text
from anpvs_tf.tuning import score
from anpvs_tf.tuning.sweep import Sweep

# Directory of keras-tuner's files in that of the sweep.
TUNER = "tuner"
# The columns of the front, and whether more is better.
FRONT = {"clean": True, "robust": True, "sparsity": True, "latency": False}
_STATES = {"COMPLETED": "done", "FAILED": "failed", "INVALID": "failed", "RUNNING": "unfinished"}


def reason_path(path: pathlib.Path, trial_id: str) -> pathlib.Path:
    """Returns the path of the file where a worker says why a trial failed.

    keras-tuner does not tell the chief.
    """
    return path / TUNER / f"trial_{trial_id}" / "failure.txt"


def values(sweep: Sweep, drawn: dict[str, Any]) -> dict[str, Any]:
    """Returns the swept settings of a trial, and the epochs that hyperband gave it."""
    found = {name: one.value(drawn[name]) for name, one in sweep.space.swept.items()}
    return found | ({"epochs": drawn["tuner/epochs"]} if "tuner/epochs" in drawn else {})


def values_text(sweep: Sweep, drawn: dict[str, Any]) -> str:
    """Writes the swept settings of a trial as flags."""
    return " ".join(f"--{name}={as_text(value)}" for name, value in values(sweep, drawn).items())


def trials(sweep: Sweep) -> list[dict[str, Any]]:
    """Reads a row for each trial, by number, from the sweep's files.

    Each has name, values, state ("done", "failed" or "unfinished"), and reason if it failed.
    One that is done has clean, robust, sparsity, vulnerability (on validation), latency
    (seconds for one image, the compact network, on the machine that trained it), score,
    feasible, and front: whether no other trial is as good in all of `FRONT` and better in one.
    """
    rows = []
    for file in sorted((sweep.path / TUNER).glob("trial_*/trial.json")):
        held = json.loads(file.read_text())
        run = sweep.run_of(held["trial_id"])
        row = {
            "name": run.path.name,
            "values": values(sweep, held["hyperparameters"]["values"]),
            "state": _STATES[held["status"]],
        }
        if row["state"] == "failed":
            reason = reason_path(sweep.path, held["trial_id"])
            row["reason"] = reason.read_text().strip() if reason.exists() else "unknown"
        elif row["state"] == "done":
            try:
                row |= _figures(open_run(run.path))
            except (UsageError, OSError) as error:
                # One damaged trial must not hide the others.
                row |= {"state": "failed", "reason": str(error)}
            else:
                row["score"] = sweep.objective.score(row)
                row["feasible"] = sweep.objective.feasible(row)
        rows.append(row)
    rows.sort(key=lambda row: row["name"])
    done = [row for row in rows if row["state"] == "done"]
    learned = [row for row in done if not row["at_chance"]]
    for row in done:
        row["front"] = False
    for row, best in zip(learned, pareto.front([_merits(row) for row in learned]), strict=True):
        row["front"] = best
    return rows


def _figures(run: FinishedRun) -> dict[str, float]:
    compact = run.trained["efficiency"]["measured"]["compact"]
    found = score.validation_figures(run) | {"latency": compact["latency"]["1"]}
    return found | {"at_chance": run.at_chance}


def _merits(row: dict[str, Any]) -> tuple[float, ...]:
    return tuple(row[name] if more else -row[name] for name, more in FRONT.items())


def chosen(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Finds the trial with the best score; None if none is done, or all are at chance."""
    done = [row for row in rows if row["state"] == "done" and not row["at_chance"]]
    return max(done, key=lambda row: row["score"], default=None)


def write(sweep: Sweep, finished: bool = False) -> None:
    """Updates sweep.json with the trials that the sweep's files hold now."""
    rows = trials(sweep)
    best = chosen(rows)
    sweep.write(
        {
            "finished": finished,
            "trials": rows,
            "front": [row["name"] for row in rows if row.get("front")],
            "chosen": best and best["name"],
        }
    )


def text(sweep: Sweep) -> str:
    """Writes the lines that end a sweep: trials, front, how to export the chosen trial."""
    rows = trials(sweep)
    if not rows:
        return f"{sweep.path} holds no trial yet"
    names = list(rows[0]["values"])
    figures = ["clean", "robust"]
    if any(row.get("sparsity") for row in rows):
        figures.append("sparsity")
    lines = [["trial", *names, *figures, "ms", "score", "front", "state"]]
    for row in rows:
        line = [row["name"], *(as_text(row["values"][name]) for name in names)]
        if row["state"] == "done":
            line += [f"{row[name]:.1%}" for name in figures]
            line += [f"{1e3 * row['latency']:.2f}", f"{row['score']:.4f}"]
            state = "done, but clean accuracy is not above chance" if row["at_chance"] else "done"
            line += ["*" if row["front"] else "", state]
        else:
            state = ": ".join(filter(None, [row["state"], row.get("reason")]))
            line += [*[""] * (len(figures) + 3), state]
        lines.append(line)
    widths = [max(map(len, column)) for column in list(zip(*lines, strict=True))[:-1]]
    printed = [
        "  ".join([*(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=False)), line[-1]])
        for line in lines
    ]
    printed += [
        f"{', '.join(figures)}: on the validation split; ms: one image, compact network; score: "
        f"{sweep.definition.objective}; front *: no other trial is as good in "
        f"{', '.join(figures)} and ms"
    ]
    best = chosen(rows)
    if best is None:
        return "\n".join([*printed, "No trial is done whose network is above chance"])
    kept = "" if best["feasible"] else f" (no trial keeps {sweep.definition.objective}; nearest)"
    path = sweep.path / best["name"]
    export = ["python", "bin/export.py", f"--run_dir={path}", f"--export_base=exports/{path.name}"]
    return "\n".join(
        [*printed, f"Best score: {best['name']}{kept}; to export it:", shlex.join(export)]
    )
