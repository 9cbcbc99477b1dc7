"""A live progress line on a terminal; nothing that piles up in a log file."""

import sys
import time


class Progress:
    """One line that counts steps, with the time left.

    On a terminal the line is rewritten twice a second; elsewhere only `done` prints.
    """

    def __init__(self, title: str, total: int):
        self.title = title
        self.total = total
        self.started = time.monotonic()
        self._shown = 0.0
        self._live = sys.stdout.isatty()

    def seconds(self) -> float:
        return time.monotonic() - self.started

    def update(self, count: int, note: str = "") -> None:
        """Shows that `count` of `total` are done."""
        now = time.monotonic()
        if not self._live or now - self._shown < 0.5:
            return
        self._shown = now
        left = self.seconds() / max(count, 1) * (self.total - count)
        line = f"{self.title} {count}/{self.total} {note} {duration(left)} left"
        sys.stdout.write(f"\r\x1b[K{line[:160]}")
        sys.stdout.flush()

    def say(self, text: str) -> None:
        """Prints a line that stays; the live one goes on below it."""
        sys.stdout.write(f"\r\x1b[K{text}\n" if self._live else f"{text}\n")
        sys.stdout.flush()

    def done(self, summary: str = "") -> None:
        """Ends the line; `summary` stays."""
        if self._live:
            sys.stdout.write("\r\x1b[K")
        if summary:
            sys.stdout.write(f"{summary}\n")
        sys.stdout.flush()


def duration(seconds: float) -> str:
    """1:02:03, 2:03 or 4.2 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
