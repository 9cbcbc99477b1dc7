"""Directories that one process at a time works in; the hold ends with the process."""

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator

from anpvs_tf.common.errors import InUse, UsageError


@contextlib.contextmanager
def owned(path: pathlib.Path, flag: str) -> Iterator[None]:
    """Makes a directory and holds it against other processes.

    Args:
        flag: the flag that sets another directory, such as "--run_dir".

    Raises:
        InUse: another process works in the directory.
        UsageError: the directory cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be made: {error.strerror}; choose another {flag}"
        ) from error
    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUse(
                f"another process works in {path}; wait for it, or choose another {flag}"
            ) from None
        yield
    finally:
        os.close(handle)


def in_use(path: pathlib.Path) -> bool:
    """Says whether a process holds the directory by `owned`."""
    if not path.is_dir():
        return False
    try:
        with owned(path, ""):
            return False
    except InUse:
        return True
