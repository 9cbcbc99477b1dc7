"""A finished run: opened once, checked once, and handed on."""

import dataclasses
import json
import os
from typing import TYPE_CHECKING

from anpvs_tf.common.errors import UsageError, one_line
from anpvs_tf.runs import records
from anpvs_tf.runs.directory import RunDirectory
from anpvs_tf.runs.result_record import ResultRecord
from anpvs_tf.runs.settings import Settings

if TYPE_CHECKING:
    import keras


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """The files of a finished run, as `open_run` found them.

    Attributes:
        command: the command line that trained it; empty if it was trained from Python.
        trained: the record of bin/train.py.
        evaluations: the records of bin/evaluate.py on test images, oldest first.
        metrics: a row an epoch, values as numbers.
    """

    directory: RunDirectory
    settings: Settings
    command: list[str]
    trained: ResultRecord
    evaluations: list[ResultRecord]
    metrics: list[dict[str, float]]

    @property
    def path(self) -> str:
        return str(self.directory.path)

    @property
    def records(self) -> list[ResultRecord]:
        return [self.trained, *self.evaluations]

    @property
    def at_chance(self) -> bool:
        """Whether its clean accuracy is not above that of a constant answer."""
        return "at_chance" in self.trained

    def network(self) -> "keras.Model":
        """Loads the network, in float32, as it is evaluated.

        Raises:
            UsageError: the file of its weights is gone.
        """
        weights = self.directory.weights_path
        if not weights.exists():
            raise UsageError(f"{weights} does not exist; train the run anew with --overwrite")
        # It imports TensorFlow, which takes seconds; reading a run's files must not.
        from anpvs_tf.runs import build

        file = self.directory.network_file(self.settings)
        network = build.build_network(self.settings, "float32", file)
        network.load_weights(weights)
        return network


def open_run(path: str | os.PathLike) -> FinishedRun:
    """Reads a finished run and checks its files against their sums.

    Raises:
        UsageError: no run, one that is not finished, or one with a damaged file.
    """
    directory = RunDirectory(path)
    settings = directory.settings()
    if not directory.finished:
        raise UsageError(f"run {directory.path} is not finished; resume it with bin/train.py")
    held = directory.results()
    try:
        command = json.loads(directory.config_path.read_text()).get("command") or []
        metrics = [
            {name: float(value) for name, value in row.items() if value}
            for row in directory.metrics()
        ]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"files of {directory.path} cannot be used: {one_line(error)}") from error
    trained = [record for record in held if records.of_training(record)]
    if not trained:
        raise UsageError(f"{directory.results_path} has no record of bin/train.py")
    evaluations = [record for record in held if not records.of_training(record)]
    evaluations = [record for record in evaluations if record["split"] == "test"]
    return FinishedRun(directory, settings, command, trained[-1], evaluations, metrics)
