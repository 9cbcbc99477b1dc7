"""Flags that several programs have."""

from anpvs_tf.common.program import Flags
from anpvs_tf.tracking.tracked_run import TRACKERS
from anpvs_tf.training.names import ACTIONS


def add_data(flags: Flags, group: str) -> None:
    """Adds the flags that say where data comes from."""
    flags.add(
        group,
        str,
        "data_dir",
        None,
        "directory of TensorFlow Datasets. Default: TFDS_DATA_DIR, else ~/tensorflow_datasets",
    )
    flags.add(group, bool, "download", True, "let TensorFlow Datasets download an absent dataset")


def add_execution(flags: Flags, group: str, experts: str) -> None:
    """Adds the flags that say how training is carried out."""
    flags.add(
        group,
        float,
        "checkpoint_minutes",
        15.0,
        "minutes between checkpoints within an epoch, besides that at its end",
        lower_bound=0.0,
    )
    add_track(flags, group)
    flags.add(
        experts,
        str,
        "on_nonfinite",
        "stop",
        "at a loss or gradient that is nan or infinite: stop, or skip the step",
        choices=ACTIONS,
    )


def add_track(flags: Flags, group: str) -> None:
    """Adds the flag that says where else a run is shown."""
    flags.add(group, tuple, "track", [], f"show the run in a tracker too ({', '.join(TRACKERS)})")
