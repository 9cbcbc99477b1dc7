"""What TensorBoard shows of a run while it trains, and of a sweep of runs.

Scalars: loss terms, validation, active features, speed. Histograms: each gate's
probability or importance, and its mask. Images: examples of the validation split, clean,
attacked, and their difference. HParams: the settings beside the validation figures.
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.plugins.hparams import api

from anpvs_tf.networks.gate import gates_of
from anpvs_tf.runs.settings import Settings

# Figures of the HParams plugin: tags of scalars, and their names there.
METRICS = {
    "validation/clean_accuracy": "clean accuracy",
    "validation/robust_accuracy": "robust accuracy",
    "validation/vulnerability": "vulnerability",
    "sparsity": "sparsity",
}
_GROUPS = {"validation": "validation", "active": "active_features"}
_PLAIN = ("sparsity", "seconds", "images_per_second")


class Board:
    """Writes a run's directory of event files, an epoch at a time.

    Args:
        directory: where.
        settings: of the run.
        epoch: epochs that are done. Events that an interrupted process wrote of later ones are
            taken back, so that each is there once.
    """

    def __init__(self, directory: pathlib.Path, settings: Settings, epoch: int):
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
            api.hparams(hyperparameters(settings), trial_id=_name(directory))
        self.writer.flush()

    def write(
        self,
        row: Mapping[str, Any],
        network: keras.Model,
        examples: tuple[np.ndarray, np.ndarray],
    ) -> None:
        """Writes an epoch.

        Args:
            row: of metrics.csv and timings.csv.
            network: as it is evaluated.
            examples: a few images [n, height, width, channels] in [0, 1], clean and attacked.
        """
        with self.writer.as_default(step=row["epoch"]):
            for name, value in row.items():
                if name not in ("epoch", "step"):
                    tf.summary.scalar(tag(name), value)
            for gate in gates_of(network):
                tf.summary.histogram(f"importance/{gate.name}", gate.importance())
                tf.summary.histogram(f"mask/{gate.name}", gate.mean_mask())
            clean, attacked = examples
            shown = len(clean)
            tf.summary.image("example/1 clean", clean, max_outputs=shown)
            tf.summary.image("example/2 attacked", attacked, max_outputs=shown)
            tf.summary.image("example/3 difference", difference(*examples), max_outputs=shown)
        self.writer.flush()


def tag(name: str) -> str:
    """The tag of a column of metrics.csv or timings.csv, in one group with its kind."""
    group, _, rest = name.partition("_")
    if group in _GROUPS:
        return f"{_GROUPS[group]}/{rest}"
    return name if name in _PLAIN else f"loss/{name}"


def difference(clean: np.ndarray, attacked: np.ndarray) -> np.ndarray:
    """attacked - clean as images: grey is 0, black and white are the largest, in each image."""
    moved = attacked - clean
    largest = np.max(np.abs(moved), axis=(1, 2, 3), keepdims=True)
    return 0.5 + 0.5 * moved / np.maximum(largest, np.finfo(np.float32).tiny)


def hyperparameters(settings: Settings) -> dict[str, bool | int | float | str]:
    """The settings as the HParams plugin takes them."""
    found = {}
    for name, value in dataclasses.asdict(settings).items():
        if isinstance(value, tuple):
            value = ",".join(map(str, value))
        if value is not None:
            found[name] = value
    return found


def write_experiment(directory: str | os.PathLike, swept: Iterable[str]) -> None:
    """Says which hyperparameters and figures the runs beside `directory` are compared by."""
    with tf.summary.create_file_writer(str(directory)).as_default(step=0):
        api.hparams_config(
            hparams=[api.HParam(name) for name in swept],
            metrics=[api.Metric(name, display_name=shown) for name, shown in METRICS.items()],
        )


def _name(directory: pathlib.Path) -> str:
    """The run's name: that of the directory that holds `directory`."""
    return directory.absolute().parent.name
