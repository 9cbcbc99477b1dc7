"""Checkpoints of a run: all that a run needs to resume, in TensorFlow's format.

A checkpoint is written beside and renamed, its index last: it is there whole or not at
all. Later damage on the disk is found by the checksums that TensorFlow keeps of every
tensor; then the checkpoint before is used.
"""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import sys
import time
from typing import Any

import numpy as np
import tensorflow as tf

from anpvs_tf.common import lock
from anpvs_tf.common.errors import TrainingError, UsageError, one_line
from anpvs_tf.common.files import flush

KEPT = 2
# If more steps are left out, training makes no progress.
MOST_SKIPPED_IN_A_ROW = 10
MOST_SKIPPED = 100
_UNFINISHED = "unfinished"
# The errors of reading a damaged checkpoint, depending on where the damage is.
UNREADABLE = (tf.errors.OpError, OSError, ValueError, RuntimeError, LookupError)


@dataclasses.dataclass(eq=False)
class Position(tf.train.experimental.PythonState):
    """Where a run stands.

    Attributes:
        settings: of the run, as JSON has them.
        epoch: epochs that are done.
        step: steps that are done of the next.
        sums: {loss term: its sum over those steps but the skipped}.
        skipped: how many of those were left out, not being finite.
        skipped_before: how many in the epochs that are done.
        in_a_row: how many were, up to the last step.
        seconds: spent on those steps.
        rows, timings: of metrics.csv and timings.csv, one for each epoch that is done.
    """

    settings: dict[str, Any]
    epoch: int = 0
    step: int = 0
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    skipped: int = 0
    skipped_before: int = 0
    in_a_row: int = 0
    seconds: float = 0.0
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    timings: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def add(self, terms: dict[str, float]) -> None:
        """Counts a step that is done."""
        self.step += 1
        self.in_a_row = 0
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def skip(self) -> None:
        """Counts a step that was left out."""
        self.step += 1
        self.skipped += 1
        self.in_a_row += 1

    def too_many_skipped(self) -> str | None:
        """Says why no more steps may be left out, in words; None if they may."""
        if self.in_a_row >= MOST_SKIPPED_IN_A_ROW:
            return f"the {self.in_a_row}th step in a row"
        skipped = self.skipped_before + self.skipped
        return f"the {skipped}th step in all" if skipped >= MOST_SKIPPED else None

    def means(self) -> dict[str, float]:
        """Computes the loss terms' means over the steps that were not left out."""
        return {name: total / (self.step - self.skipped) for name, total in self.sums.items()}

    def end_epoch(self, row: dict[str, Any], timing: dict[str, Any]) -> None:
        """Counts an epoch that is done."""
        self.rows.append(row)
        self.timings.append(timing)
        self.skipped_before += self.skipped
        self.epoch, self.step, self.sums, self.skipped = self.epoch + 1, 0, {}, 0
        self.seconds = 0.0

    def __str__(self) -> str:
        return f"epoch {self.epoch}" + (f" and {self.step} steps" if self.step else "")

    def serialize(self) -> str:
        # JSON keeps every bit of a float.
        return json.dumps(dataclasses.asdict(self), default=np.generic.item)

    def deserialize(self, text: bytes) -> None:
        for name, value in json.loads(text).items():
            setattr(self, name, value)


