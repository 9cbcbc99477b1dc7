"""SIGTERM and SIGINT ask for the end of the work; a second one ends it at once."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator

from anpvs_tf.common.progress import Progress

SIGNALS = (signal.SIGTERM, signal.SIGINT)

_asked = 0


def asked() -> int:
    """Returns the number of the signal that asked for the end; 0 as long as none did."""
    return _asked


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Records the first signal for `asked`; the second ends the process.

    For the main thread. A thread listens, because a handler in Python waits for the
    operation that runs, which may never end when another worker is gone.
    """
    global _asked
    listening, woken = socket.socketpair()
    woken.setblocking(False)
    done = threading.Event()

    def listen() -> None:
        global _asked
        while (received := listening.recv(1)) and not done.is_set():
            number = received[0]
            if number not in SIGNALS:
                continue
            if _asked:
                os._exit(128 + number)
            _asked = number
            name = signal.Signals(number).name
            Progress.say(f"{name}: finishing the step; once more to leave at once", sys.stderr)

    before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    old = signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(old)
        for number, handler in before.items():
            signal.signal(number, handler)
        done.set()
        woken.close()  # Ends the thread.
        thread.join()
        listening.close()
        _asked = 0
