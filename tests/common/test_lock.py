"""One process at a time works in a directory, whether or not its file system has `flock`."""

import contextlib
import errno
import fcntl
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from anpvs_tf.common import files, interruption, lock
from anpvs_tf.common.errors import Interrupted, InUse, LockLost, UsageError

BEAT, STALE, LOOK = 0.03, 0.6, 0.01
# Owns a directory as a process of another machine would, and writes into it when told to.
ELSEWHERE = f"""
import errno, fcntl, os, pathlib, sys
from anpvs_tf.common import files, lock

def flock(*_):
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

fcntl.flock = flock
lock._kernel = lambda directory: "another kernel"
lock.platform.node = lambda: "elsewhere"
lock.BEAT_SECONDS = {BEAT}
place = pathlib.Path(sys.argv[1])
with lock.owned(place, "--run_dir"):
    print("owned", flush=True)
    for line in sys.stdin:
        files.write_atomically(place / "result", line)
        print("written", flush=True)
"""


def test_a_directory_is_held_until_it_is_let_go(tmp_path):
    place = tmp_path / "a/b"
    assert not lock.in_use(place) and not place.exists()
    message = f"another process works in {place}; wait for it, or choose another --sweep_dir"
    with lock.owned(place, "--run_dir"):
        assert lock.in_use(place)
        with pytest.raises(InUse, match=message), lock.owned(place, "--sweep_dir"):
            pass
    assert not lock.in_use(place)
    assert not list(place.iterdir())


def test_a_directory_that_cannot_be_made_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UsageError, match="file/run cannot be made: Not a directory"),
        lock.owned(tmp_path / "file/run", "--run_dir"),
    ):
        pass


def test_a_process_of_this_machine_that_died_holds_nothing(tmp_path):
    left = lock._of_this_process(tmp_path)
    (tmp_path / lock.NAME).write_bytes(left.line() + b"000000000007\n")
    assert not lock.in_use(tmp_path)
    began = time.monotonic()
    with lock.owned(tmp_path, "--run_dir"):
        assert time.monotonic() - began < lock.LOOK_SECONDS
    assert not list(tmp_path.iterdir())


