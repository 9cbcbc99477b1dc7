"""Runs in MLflow, by its own client and under its own environment variables."""

import os
import pathlib
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from anpvs_tf.common.errors import UsageError, one_line
from anpvs_tf.runs.directory import RunDirectory
from anpvs_tf.runs.result_record import ResultRecord
from anpvs_tf.runs.settings import Settings
from anpvs_tf.tracking.tracker import Tracker, curves, figures, hyperparameters

if TYPE_CHECKING:
    import keras

EXPERIMENT = "anpvs_tf"
# MLflow would ask a server that is away for more than four minutes, with training waiting.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
# As many as a server takes in one request.
_PARAMETERS = 100


class MlflowRuns(Tracker):
    """Shows settings, curves by epoch and results as a run of MLflow.

    An epoch is a step.
    """

    name = "mlflow"

    def check(self) -> None:
        for variable, value in _PATIENCE.items():
            os.environ.setdefault(variable, value)
        from mlflow import MlflowClient

        try:
            MlflowClient().search_experiments(max_results=1)
        except Exception as error:
            raise UsageError(
                f"--track=mlflow: {one_line(error)}; MLFLOW_TRACKING_URI says where it writes"
            ) from error

    def begin(
        self, run: RunDirectory, settings: Settings, epoch: int, identity: str | None
    ) -> str | None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self.client = MlflowClient()
        self.id = identity
        if identity is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
            found = self.client.get_experiment_by_name(name)
            experiment = found.experiment_id if found else self.client.create_experiment(name)
            made = self.client.create_run(experiment, run_name=run.path.absolute().name)
            self.id = made.info.run_id
        else:
            self.client.update_run(self.id, status="RUNNING")
        parameters = [Param(name, str(v)) for name, v in hyperparameters(settings).items()]
        for first in range(0, len(parameters), _PARAMETERS):
            self.client.log_batch(self.id, params=parameters[first : first + _PARAMETERS])
        return self.id

    def epoch(
        self,
        row: Mapping[str, Any],
        network: "keras.Model | None",
        examples: tuple[np.ndarray, np.ndarray] | None,
    ) -> None:
        self._log(curves(row), row["epoch"])

    def result(self, record: ResultRecord) -> None:
        self._log(figures(record), 0)

    def _log(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        found = [Metric(name, float(value), now, step) for name, value in values.items()]
        self.client.log_batch(self.id, metrics=found)

    def artifact(self, path: pathlib.Path) -> None:
        self.client.log_artifact(self.id, str(path))

    def end(self, finished: bool) -> None:
        self.client.set_terminated(self.id, "FINISHED" if finished else "KILLED")
