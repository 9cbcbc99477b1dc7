"""Shows a run in TensorBoard while it trains, and a sweep of runs.

Scalars: loss terms, validation, active features, speed. Histograms: each gate's
probability or importance, and its mask. Images: examples of the validation split, clean,
attacked, and their difference. HParams: the settings beside the validation results.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.plugins.hparams import api

from anpvs_tf.networks.gate import gates_of
from anpvs_tf.runs.directory import RunDirectory
from anpvs_tf.runs.settings import Settings
from anpvs_tf.tracking.tracker import Tracker, curves, hyperparameters

# Metrics of the HParams plugin: tags of scalars, and their names there.
METRICS = {
    "validation/clean_accuracy": "clean accuracy",
    "validation/robust_accuracy": "robust accuracy",
    "validation/vulnerability": "vulnerability",
    "sparsity": "sparsity",
}


class Board(Tracker):
    """Writes the event files of a run, an epoch at a time.

    Events that an interrupted process wrote of epochs that are not done are taken back, so that
    every epoch is shown once.
    """

    name = "tensorboard"

    def begin(
        self, run: RunDirectory, settings: Settings, epoch: int, identity: str | None
    ) -> str | None:
        directory = run.tensorboard
        known = set(directory.glob("*tfevents*"))
        self.writer = tf.summary.create_file_writer(str(directory))
        (events,) = set(directory.glob("*tfevents*")) - known
        # From the second such event of a directory on, TensorBoard drops what came before it
        # with this step or a later one. In a file of its own, whose name sorts just before.
        log = SessionLog(status=SessionLog.START)
        with tf.io.TFRecordWriter(str(events.with_suffix(".v1"))) as start:
            start.write(Event(file_version="brain.Event:2").SerializeToString())
            start.write(Event(step=epoch + 1, session_log=log).SerializeToString())
        with self.writer.as_default(step=epoch):
            api.hparams(hyperparameters(settings), trial_id=run.path.absolute().name)
        self.writer.flush()
        return None

    def epoch(
        self,
        row: Mapping[str, Any],
        network: keras.Model,
        examples: tuple[np.ndarray, np.ndarray],
    ) -> None:
        with self.writer.as_default(step=row["epoch"]):
            for name, value in curves(row).items():
                tf.summary.scalar(name, value)
            for gate in gates_of(network):
                tf.summary.histogram(f"importance/{gate.name}", gate.importance())
                tf.summary.histogram(f"mask/{gate.name}", gate.mean_mask())
            clean, attacked = examples
            shown = len(clean)
            tf.summary.image("example/1 clean", clean, max_outputs=shown)
            tf.summary.image("example/2 attacked", attacked, max_outputs=shown)
            tf.summary.image("example/3 difference", difference(*examples), max_outputs=shown)
        self.writer.flush()


def difference(clean: np.ndarray, attacked: np.ndarray) -> np.ndarray:
    """Scales attacked - clean to images: 0 is grey, each image's largest change black or white."""
    moved = attacked - clean
    largest = np.max(np.abs(moved), axis=(1, 2, 3), keepdims=True)
    return 0.5 + 0.5 * moved / np.maximum(largest, np.finfo(np.float32).tiny)


def write_experiment(directory: str | os.PathLike, swept: Iterable[str]) -> None:
    """Writes the hyperparameters and metrics by which the runs beside `directory` are compared."""
    with tf.summary.create_file_writer(str(directory)).as_default(step=0):
        api.hparams_config(
            hparams=[api.HParam(name) for name in swept],
            metrics=[api.Metric(name, display_name=shown) for name, shown in METRICS.items()],
        )
