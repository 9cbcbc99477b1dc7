"""Asks each program whether it would take a command line, without letting it work.

Changes modules and flags for good: for a process of its own.
"""

import argparse
import contextlib
import io
import json
import os
import pathlib
import runpy
import sys

from documents import ROOT, Command

from anpvs_tf.common import devices, program
from anpvs_tf.common.errors import UsageError
from anpvs_tf.data import sources
from anpvs_tf.data.sources import SOURCES
from anpvs_tf.evaluation import attacked_model
from anpvs_tf.networks import keras_archive
from anpvs_tf.programs import evaluate, export, train
from anpvs_tf.reporting import report, run_list
from anpvs_tf.runs import resolution
from anpvs_tf.runs.directory import RunDirectory
from anpvs_tf.runs.finished_run import FinishedRun
from anpvs_tf.serving import exporting, publishing
from anpvs_tf.tracking import tracked_run
from anpvs_tf.training import trainer
from anpvs_tf.tuning import search, sweep, table

# A dataset that is not here has these facts, so that nobody looks for it.
_FOUND = {"image_size": (32, 32), "channels": 3, "augment": True, "classes": 10}
_choose = resolution.choose
_parse_args = argparse.ArgumentParser.parse_args


class Accepted(BaseException):
    """The program would begin its work now."""


def _accept(*_, **__):
    raise Accepted


def _run(main, usage, define, operands=False):
    """In place of `program.run`."""
    flags = program.Flags()
    define(flags)
    if set(sys.argv) & {*program.HELP, program.VERSION}:
        raise Accepted
    rest = flags.parse(sys.argv)
    if rest and not operands:
        raise UsageError(f"unexpected argument {rest[0]!r}")
    if pathlib.Path(sys.argv[0]).parent.name == "bin":
        flags.check_required()
        main(flags.values, *([rest] if operands else []))
    raise Accepted


def _choose_unseen(given, *rest):
    absent = ":" in (given.get("dataset") or "")
    chosen = {name: value for name, value in given.items() if value is not None}
    return _choose(_FOUND | chosen if absent else given, *rest)


def _described(name, *rest):
    return SOURCES.get(name) or sources.Source(name, (32, 32, 3), 10)


def _opened(path):
    """Stands for a run of any path."""
    settings = _choose({"precision": "float32"})
    return FinishedRun(RunDirectory(path), settings, [], {}, [], [])


def _refuse(parser, message):
    raise UsageError(message)


def prepare() -> None:
    """Puts a stop where the work of each program begins."""
    sys.path.insert(0, str(ROOT))
    program.run = _run
    argparse.ArgumentParser.error = _refuse
    argparse.ArgumentParser.parse_args = lambda self: _accept(_parse_args(self))
    resolution.choose = _choose_unseen
    # Packages and accounts need not be here.
    tracked_run.check = publishing.check = lambda *_: None
    devices.choose = lambda *_: devices.local()
    trainer.train = report.write = search.run = table.text = run_list.text = exporting.export = (
        _accept
    )
    train._matched = lambda chosen, values: chosen  # The other run is not there.
    attacked_model.of_run = attacked_model.of_model = _accept
    # What lies on this machine does not matter.
    keras_archive.check = lambda path: None
    resolution.version_of = lambda path: "0" * 32
    evaluate.describe = _described
    evaluate.os.path.exists = evaluate.os.path.isdir = lambda path: True
    RunDirectory.check = RunDirectory.check_place = lambda *_: None
    evaluate.open_run = export.open_run = _opened
    RunDirectory.settings = lambda *_: _choose({"precision": "float32"})
    # A sweep that goes on knows what it sweeps.
    sweep.read_definition = lambda path: sweep.Definition({"beta": "1:2"})


def complaint(command: Command) -> str | None:
    """Why the program would refuse the command; None if it would not."""
    path = ROOT / command.program
    if not path.exists():
        return "no such program"
    text = path.read_text()
    takes_flags = path.parent.name == "bin" or "flags" in text or "argparse" in text
    if not takes_flags:
        return f"takes no arguments; got {command.arguments}" if command.arguments else None
    sys.argv = [command.program, *command.arguments]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            runpy.run_path(str(path), run_name="__main__")
    except UsageError as error:
        return str(error)
    except (Accepted, SystemExit):  # SystemExit: --help.
        return None
    return None


def judge(commands: list[Command], answer: pathlib.Path) -> None:
    """Writes [[place, complaint], ...] to the file `answer`, beside which it works."""
    os.chdir(answer.parent)
    prepare()
    found = [[command.place, complaint(command)] for command in commands]
    answer.write_text(json.dumps([[place, why] for place, why in found if why]))
