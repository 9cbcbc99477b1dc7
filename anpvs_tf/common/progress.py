"""Progress with the time left: tqdm's bar on a terminal, a line every half minute elsewhere."""

import datetime
import sys
import threading
import time
from typing import TextIO

from tqdm import tqdm

FILE_SECONDS = 30.0

# One process draws; tqdm's own lock is for several, and takes a semaphore of the system.
tqdm.set_lock(threading.RLock())


class Progress:
    """Counts steps, and says how long the others will take.

    On a terminal tqdm draws a bar, which `done` removes. In a file bars would pile up, so a line
    is written if none was for half a minute, whichever work it is of.
    """

    _written = time.monotonic()

    def __init__(self, title: str, total: int):
        self.title = title
        self.total = total
        self.started = time.monotonic()
        self._bar = None
        if sys.stdout.isatty():
            self._bar = tqdm(
                desc=title, total=total, file=sys.stdout, leave=False, dynamic_ncols=True
            )

    def seconds(self) -> float:
        return time.monotonic() - self.started

    def update(self, count: int, note: str = "") -> None:
        """Shows that `count` of `total` are done."""
        if self._bar is not None:
            self._bar.total = self.total
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count - self._bar.n)
            return
        now = time.monotonic()
        if not count or now - Progress._written < FILE_SECONDS:
            return
        Progress._written = now
        left = duration(self.seconds() / count * (self.total - count))
        print(*filter(None, (self.title, f"{count}/{self.total}", note, left)), "left", flush=True)

    @staticmethod
    def say(text: str, file: TextIO | None = None) -> None:
        """Prints a line, on standard output if no file is given; a bar stays below it."""
        file = file or sys.stdout
        tqdm.write(text, file=file)
        file.flush()

    def done(self, summary: str = "") -> None:
        """Ends the work; `summary` stays."""
        if self._bar is not None:
            self._bar.close()
        if summary:
            Progress._written = time.monotonic()
            print(summary, flush=True)


def ahead(seconds: float) -> str:
    """Says how long something will take, and when it will end."""
    end = datetime.datetime.now() + datetime.timedelta(seconds=seconds)
    return f"about {duration(seconds)} to go, until {end:%a %H:%M}"


def duration(seconds: float) -> str:
    """Writes a duration as 1:02:03, 2:03 or 4.2 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
