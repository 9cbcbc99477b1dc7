"""Writing files so that a reader never sees half of one."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

from anpvs_tf.common.errors import TrainingError, one_line


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes beside and renames: a reader sees the old file or the new one.

    Raises:
        TrainingError: it could not be written.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with writing(path, temporary):
        with open(temporary, "w", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


@contextlib.contextmanager
def writing(path: pathlib.Path, temporary: pathlib.Path) -> Iterator[None]:
    """Whatever happens, nothing unfinished stays; a full disk is said in one line."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # RuntimeError is HDF5's.
        raise TrainingError(
            f"{path} could not be written: {one_line(error)}; make room and give the same "
            "command to go on"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
