"""The run directory: the contract between the program that trains and all others.

config.json              every setting, resolved; package versions; the command
network.keras            of a network of the user's: a copy of the file that it is made from
metrics.csv              a row an epoch
timings.csv              how long each took
SHA256SUMS               of the files of a finished run
results.json             a list of evaluation records; present when training is finished
evaluation/              the state of each example in bin/evaluate.py, a file an attack
checkpoints/             the last two training states
checkpoints/network.weights.h5   the finished network's weights
tensorboard/
tracking.json            by what trackers find the run again, if it is tracked (`tracking`)
nonfinite/               batches whose loss or gradient was not finite, if there were any
"""

import contextlib
import csv
import dataclasses
import datetime
import importlib.metadata
import io
import json
import os
import pathlib
import shutil
from typing import TYPE_CHECKING, Any

from anpvs_tf import __version__
from anpvs_tf.common import lock
from anpvs_tf.common.errors import UsageError, one_line
from anpvs_tf.common.files import check_directory, replace_atomically, write_atomically
from anpvs_tf.data.sources import file_name
from anpvs_tf.networks.names import is_file
from anpvs_tf.runs import checksums
from anpvs_tf.runs.resolution import validated, version_of
from anpvs_tf.runs.result_record import ResultRecord
from anpvs_tf.runs.settings import FIELDS, Settings

if TYPE_CHECKING:
    import keras


# The values of settings that runs of earlier versions do not have.
_BEFORE = {n: f.metadata["before"] for n, f in FIELDS.items() if "before" in f.metadata}


def versions() -> dict[str, str]:
    """Returns the versions of the packages that decide a result."""
    packages = ("tensorflow", "keras", "tensorflow-probability", "tensorflow-datasets")
    packages += ("scikit-learn", "numpy")
    found = {package: importlib.metadata.version(package) for package in packages}
    return {"anpvs_tf": __version__} | found


