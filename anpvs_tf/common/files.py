"""Functions that write files so that a reader never sees half of one."""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator

from anpvs_tf.common import lock
from anpvs_tf.common.errors import Interrupted, TrainingError, UsageError, one_line


def check_directory(path: pathlib.Path, what: str, flag: str) -> None:
    """Raises UsageError unless a directory can be written, or made, at `path`.

    Args:
        what: names the directory in the message, such as "run directory runs/a".
        flag: the flag that sets another one, such as "--run_dir".
    """
    try:
        existing = path.absolute()
        while not existing.exists():
            existing = existing.parent
    except OSError as error:  # A name that is too long, for one.
        raise UsageError(f"{what}: {error.strerror}; choose another {flag}") from error
    if existing == path.absolute() and not path.is_dir():
        raise UsageError(f"{what} is a file; choose another {flag}")
    if not existing.is_dir():
        raise UsageError(f"{what} cannot be written: {existing} is a file; choose another {flag}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"{what} cannot be written (at {existing}); choose another {flag}")


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a text as `replace_atomically` does; its line ends stay as they are.

    Raises:
        TrainingError: the file could not be written.
    """
    replace_atomically(path, lambda beside: beside.write_text(text, newline=""))


def replace_atomically(path: pathlib.Path, write: Callable[[pathlib.Path], object]) -> None:
    """Writes a new file and renames it: a reader sees the old or the new one, even after a crash.

    Args:
        write: writes the file at the path that it is given, whose suffixes are those of `path`.

    Raises:
        TrainingError: the file could not be written, or is in a directory that this process owned
            and has lost (`lock.check`); the old one is as it was.
    """
    beside = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    with _said_in_one_line(path):
        try:
            write(beside)
            flush(beside)
            lock.check(path)
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)


@contextlib.contextmanager
def staging(path: pathlib.Path, what: str, flag: str) -> Iterator[pathlib.Path]:
    """Yields a new directory beside `path`, to be filled and then renamed to `path`.

    If it is not renamed, it is deleted, and with it the parents of `path` that were made for it.

    Args:
        what, flag: as of `check_directory`.

    Raises:
        UsageError: the directory cannot be made.
    """
    absent = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        made = pathlib.Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise UsageError(
            f"{what} cannot be written: {error.strerror}; choose another {flag}"
        ) from error
    try:
        made.chmod(0o755)  # mkdtemp's 0700 would shut out other users, a server's for one.
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        with contextlib.suppress(OSError):  # A parent that is not empty stays, and those above.
            for parent in absent:
                parent.rmdir()


def flush(path: pathlib.Path) -> None:
    """Waits until a file, or the names in a directory, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _said_in_one_line(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except (TrainingError, Interrupted):  # They are RuntimeErrors too, and say what happened.
        raise
    except (OSError, RuntimeError) as error:  # RuntimeError is HDF5's.
        raise TrainingError(
            f"{path} could not be written: {one_line(error)}; make room and give the same "
            "command to resume"
        ) from error
