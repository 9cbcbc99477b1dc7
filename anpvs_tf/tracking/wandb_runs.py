"""Runs in Weights & Biases, by its own client and under its own environment variables."""

import os
import pathlib
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

PROJECT = "anpvs_tf"


class WandbRuns(Tracker):
    """Shows settings, curves by epoch and results as a run of Weights & Biases.

    An epoch is a step. Online, the client itself waits for a network that is away.
    """

    name = "wandb"

    def check(self) -> None:
        import wandb

        try:
            if wandb.setup().settings.mode not in ("offline", "disabled", "dryrun"):
                wandb.login(verify=True)
        except Exception as error:
            raise UsageError(
                f"--track=wandb: {one_line(error)} Or set WANDB_MODE=offline"
            ) from error

    def begin(
        self, run: RunDirectory, settings: Settings, epoch: int, identity: str | None
    ) -> str | None:
        import wandb

        self.tracked = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.path.absolute().name,
            id=identity,
            resume="allow",
            config=hyperparameters(settings),
            # The program's own output stays as it is.
            settings=wandb.Settings(console="off"),
        )
        return self.tracked.id

    def epoch(
        self,
        row: Mapping[str, Any],
        network: "keras.Model | None",
        examples: tuple[np.ndarray, np.ndarray] | None,
    ) -> None:
        self.tracked.log(curves(row), step=row["epoch"])

    def result(self, record: ResultRecord) -> None:
        self.tracked.summary.update(figures(record))

    def artifact(self, path: pathlib.Path) -> None:
        import wandb

        kept = wandb.Artifact(f"{path.stem}-{self.tracked.id}", type=path.stem)
        kept.add_file(str(path))
        self.tracked.log_artifact(kept)

    def end(self, finished: bool) -> None:
        self.tracked.finish(exit_code=0 if finished else 1)
