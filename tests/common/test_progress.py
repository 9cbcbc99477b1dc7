"""Progress on a terminal and in a file."""

import io
import sys
import types

from anpvs_tf.common import progress
from anpvs_tf.common.progress import Progress


class Terminal(io.StringIO):
    """A terminal of which only the last state of each line is read."""

    def isatty(self):
        return True

    def lines(self):
        return [line.split("\r")[-1].rstrip() for line in self.getvalue().split("\n")]


def on_terminal(monkeypatch):
    """In the test itself: pytest puts its own standard output back after fixtures."""
    monkeypatch.setattr(sys, "stdout", Terminal())
    return sys.stdout


def test_a_terminal_has_a_bar_that_goes_on_below_what_is_said(monkeypatch):
    terminal = on_terminal(monkeypatch)
    work = Progress("epoch 1/2 step", 0)
    work.total = 4
    work.update(3, "loss 0.500")
    work._bar.refresh()
    (bar,) = terminal.lines()
    assert bar.startswith("epoch 1/2 step:  75%|") and "3/4" in bar and "loss 0.500" in bar
    work.say("about 2:00 to go")
    said, bar = terminal.lines()
    assert said == "about 2:00 to go" and "3/4" in bar
    work.done("epoch 1/2 is done")
    assert terminal.lines() == ["about 2:00 to go", "epoch 1/2 is done", ""]


def test_an_error_does_not_end_up_in_a_bar(monkeypatch):
    terminal = on_terminal(monkeypatch)
    monkeypatch.setattr(sys, "stderr", terminal)  # The same screen.
    work = Progress("image", 4)
    Progress.say("error: the disk is full", sys.stderr)
    work.done()
    assert terminal.lines() == ["error: the disk is full", ""]


def test_a_file_has_a_line_every_half_minute(monkeypatch, capsys):
    clock = types.SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(Progress, "_written", 0.0)
    work = Progress("epoch 1/2 step", 100)
    for clock.now in (10.0, 30.0, 40.0, 61.0):
        work.update(int(clock.now), "loss 0.500" if clock.now < 60 else "")
    work.say("said")
    work.done("done")
    # Other work that begins now is silent for half a minute too.
    other = Progress("image", 2)
    clock.now = 90.0
    other.update(1)
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1/2 step 30/100 loss 0.500 1:10 left",
        "epoch 1/2 step 61/100 39.0 s left",
        "said",
        "done",
    ]
