"""Checks whether the networks of two runs can stand beside each other in a page."""

from anpvs_tf.common.errors import UsageError
from anpvs_tf.runs.finished_run import FinishedRun


def check(run: FinishedRun, rival: FinishedRun, format: str) -> None:
    """Raises UsageError unless `rival` can be shown beside `run`: a page, and the same data."""
    if format != "web":
        raise UsageError(f"--rival belongs to --format=web; got --format={format}")
    own, other = run.settings.source, rival.settings.source
    if (own.name, own.image_shape, own.classes) != (other.name, other.image_shape, other.classes):
        raise UsageError(
            f"--rival must be a run on the same data, {_of(own)}; {rival.path} has {_of(other)}"
        )


def _of(source) -> str:
    size = " x ".join(map(str, source.image_shape))
    return f"{source.name} ({size}, {source.classes} classes)"
