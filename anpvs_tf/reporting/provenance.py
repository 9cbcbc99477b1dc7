"""The sections of the page that say where its values come from and how far to trust them."""

import dataclasses
from typing import Any

from anpvs_tf.attacks import radius
from anpvs_tf.methods.registry import METHODS
from anpvs_tf.reporting import commands
from anpvs_tf.reporting.grouping import varying
from anpvs_tf.runs.finished_run import FinishedRun
from anpvs_tf.runs.settings import as_text, used


@dataclasses.dataclass(frozen=True)
class Checked:
    """The self-checks of a run in a threat model.

    Attributes:
        made: how many there were.
        failed: those that failed, as records hold them: name, meaning, found.
    """

    path: str
    threat: str
    made: int
    failed: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run and the command that trained it; `own`: the settings that differ between runs."""

    path: str
    method: str
    seed: int
    command: str
    own: str


def checked(runs: list[FinishedRun]) -> list[Checked]:
    """Lists the self-checks of bin/evaluate.py, by run and threat model."""
    return [
        Checked(
            run.path,
            f"{threat['norm']}, ε\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}"
            f"{radius.as_text(threat['epsilon'])}",
            len(made),
            [check for check in made if not check["passed"]],
        )
        for run in runs
        for threat, made in _checks(run)
    ]


def unchecked(runs: list[FinishedRun]) -> list[str]:
    """Lists the paths of the runs without self-checks."""
    return [run.path for run in runs if not _checks(run)]


def _checks(run: FinishedRun) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Lists (threat model, checks) of each evaluation that made checks."""
    found = []
    for record in run.evaluations:
        one = record["threat_model"], record.get("checks")
        if one[1] and one not in found:
            found.append(one)
    return found


def runs(runs: list[FinishedRun]) -> list[Trained]:
    """Lists every run with the command that trained it."""
    settings = [dataclasses.asdict(run.settings) for run in runs]
    varied = [n for n in varying(settings) if n not in ("method", "seed", "base_run")]
    return [
        Trained(
            run.path,
            run.settings.method,
            run.settings.seed,
            commands.training(run),
            ", ".join(
                f"{name}={as_text(getattr(run.settings, name))}"
                for name in varied
                if used(METHODS[run.settings.method], name)
            ),
        )
        for run in runs
    ]


def versions(runs: list[FinishedRun]) -> list[str]:
    """Lists the packages behind the runs, each combination once."""
    found = (
        ", ".join(f"{name} {number}" for name, number in run.trained["versions"].items())
        for run in runs
    )
    return list(dict.fromkeys(found))
