"""Reports on finished runs: tables, figures, and one page with all of them.

  python bin/report.py RUN [RUN ...] --out=DIR
  python bin/report.py --list RUN [RUN ...]

A RUN is a run directory of bin/train.py, or a directory of run directories. Reads result files and
saved weights and trains nothing; some figures need attacks on a few test images.
Writes DIR/report.html, DIR/tables/ and DIR/figures/. --list prints a line a run instead; --track
keeps the page with each run in the tracker.
"""

import os
import pathlib
import sys
from typing import Any

from anpvs_tf.common import program
from anpvs_tf.common.errors import UsageError
from anpvs_tf.common.program import Flags
from anpvs_tf.programs import shared_flags
from anpvs_tf.tracking import tracked_run

REPORT = "The report"


def define(flags: Flags) -> None:
    flags.add(
        REPORT,
        str,
        "out",
        None,
        "the directory to write, needed without --list; an earlier report in it is replaced",
    )
    flags.add(
        REPORT,
        bool,
        "list",
        False,
        "print a line a run, with its state, and write nothing",
    )
    flags.add(
        REPORT,
        int,
        "examples",
        200,
        "test images on which the vulnerability of features is measured; 0 leaves out all figures "
        "that need the networks",
        lower_bound=0,
    )
    shared_flags.add_track(flags, REPORT)
    shared_flags.add_data(flags, "Test images")


def main(values: Any, paths: list[str]) -> None:
    if not paths:
        raise UsageError("give run directories: bin/report.py RUN [RUN ...] --out=DIR")
    if absent := [path for path in paths if not os.path.isdir(path)]:
        raise UsageError(f"{', '.join(absent)}: no such directory")
    if values.list:
        from anpvs_tf.reporting import run_list  # This imports TensorFlow.

        print(run_list.text(paths))
        return
    if not values.out:
        raise UsageError("--out is missing: the directory to write; or give --list")
    trackers = tracked_run.named(values.track)
    tracked_run.check(trackers)

    # These import TensorFlow and Matplotlib.
    from anpvs_tf.reporting import formats, report

    found = report.write(
        paths,
        values.out,
        examples=values.examples,
        data_dir=values.data_dir,
        download=values.download,
        command=sys.argv,
    )
    print(formats.markdown(found[0]))
    path = pathlib.Path(values.out) / report.PAGE
    if trackers:
        for covered in report.covered(values.out):
            with covered.owned(), tracked_run.following(covered, trackers) as tracked:
                tracked.artifact(path)
    print(f"The report is {path}")


def run() -> None:
    """Runs the program on the command line."""
    program.run(main, __doc__, define, operands=True)