# ---- Several machines: no `flock` between them ----


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", BEAT)
    monkeypatch.setattr(lock, "STALE_SECONDS", STALE)
    monkeypatch.setattr(lock, "LOOK_SECONDS", LOOK)

    def flock(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.fixture
def elsewhere(hasty, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", ELSEWHERE, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(pathlib.Path(lock.__file__).parents[2])},
    )
    assert process.stdout.readline() == "owned\n"
    yield process
    process.kill()
    process.communicate()


def test_the_owner_elsewhere_is_seen_by_its_signs_and_not_by_its_clock(elsewhere, tmp_path, capfd):
    for hours in (-9, 9):
        shifted = time.time() + 3600 * hours
        os.utime(tmp_path / lock.NAME, (shifted, shifted))
        message = f"another process, on elsewhere, works in {tmp_path}; wait"
        with pytest.raises(InUse, match=message), lock.owned(tmp_path, "--run_dir"):
            pass
    assert (
        f"of a process on elsewhere; waiting up to {STALE} s for a sign" in capfd.readouterr().err
    )
    for _ in range(3):
        assert lock.in_use(tmp_path)

    elsewhere.kill()
    elsewhere.wait()
    began = time.monotonic()
    while lock.in_use(tmp_path):
        assert time.monotonic() - began < 20 * STALE
        time.sleep(LOOK)
    assert time.monotonic() - began >= STALE / 2
    with lock.owned(tmp_path, "--run_dir"):
        assert lock.in_use(tmp_path)


def test_an_owner_that_wakes_up_finds_its_lock_taken_and_writes_nothing(elsewhere, tmp_path):
    elsewhere.stdin.write("before\n")
    elsewhere.stdin.flush()
    assert elsewhere.stdout.readline() == "written\n"
    elsewhere.send_signal(signal.SIGSTOP)
    with lock.owned(tmp_path, "--run_dir"):
        files.write_atomically(tmp_path / "result", "of the next owner\n")
        elsewhere.send_signal(signal.SIGCONT)
        out, err = elsewhere.communicate("after\n", timeout=30)
        assert out == ""
        assert f"LockLost: {tmp_path / lock.NAME} is no longer this process's: process " in err
        assert (tmp_path / "result").read_text() == "of the next owner\n"
        lock.check(tmp_path)  # And it has let this one's lock alone.
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_an_owner_is_told_at_its_next_count_too(hasty, tmp_path):
    with lock.owned(tmp_path / "run", "--run_dir"), lock.owned(tmp_path / "other", "--run_dir"):
        (tmp_path / "run" / lock.NAME).unlink()
        inside = tmp_path / "run/checkpoints/ckpt-1"
        lock.check(tmp_path / "other")
        with pytest.raises(LockLost, match="it was deleted"):
            for _ in range(1000):
                lock.check(inside, look=False)
                time.sleep(BEAT / 10)
        with pytest.raises(LockLost):
            lock.check(inside)
        lock.check(tmp_path / "other")
        lock.check(tmp_path / "runs")  # Whose name begins like that of a lost one.


def test_of_many_that_see_a_stale_lock_one_gets_it(hasty, tmp_path):
    for _ in range(2):
        (tmp_path / lock.NAME).write_bytes(b"")  # Its owner died before it had written its name.
        together, over = threading.Barrier(6), threading.Event()
        got, refused = [], []

        def attempt(together=together, over=over, got=got, refused=refused):
            together.wait()
            try:
                with lock.owned(tmp_path, "--run_dir"):
                    got.append(1)
                    over.wait(60)
                    lock.check(tmp_path)
            except InUse:
                refused.append(1)
                if len(refused) == 5:
                    over.set()

        threads = [threading.Thread(target=attempt) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 1 and len(refused) == 5
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wakes", ["too late", "before the other is done"])
def test_one_that_stalls_while_it_takes_over_does_not_win_too(hasty, tmp_path, monkeypatch, wakes):
    monkeypatch.setattr(lock, "STALE_SECONDS", 3 * LOOK)
    (tmp_path / lock.NAME).write_bytes(b"")
    move, held, calls = os.replace, contextlib.ExitStack(), []

    def replace(*paths):
        calls.append(paths)
        if len(calls) == 1:
            # The first one stalls here; the second has to take over from it, too.
            held.enter_context(lock.owned(tmp_path, "--run_dir"))
        if len(calls) == 3 and wakes == "before the other is done":
            move(*calls[0])
        move(*paths)

    monkeypatch.setattr(os, "replace", replace)
    with held:
        with pytest.raises(InUse), lock.owned(tmp_path, "--run_dir"):
            pass
        assert len(calls) == 3 and calls[0] == calls[2]
        lock.check(tmp_path)
    assert not list(tmp_path.iterdir())


def test_one_that_begins_to_take_over_when_another_has_does_not(hasty, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "STALE_SECONDS", 3 * LOOK)
    (tmp_path / lock.NAME).write_bytes(b"")
    moves, held = lock._moves, contextlib.ExitStack()

    def late(*given):
        gone = moves(*given)
        monkeypatch.setattr(lock, "_moves", moves)
        held.enter_context(lock.owned(tmp_path, "--run_dir"))
        return gone

    monkeypatch.setattr(lock, "_moves", late)
    with held:
        with pytest.raises(InUse), lock.owned(tmp_path, "--run_dir"):
            pass
        lock.check(tmp_path)
    assert not list(tmp_path.iterdir())


def test_waiting_can_be_ended(hasty, tmp_path, monkeypatch):
    (tmp_path / lock.NAME).write_bytes(b"")
    monkeypatch.setattr(interruption, "asked", lambda: signal.SIGTERM)
    with pytest.raises(Interrupted, match="nothing was written"), lock.owned(tmp_path, "--run_dir"):
        pass


def test_a_lock_that_cannot_be_written_is_refused_in_one_line(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(lock, "_write", fail)
    with (
        pytest.raises(UsageError, match="cannot be written: Read-only file system; choose another"),
        lock.owned(tmp_path, "--run_dir"),
    ):
        pass
    assert not list(tmp_path.iterdir())
