"""A run with its trackers, over all processes that work on it.

A tracked run outlives a process: a resumed training, an evaluation and a report are shown in
the same one. So RUN/tracking.json has of each tracker, by its name, the `identity` of the tracked
run and the last of the `epochs` that it was shown. An epoch that is trained again after an
interruption is the same to the bit, and not shown again.
"""

import contextlib
import csv
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from anpvs_tf.common.errors import UsageError, one_line
from anpvs_tf.common.files import write_atomically
from anpvs_tf.runs.directory import RunDirectory
from anpvs_tf.runs.result_record import ResultRecord
from anpvs_tf.tracking import mlflow_runs, wandb_runs
from anpvs_tf.tracking.tracker import Tracker

if TYPE_CHECKING:
    import keras

# By the name of the package, which is that of the extra that installs it.
TRACKERS: dict[str, Callable[[], Tracker]] = {
    "wandb": wandb_runs.WandbRuns,
    "mlflow": mlflow_runs.MlflowRuns,
}


def named(names: Sequence[str]) -> tuple[Tracker, ...]:
    """Makes the trackers of names in `TRACKERS`.

    Raises:
        UsageError: a name is unknown or given twice.
    """
    for name in names:
        if name not in TRACKERS:
            raise UsageError(f"unknown tracker {name!r}; choose of {', '.join(TRACKERS)}")
    if len(set(names)) < len(names):
        raise UsageError("--track names a tracker twice")
    return tuple(TRACKERS[name]() for name in names)


def check(trackers: Sequence[Tracker]) -> None:
    """Checks that trackers can work, before anything is written.

    Raises:
        UsageError: a tracker cannot work, or its package is not installed.
    """
    for tracker in trackers:
        try:
            tracker.check()
        except ModuleNotFoundError as error:
            raise UsageError(
                f"--track={tracker.name} needs the package {error.name}: "
                f"pip install 'anpvs_tf[{tracker.name}]'"
            ) from error


class TrackedRun:
    """Tells trackers of one run. A tracker that fails is reported once, and is told no more.

    The failure does not end the program: the next process that tracks the run tells the tracker
    what it missed.

    Args:
        run: the run directory, whose config.json is written.
        trackers: to be told.

    Raises:
        UsageError: tracking.json is damaged.
    """

    def __init__(self, run: RunDirectory, trackers: Sequence[Tracker]):
        self.run = run
        self.listening = list(trackers)
        self.held: dict[str, dict[str, Any]] = _held(run) if trackers else {}

    def begin(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Begins to follow the run, with what the trackers have not been shown of it yet.

        Args:
            rows: of metrics.csv and timings.csv, of the epochs that are done.
        """
        settings = self.run.settings()
        for tracker in list(self.listening):
            held = self.held.setdefault(tracker.name, {"identity": None, "epochs": 0})
            with self._heard(tracker):
                held["identity"] = tracker.begin(self.run, settings, len(rows), held["identity"])
        self._keep()
        for row in rows:
            self.epoch(row, None, None)
        for record in self.run.results():
            self.result(record)

    def epoch(
        self,
        row: Mapping[str, Any],
        network: "keras.Model | None",
        examples: tuple[np.ndarray, np.ndarray] | None,
    ) -> None:
        """Tells the trackers of an epoch; arguments as of `Tracker.epoch`."""
        for tracker in list(self.listening):
            held = self.held[tracker.name]
            if row["epoch"] > held["epochs"]:
                with self._heard(tracker):
                    tracker.epoch(row, network, examples)
                    held["epochs"] = row["epoch"]
                self._keep()

    def result(self, record: ResultRecord) -> None:
        """Tells the trackers of a record of results.json."""
        for tracker in list(self.listening):
            with self._heard(tracker):
                tracker.result(record)

    def artifact(self, path: pathlib.Path) -> None:
        """Gives the trackers a file to keep with the run."""
        for tracker in list(self.listening):
            with self._heard(tracker):
                tracker.artifact(path)

    @contextlib.contextmanager
    def ended(self, finished: bool = False) -> Iterator[None]:
        """Tells the trackers when the block ends, and whether it did so without an exception."""
        try:
            yield
            finished = True
        finally:
            for tracker in list(self.listening):
                with self._heard(tracker):
                    tracker.end(finished)

    @contextlib.contextmanager
    def _heard(self, tracker: Tracker) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.listening.remove(tracker)
            print(
                f"warning: {tracker.name} failed ({one_line(error)}) and is not told more of "
                f"{self.run.path}; the next command that tracks the run tells what is missing (if "
                f"the tracked run was deleted: delete {self.run.tracking_path} first)",
                file=sys.stderr,
            )

    def _keep(self) -> None:
        if self.held:
            write_atomically(self.run.tracking_path, json.dumps(self.held, indent=2) + "\n")


@contextlib.contextmanager
def following(run: RunDirectory, trackers: Sequence[Tracker]) -> Iterator[TrackedRun]:
    """Follows a finished run, which the caller owns; the block may tell more of it.

    Raises:
        UsageError: tracking.json is damaged.
    """
    found = TrackedRun(run, trackers)
    with found.ended(finished=True):  # The run is, whatever becomes of the block.
        if trackers:
            found.begin(_rows(run))
        yield found


def _rows(run: RunDirectory) -> list[dict[str, Any]]:
    """Reads the rows of metrics.csv with those of timings.csv, as numbers."""
    timings = {}
    if run.timings_path.exists():
        with open(run.timings_path, newline="") as file:
            timings = {row["epoch"]: row for row in csv.DictReader(file)}
    rows = [row | timings.get(row["epoch"], {}) for row in run.metrics()]
    return [
        {name: int(value) if name == "epoch" else float(value) for name, value in row.items()}
        for row in rows
    ]


def _held(run: RunDirectory) -> dict[str, dict[str, Any]]:
    """Reads tracking.json; returns {} if the file does not exist.

    Raises:
        UsageError: tracking.json is damaged.
    """
    if not run.tracking_path.exists():
        return {}
    try:
        held = json.loads(run.tracking_path.read_text())
        return {
            name: {"identity": one["identity"], "epochs": int(one["epochs"])}
            for name, one in held.items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"{run.tracking_path} cannot be read ({one_line(error)}); delete it, and the run is "
            "tracked anew"
        ) from error
