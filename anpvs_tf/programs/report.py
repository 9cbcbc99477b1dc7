"""Reports on finished runs: tables, figures, and one page with all of it.

  python bin/report.py RUN [RUN ...] --out=DIR
  python bin/report.py --list RUN [RUN ...]

A RUN is a run directory of bin/train.py, or a directory of run directories. Reads result files and
saved weights and trains nothing; figures of the networks themselves attack a few test images.
Writes DIR/report.html, DIR/tables/ and DIR/figures/. --list prints a line a run instead.
"""

import os
import sys

from absl import flags

from anpvs_tf.common import program
from anpvs_tf.common.errors import UsageError
from anpvs_tf.reporting import formats, report, run_list


def _define_flags() -> None:
    flags.DEFINE_string("out", None, "the directory to write; an earlier report is replaced")
    flags.DEFINE_bool("list", False, "print a line a run, with its state, and write nothing")
    flags.DEFINE_integer(
        "examples",
        200,
        "test images on which the vulnerability of features is measured; 0 leaves out all figures "
        "that need the networks",
    )
    flags.DEFINE_string(
        "data_dir", None, "TFDS data directory. Default: TFDS_DATA_DIR, else TFDS's own"
    )
    flags.DEFINE_bool("download", True, "let TFDS download a dataset that is absent")


def main(paths: list[str]) -> None:
    values = flags.FLAGS
    if not paths:
        raise UsageError("give run directories: bin/report.py RUN [RUN ...] --out=DIR")
    if values.list:
        print(run_list.text(paths))
        return
    if not values.out:
        raise UsageError("--out is missing")
    if values.examples < 0:
        raise UsageError(f"--examples must be at least 0; got {values.examples}")
    found = report.write(
        paths,
        values.out,
        examples=values.examples,
        data_dir=values.data_dir,
        download=values.download,
        command=sys.argv,
    )
    print(formats.markdown(found[0]))
    print(f"The report is {os.path.join(values.out, report.PAGE)}")


def run() -> None:
    """Runs the program on the command line."""
    _define_flags()
    program.run(main, __doc__, operands=True)