class Checkpoints:
    """The checkpoints `ckpt-<number>` in a directory; the last good two are kept.

    Args:
        directory: where they lie.
        position: part of each.
        objects: everything else that a checkpoint holds, by name, as
            `tf.train.Checkpoint` takes it.
    """

    def __init__(self, directory: pathlib.Path, position: Position, **objects):
        self.directory = directory
        self.position = position
        self.objects = objects
        self.checkpoint = tf.train.Checkpoint(position=position, **objects)
        self.saved_at = time.monotonic()

    def numbers(self) -> list[int]:
        """Lists the numbers of the checkpoints that exist, increasing."""
        found = (re.fullmatch(r"ckpt-(\d+)\.index", path.name) for path in self._files())
        return sorted(int(match[1]) for match in found if match)

    def path(self, number: int) -> pathlib.Path:
        return self.directory / f"ckpt-{number}"

    def newest(self) -> str | None:
        """Returns the path of the last checkpoint, without its endings; None if there is none."""
        numbers = self.numbers()
        return str(self.path(numbers[-1])) if numbers else None

    def kept(self) -> str:
        """Names the checkpoint from which the run can resume."""
        newest = self.newest()
        return f"the last good checkpoint is {newest}" if newest else "no checkpoint exists yet"

    def minutes(self) -> float:
        """Returns the minutes since the last save or restore; before any, since the start."""
        return (time.monotonic() - self.saved_at) / 60

    def save(self) -> None:
        """Writes the next checkpoint, then deletes those before the last two.

        Raises:
            TrainingError: the checkpoint could not be written, or the directory is another
                process's by now; those before are as they were.
        """
        lock.check(self.directory)
        number = max(self.numbers(), default=0) + 1
        beside = self.directory / _UNFINISHED
        try:
            beside.mkdir(parents=True, exist_ok=True)
            self.checkpoint.write(str(beside / "ckpt"))
            lock.check(self.directory)  # Writing it may have taken long.
            # Without its index a checkpoint is not there: the index comes last.
            for part in sorted(beside.iterdir(), key=lambda path: path.suffix == ".index"):
                flush(part)
                os.replace(part, self.directory / part.name.replace("ckpt", f"ckpt-{number}"))
            flush(self.directory)
        except (OSError, tf.errors.OpError) as error:
            lock.check(self.directory)  # Or what is deleted here is another process's.
            for path in self.directory.glob(f"ckpt-{number}.*"):
                path.unlink()
            shutil.rmtree(beside, ignore_errors=True)
            raise TrainingError(
                f"no checkpoint of {self.position} could be written to {self.directory}: "
                f"{one_line(error)}; {self.kept()}; make room and give the same command to resume"
            ) from error
        for old in self.numbers()[:-KEPT]:
            self.path(old).with_suffix(".index").unlink()
        self._sweep()
        self.saved_at = time.monotonic()

    def restore(self, directory: pathlib.Path, number: int) -> None:
        """Reads a checkpoint of `directory`, where workers other than the chief do not save.

        Raises:
            UsageError: the checkpoint is not of this run as this version of the package trains it.
        """
        path, wanted = directory / f"ckpt-{number}", self.position.settings
        try:
            checkpoint = tf.train.Checkpoint(position=self.position, **self.objects)
            checkpoint.read(str(path)).assert_existing_objects_matched()
        except (AssertionError, TypeError, *UNREADABLE) as error:
            raise UsageError(
                f"checkpoint {path} is of another version of anpvs_tf, or of "
                "another network; start anew with --overwrite or another --run_dir"
            ) from error
        held = self.position.settings
        for name in sorted(set(held) & set(wanted)):
            if held[name] != wanted[name]:
                raise UsageError(
                    f"config.json says {name}={wanted[name]!r}, checkpoint {path} "
                    f"{name}={held[name]!r}: config.json was changed; set it right, or start "
                    "anew with --overwrite"
                )
        self.position.settings = wanted
        self.saved_at = time.monotonic()

    def good(self) -> int | None:
        """Returns the number of the newest checkpoint that can be read; None if none exists.

        Newer ones, which cannot be read, are renamed, with a warning.

        Raises:
            UsageError: checkpoints exist, and none can be read.
        """
        self._sweep()
        numbers = self.numbers()
        damage = []
        for number in reversed(numbers):
            path = self.path(number)
            try:
                verify(path)
            except UNREADABLE as error:
                damage.append(f"checkpoint {path} is damaged ({one_line(error)})")
                continue
            for bad in damage:
                print(f"warning: {bad}; resuming from {path.name}", file=sys.stderr)
            for newer in numbers[numbers.index(number) + 1 :]:
                for part in self.directory.glob(f"ckpt-{newer}.*"):
                    os.replace(part, part.with_name(f"damaged-{part.name}"))
            return number
        if damage:
            raise UsageError(
                f"{'; '.join(damage)}; no other is left: start anew with --overwrite or another "
                "--run_dir"
            )
        return None

    def _files(self) -> list[pathlib.Path]:
        return list(self.directory.iterdir()) if self.directory.exists() else []

    def _sweep(self) -> None:
        """Deletes the unfinished files of a process that died while saving."""
        shutil.rmtree(self.directory / _UNFINISHED, ignore_errors=True)
        numbers = self.numbers()
        for path in self._files():
            match = re.fullmatch(r"ckpt-(\d+)\.data.*", path.name)
            if match and int(match[1]) not in numbers:
                path.unlink()


def verify(path: pathlib.Path) -> None:
    """Reads every tensor of a checkpoint; TensorFlow compares each with its checksum.

    Raises:
        tf.errors.OpError, OSError, ValueError, RuntimeError or LookupError: it is damaged.
    """
    reader = tf.train.load_checkpoint(str(path))
    for name in reader.get_variable_to_shape_map():
        reader.get_tensor(name)