def now() -> str:
    """Returns the time as ISO 8601, UTC, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def default_name(settings: Settings) -> str:
    """Makes `<dataset>-<network>-<method>-seed<seed>`; a width but 1 is `<network>x<width>`."""
    width = "" if settings.width == 1 else f"x{settings.width:g}"
    network = f"{file_name(settings.network)}{width}"
    return f"{file_name(settings.dataset)}-{network}-{settings.method}-seed{settings.seed}"


class RunDirectory:
    """Paths and files of a run. Creating the object touches nothing on disk."""

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self.network_path = self.path / "network.keras"
        self.config_path = self.path / "config.json"
        self.metrics_path = self.path / "metrics.csv"
        self.timings_path = self.path / "timings.csv"
        self.results_path = self.path / "results.json"
        self.checkpoints = self.path / "checkpoints"
        self.nonfinite = self.path / "nonfinite"
        self.tensorboard = self.path / "tensorboard"
        self.tracking_path = self.path / "tracking.json"
        self.weights_path = self.checkpoints / "network.weights.h5"

    @property
    def finished(self) -> bool:
        return self.results_path.exists()

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return any(self.checkpoints.glob("ckpt-*.index"))

    def check_place(self) -> None:
        """Raises UsageError unless the directory can be written, or made."""
        check_directory(self.path, f"run directory {self.path}", "--run_dir")

    def check(self, settings: Settings, overwrite: bool = False) -> None:
        """Raises UsageError unless a run with these settings can begin or resume here.

        Args:
            overwrite: a run of other settings may be here; it will be deleted.
        """
        self.check_place()
        if self.config_path.exists():
            if overwrite:
                return
            held = self.settings()
            different = [
                f"{field.name}={before!r} (now {now!r})"
                for field in dataclasses.fields(Settings)
                if (before := getattr(held, field.name)) != (now := getattr(settings, field.name))
            ]
            if different:
                raise UsageError(
                    f"run directory {self.path} holds a run of other settings: "
                    f"{', '.join(different)}; choose another --run_dir, or --overwrite "
                    "to start anew"
                )
        elif self.path.is_dir() and not self._empty():
            raise UsageError(
                f"run directory {self.path} is not empty and holds no run; choose another --run_dir"
            )

    def _empty(self) -> bool:
        """Says whether the directory is empty, but for what a process left that died in `begin`."""
        found = [
            path
            for path in self.path.iterdir()
            if not (path.match(".tmp-*-config.json") or lock.is_part(path))
        ]
        return found in ([], [self.checkpoints]) and not any(self.checkpoints.glob("*"))

    def clear(self) -> None:
        """Deletes the run, and nothing else that may lie in its directory."""
        self.check_owned()
        self.results_path.unlink(missing_ok=True)  # First: half a run must not look finished.
        for directory in (
            self.checkpoints,
            self.tensorboard,
            self.nonfinite,
            self.path / "evaluation",
        ):
            if directory.exists():
                shutil.rmtree(directory)
        sums = self.path / checksums.NAME
        tables = (self.metrics_path, self.timings_path, self.tracking_path)
        for path in (sums, *tables, self.config_path, self.network_path):
            path.unlink(missing_ok=True)

    def owned(self) -> contextlib.AbstractContextManager[None]:
        """Locks the directory against other processes, as `common.lock.owned`."""
        return lock.owned(self.path, "--run_dir")

    def check_owned(self, look: bool = True) -> None:
        """Raises LockLost if this process owned the directory and has lost it (`lock.check`)."""
        lock.check(self.path, look)

    def in_use(self) -> bool:
        """Says whether a process holds the lock of `owned`."""
        return lock.in_use(self.path)

    def begin(
        self,
        settings: Settings,
        command: list[str],
        base: str | None = None,
        trained_on: dict[str, str] | None = None,
        network_file: pathlib.Path | None = None,
    ) -> None:
        """Writes config.json and the copy of the network's file, if they are not there yet.

        Args:
            command: the command line.
            base: the run whose weights training starts from.
            trained_on: the machine and the software, where the trainer did not train it.
            network_file: that the network is made from, as `network_file` returns it.
        """
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        if not self.config_path.exists():
            config = {
                "settings": dataclasses.asdict(settings),
                "versions": versions(),
                "command": command,
                "warm_start": base,
                "date": now(),
            }
            if trained_on is not None:
                config["trained_on"] = trained_on
            write_atomically(self.config_path, json.dumps(config, indent=2) + "\n")
        if network_file is not None and not self.network_path.exists():
            replace_atomically(self.network_path, lambda to: shutil.copyfile(network_file, to))

    def network_file(
        self, settings: Settings, given: str | os.PathLike | None = None, anew: bool = False
    ) -> pathlib.Path | None:
        """Finds the network's file: the run's copy, else `given`; None for a named network.

        Args:
            anew: the run here will be deleted.

        Raises:
            UsageError: no such file, or one of other content than the settings say.
        """
        if not is_file(settings.network):
            return None
        copied = self.network_path.exists()
        if anew and copied and given is not None and self.network_path.samefile(given):
            raise UsageError(
                f"--network={given} is in the run that --overwrite deletes; copy it elsewhere first"
            )
        if given is None and (anew or not copied):
            raise UsageError(
                f"{self.network_path} is missing; give --network={settings.network} again, by its "
                "path"
            )
        file = self.network_path if copied and not anew else pathlib.Path(given)
        try:
            version = version_of(file)
        except OSError as error:
            raise UsageError(f"{file} cannot be read: {error.strerror}") from error
        if version != settings.network_version:
            raise UsageError(
                f"{file} is not the {settings.network} that the run is of: it is damaged or was "
                "changed"
            )
        return file

    def settings(self) -> Settings:
        """Reads the settings in config.json.

        Raises:
            UsageError: no readable config.json of this version of the package.
        """
        try:
            return validated(_BEFORE | json.loads(self.config_path.read_text())["settings"])
        except UsageError as error:
            raise UsageError(f"{self.config_path} cannot be used: {error}") from error
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise UsageError(
                f"{self.path} holds no readable config.json: {one_line(error)}"
            ) from error

    def metrics(self) -> list[dict[str, str]]:
        """Reads the rows of metrics.csv, as text."""
        if not self.metrics_path.exists():
            return []
        with open(self.metrics_path, newline="") as file:
            return list(csv.DictReader(file))

    def write_metrics(self, rows: list[dict[str, Any]], timings: list[dict[str, Any]]) -> None:
        """Replaces metrics.csv and timings.csv."""
        for path, table in ((self.metrics_path, rows), (self.timings_path, timings)):
            text = io.StringIO()
            writer = csv.DictWriter(text, table[0] if table else (), lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)
            write_atomically(path, text.getvalue())

    def results(self) -> list[ResultRecord]:
        """Reads the records of results.json; none before the run is finished.

        Raises:
            UsageError: a file of the finished run is damaged.
        """
        if not self.finished:
            return []
        checksums.check(self.path)
        try:
            held = json.loads(self.results_path.read_text())
            if not isinstance(held, list) or not all(isinstance(one, dict) for one in held):
                raise ValueError("it is no list of records")
            return held
        except (OSError, ValueError, RecursionError) as error:
            raise UsageError(f"{self.results_path} cannot be read: {one_line(error)}") from error

    def write_results(self, records: list[ResultRecord]) -> None:
        """Replaces results.json, which marks the run as finished."""
        text = json.dumps(records, indent=2) + "\n"
        if not self.config_path.exists():  # Evaluations of a model that was not trained here.
            write_atomically(self.results_path, text)
            return
        written = (self.config_path, self.metrics_path, self.timings_path, self.weights_path)
        written += (self.network_path,)
        if self.finished:
            sums = checksums.read(self.path)
        else:
            sums = {
                str(path.relative_to(self.path)): [checksums.digest(path.read_bytes())]
                for path in written
                if path.exists()
            }
        # At every moment the sums are right for the files that exist.
        name, path = self.results_path.name, self.path / checksums.NAME
        sums[name] = [*sums.get(name, []), checksums.digest(text.encode())]
        write_atomically(path, checksums.text(sums))
        write_atomically(self.results_path, text)
        write_atomically(path, checksums.text(sums | {name: sums[name][-1:]}))

    def write_weights(self, network: "keras.Model") -> None:
        """Saves the finished network's weights, written beside and renamed.

        Raises:
            TrainingError: they could not be written.
        """
        replace_atomically(self.weights_path, network.save_weights)
