"""The protocol between a run and the trackers that show it while it trains."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from anpvs_tf.attacks import radius
from anpvs_tf.runs import records
from anpvs_tf.runs.directory import RunDirectory
from anpvs_tf.runs.result_record import ResultRecord
from anpvs_tf.runs.settings import Settings

if TYPE_CHECKING:
    import keras

_GROUPS = {"validation": "validation", "active": "active_features"}
_PLAIN = ("sparsity", "seconds", "images_per_second")
_FIGURES = (
    "clean_accuracy",
    "robust_accuracy",
    "accuracy_under_attack",
    "vulnerability",
    "sparsity",
    "weight_sparsity",
)


class Tracker:
    """Shows a run elsewhere. A subclass overrides the methods that it needs.

    In this class each does nothing. For one run, `begin` comes first and `end` last; one object
    may follow several runs, one after another.

    Attributes:
        name: of the kind of tracker, unique among those of a run.
    """

    name = ""

    def check(self) -> None:
        """Checks that runs can be tracked, before anything is written.

        Raises:
            UsageError: runs cannot be tracked; the message says what to do.
        """

    def begin(
        self, run: RunDirectory, settings: Settings, epoch: int, identity: str | None
    ) -> str | None:
        """Begins to follow a run, or resumes its tracked run.

        Args:
            run: the run directory.
            settings: of the run.
            epoch: epochs that are done.
            identity: that `begin` returned when this run was first tracked; None if it was not yet.

        Returns:
            The identity by which the tracked run is found again, kept in the run directory; None
            if the tracker needs none.
        """

    def epoch(
        self,
        row: Mapping[str, Any],
        network: "keras.Model | None",
        examples: tuple[np.ndarray, np.ndarray] | None,
    ) -> None:
        """Shows an epoch.

        Args:
            row: of metrics.csv and timings.csv.
            network: as it is evaluated; None for an epoch of an earlier process.
            examples: a few images [n, height, width, channels] in [0, 1], clean and attacked;
                None for an epoch of an earlier process.
        """

    def result(self, record: ResultRecord) -> None:
        """Shows a record of results.json."""

    def artifact(self, path: pathlib.Path) -> None:
        """Keeps a file with the run."""

    def end(self, finished: bool) -> None:
        """Ends the work of this process on the run.

        Args:
            finished: whether the process did all its work; if not, the run may be resumed later.
        """


def tag(name: str) -> str:
    """Makes the trackers' name of a column of metrics.csv or timings.csv, grouped by its kind."""
    group, _, rest = name.partition("_")
    if group in _GROUPS:
        return f"{_GROUPS[group]}/{rest}"
    return name if name in _PLAIN else f"loss/{name}"


def curves(row: Mapping[str, Any]) -> dict[str, float]:
    """Returns the values of an epoch, by the `tag` of their columns."""
    return {tag(name): value for name, value in row.items() if name not in ("epoch", "step")}


def figures(record: ResultRecord) -> dict[str, float]:
    """Returns the results of a record, each by a name that says how it was measured.

    Such a name is "test/pgd 40 steps of 0.01 1 start linf 0.3 1000 images/robust_accuracy": of
    letters, digits, spaces, "_", "-", "." and "/", which all trackers take.
    """
    threat, attack = record["threat_model"], records.attack_text(record["attack"])
    radius_text = radius.as_text(threat["epsilon"])
    measured = f"{attack} {threat['norm']} {radius_text} {record['examples']} images"
    # What else `records.merged` tells measurements apart by.
    for source in record["attack"].get("sources", ()):
        measured += f" from {source}"
    if "posterior_draws" in record:
        measured += f" {record['posterior_draws']} posterior draws"
    if record.get("attack_seed"):
        measured += f" seed {record['attack_seed']}"
    measured = re.sub(r"[^\w.\- ]", "", measured.replace("(s)", "").replace("/", "_"))
    found = {name: record.get(name) for name in _FIGURES}
    return {
        f"{record['split']}/{measured}/{name}": value
        for name, value in found.items()
        if value is not None
    }


def hyperparameters(settings: Settings) -> dict[str, bool | int | float | str]:
    """Makes a table of plain values of the settings that are not None."""
    found = {}
    for name, value in dataclasses.asdict(settings).items():
        if isinstance(value, tuple):
            value = ",".join(map(str, value))
        if value is not None:
            found[name] = value
    return found
