"""Directories that one process at a time works in, on one machine or on several.

Between the processes of one kernel `flock` decides: it is exact, and ends with the process. Many
file systems of several machines keep it to each machine, or have none. So the owner also keeps a
file in the directory, with its name and a count that it raises every few seconds. Another machine
takes the lock over only after it has seen the file unchanged for `STALE_SECONDS`, by its own
clock: what time it is elsewhere does not matter. An owner that was silent for so long finds out
before it writes again (`check`).
"""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import pathlib
import platform
import sys
import threading
import time
import uuid
from collections.abc import Iterator

from anpvs_tf.common import interruption
from anpvs_tf.common.errors import Interrupted, InUse, LockLost, UsageError, one_line

NAME = ".lock"
BEAT_SECONDS = 5.0
STALE_SECONDS = 30.0
LOOK_SECONDS = 1.0
_COUNT = b"%012d\n"


@dataclasses.dataclass(frozen=True)
class _Owner:
    """The first line of the file; the second is the count.

    Attributes:
        token: tells owners apart.
        kernel: the running kernel and the directory's device there: owners that have it in common
            see each other's `flock`.
    """

    token: str = ""
    host: str = "another machine"
    pid: int = 0
    kernel: str = ""

    def line(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode() + b"\n"


def _of_this_process(directory: pathlib.Path) -> _Owner:
    return _Owner(uuid.uuid4().hex, platform.node(), os.getpid(), _kernel(directory))


def _kernel(directory: pathlib.Path) -> str:
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = platform.node()
    return f"{boot}:{os.stat(directory).st_dev}"


class Hold:
    """The lock file of this process, while the process owns a directory.

    Args:
        file: holds `owner`.
    """

    def __init__(self, file: pathlib.Path, owner: _Owner):
        self.file, self.owner = file, owner
        self.directory = os.path.realpath(file.parent)
        # Opened once: the file that comes in the place of a lost one is another owner's.
        self._handle = os.open(file, os.O_WRONLY)
        self._ended = threading.Event()
        self._taken_by: str | None = None
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        count = 0
        while not self._ended.wait(BEAT_SECONDS) and self._taken_by is None:
            count += 1
            with contextlib.suppress(OSError):  # Whether the lock is lost, the next line finds out.
                _write(self._handle, _COUNT % count, len(self.owner.line()))
            self._look()

    def _look(self) -> None:
        try:
            held = _read(self.file)
        except OSError as error:
            self._taken_by = f"its state is unknown: {one_line(error)}"
            return
        if held is None:
            self._taken_by = "it was deleted"
        elif (other := _owner(held)).token != self.owner.token:
            self._taken_by = f"process {other.pid} on {other.host} has it"

    def check(self, look: bool = True) -> None:
        """Raises LockLost if the directory is no longer this process's.

        Args:
            look: read the file; otherwise tell what was seen at the last count.
        """
        if look and self._taken_by is None:
            self._look()
        if self._taken_by is not None:
            raise LockLost(
                f"{self.file} is no longer this process's: {self._taken_by}; this process was "
                f"silent for {STALE_SECONDS:g} s or more, and writes nothing more there"
            )

    def release(self) -> None:
        """Deletes the file, if it is still this process's."""
        self._ended.set()
        self._thread.join(BEAT_SECONDS)  # No longer: its write may hang when a file server does.
        with contextlib.suppress(OSError):
            self._look()
            if self._taken_by is None:
                self.file.unlink()
        os.close(self._handle)


_holds: list[Hold] = []


def check(path: str | os.PathLike, look: bool = True) -> None:
    """Raises LockLost if `path` is in a directory that this process owned and has lost.

    Args:
        look: as of `Hold.check`.
    """
    if not _holds:
        return
    parts = pathlib.Path(os.path.realpath(path)).parts
    for hold in _holds:
        own = pathlib.Path(hold.directory).parts
        if parts[: len(own)] == own:
            hold.check(look)


def is_part(path: pathlib.Path) -> bool:
    """Says whether a file belongs to the lock of its directory."""
    return path.name == NAME or path.name.startswith(f"{NAME}.")


@contextlib.contextmanager
def owned(path: pathlib.Path, flag: str) -> Iterator[None]:
    """Makes a directory and holds it against other processes, of other machines too.

    If a process of another machine held it, this waits until that one moves or is given up,
    at most `STALE_SECONDS`.

    Args:
        flag: the flag that sets another directory, such as "--run_dir".

    Raises:
        InUse: another process works in the directory.
        UsageError: the directory cannot be made, or not be written.
        Interrupted: a signal asked for the end of waiting.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be made: {error.strerror}; choose another {flag}"
        ) from error
    handle = os.open(path, os.O_RDONLY)
    try:
        refused = f"works in {path}; wait for it, or choose another {flag}"
        flocked = _flock(handle, fcntl.LOCK_EX)
        if flocked is False:
            raise InUse(f"another process {refused}")
        owner = _of_this_process(path)
        try:
            _take(path / NAME, owner, bool(flocked), refused)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UsageError(
                f"{path} cannot be written: {error.strerror}; choose another {flag}"
            ) from error
        hold = Hold(path / NAME, owner)
        _holds.append(hold)
        try:
            yield
        finally:
            _holds.remove(hold)
            hold.release()
    finally:
        os.close(handle)


def in_use(path: pathlib.Path) -> bool:
    """Says whether a process holds the directory by `owned`; writes nothing.

    A process of another machine holds it until this process, asking again and again, has seen no
    movement for `STALE_SECONDS`.
    """
    if not path.is_dir():
        return False
    handle = os.open(path, os.O_RDONLY)
    try:
        flocked = _flock(handle, fcntl.LOCK_SH)
    finally:
        os.close(handle)
    if flocked is False:
        return True
    held = _read(path / NAME)
    if held is None or _is_over(held, bool(flocked), path):
        return False
    return not _silences.setdefault(path, _Silence()).goes_on(held)


def _flock(handle: int, kind: int) -> bool | None:
    """Returns True if no other process of this kernel holds; None if there is no `flock`."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _take(file: pathlib.Path, owner: _Owner, flocked: bool, refused: str) -> None:
    """Makes `file` the owner's.

    Only the owner of a second such file may replace the first, so of several processes that see it
    stale one gets it. The second becomes the first in one move; if its owner dies before that, a
    third decides who goes on.

    Args:
        flocked: the owner has the directory's `flock`.
        refused: the end of InUse's message.
    """
    while not _create(file, owner):
        held = _read(file)
        if held is None:
            continue  # Let go between the two lines above.
        if not _is_over(held, flocked, file.parent) and _moves(file, held, refused):
            continue
        next_file = file.with_name(f"{NAME}.next" if file.name == NAME else f"{file.name}.next")
        _take(next_file, owner, flocked, refused)
        if _read(file) == held:
            with contextlib.suppress(FileNotFoundError):
                os.replace(next_file, file)
        # By what the file says, and not by how the move went: a server may have done it twice.
        if (now := _read(file)) is not None and _owner(now).token == owner.token:
            return
        if (other := _read(next_file)) is not None and _owner(other).token == owner.token:
            next_file.unlink()
        raise InUse(f"another process {refused}")


def _is_over(held: bytes, flocked: bool, directory: pathlib.Path) -> bool:
    """Says whether the owner was of this kernel and is dead: it would have the `flock`."""
    return flocked and _owner(held).kernel == _kernel(directory)


def _moves(file: pathlib.Path, held: bytes, refused: str) -> bool:
    """Waits until the file is gone or is given up; returns whether it is gone.

    Raises:
        InUse: its owner lives.
    """
    host = _owner(held).host
    print(
        f"{file} is of a process on {host}; waiting up to {STALE_SECONDS:g} s for a sign of it",
        file=sys.stderr,
    )
    silence = _Silence()
    while not silence.goes_on(held):
        if number := interruption.asked():
            raise Interrupted(number, f"nothing was written to {file.parent}")
        time.sleep(LOOK_SECONDS)
        now = _read(file)
        if now is None:
            return True
        if now != held:
            raise InUse(f"another process, on {_owner(now).host}, {refused}")
    return False


class _Silence:
    """How long a file has been seen unchanged.

    A pause between two looks counts as two usual ones: a file server or a machine that stood
    still may have kept the owner from writing, too.
    """

    def __init__(self):
        self.seen, self.seconds, self.last = None, 0.0, 0.0

    def goes_on(self, held: bytes) -> bool:
        """Takes a look at the file's content; returns whether its owner is to be given up."""
        now = time.monotonic()
        if held != self.seen:
            self.seen, self.seconds = held, 0.0
        else:
            self.seconds += min(now - self.last, 2 * LOOK_SECONDS)
        self.last = now
        return self.seconds >= STALE_SECONDS


_silences: dict[pathlib.Path, _Silence] = {}


# ---- The file ----


def _create(file: pathlib.Path, owner: _Owner) -> bool:
    """Makes the file, unless there is one."""
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    try:
        _write(handle, owner.line() + _COUNT % 0, 0)
    except OSError:
        file.unlink()
        raise
    finally:
        os.close(handle)
    return True


def _write(handle: int, content: bytes, place: int) -> None:
    """Writes, and waits until the file server has it."""
    os.pwrite(handle, content, place)
    os.fsync(handle)


def _read(file: pathlib.Path) -> bytes | None:
    """Reads the file, None if there is none. Opening it asks the file server what it is now."""
    for again in (True, True, False):
        try:
            return file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:  # ESTALE: replaced on another machine while it was opened.
            if error.errno != errno.ESTALE or not again:
                raise
    return None


def _owner(held: bytes) -> _Owner:
    """Returns the owner that the file names; one without a name if it is not written yet."""
    try:
        return _Owner(**json.loads(held.splitlines()[0]))
    except (ValueError, TypeError, IndexError):
        return _Owner()
