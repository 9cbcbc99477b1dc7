"""How a run is carried out: devices, checkpoints, steps that are not finite."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator

from anpvs_tf.common.devices import Devices, local
from anpvs_tf.runs.directory import RunDirectory
from anpvs_tf.tracking.tracker import Tracker


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a run is carried out.

    It decides nothing of the result, and may change when the run is resumed.

    Attributes:
        devices: what to train on.
        checkpoint_minutes: save within an epoch too, after this time.
        on_nonfinite: one of `nonfinite.ACTIONS` at a loss or gradient that is not finite: stop,
            or skip the step.
        trackers: to be told of the run by the chief; `Tracker.check` finds out whether they can.
        following: the work of the run that is trained after this one, if this is its warm start.
    """

    devices: Devices = dataclasses.field(default_factory=local)
    checkpoint_minutes: float = 15.0
    on_nonfinite: str = "stop"
    trackers: tuple[Tracker, ...] = ()
    following: float = 0.0

    @property
    def skips(self) -> bool:
        return self.on_nonfinite == "skip"


@contextlib.contextmanager
def home_of(devices: Devices, run: RunDirectory) -> Iterator[RunDirectory]:
    """Yields the directory that this worker writes to: for the chief, `run`.

    The chief holds `run` against other processes. The other workers write the same to
    a temporary directory, because reading a variable may need all workers; it is deleted
    afterwards.
    """
    if devices.is_chief:
        with run.owned():
            yield run
        return
    with tempfile.TemporaryDirectory(prefix="anpvs_tf") as scratch:
        yield RunDirectory(scratch)
