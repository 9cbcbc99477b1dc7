"""How a program in bin/ starts and ends."""

import errno
import logging as standard_logging
import os
import sys
from collections.abc import Callable

from absl import app, flags, logging

from anpvs_tf.common.errors import Interrupted, TrainingError, UsageError, one_line


def run(main: Callable[..., None], usage: str, operands: bool = False) -> None:
    """Parses the flags and runs `main`; with `operands`, on the list of what is no flag.

    `usage` is what --help begins with.

    What ends early ends with one line on standard error and the exit code of its error:
    a misuse with 2, a run that had to stop with 1, a signal with 128 and its number.
    """

    def parse(arguments):
        try:
            rest = flags.FLAGS(arguments)
        except flags.Error as error:
            sys.exit(_complain(error, 2))
        if len(rest) > 1 and not operands:
            sys.exit(_complain(f"unexpected argument {rest[1]!r}; flags begin with --", 2))
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # Keras and TFDS log each save and read.
            # It takes many networks and stages for one function that is retraced.
            standard_logging.getLogger("tensorflow").setLevel("ERROR")
        return rest

    def guarded(rest):
        try:
            main(*([rest[1:]] if operands else []))
        except (UsageError, TrainingError) as error:
            sys.exit(_complain(error, error.code))
        except Interrupted as error:
            print(f"{error.signal}: {error}", file=sys.stderr)
            sys.exit(error.code)
        except Exception as error:
            # TensorFlow, HDF5 and Python each have a kind of their own for it.
            if os.strerror(errno.ENOSPC) not in str(error):
                raise
            full = f"the disk is full: {one_line(error)}; make room and give the same command"
            sys.exit(_complain(full, 1))
        except KeyboardInterrupt:
            sys.exit(_complain("interrupted; the same command goes on or begins again", 130))

    sys.modules["__main__"].__doc__ = usage  # Where absl looks for it.
    app.run(guarded, flags_parser=parse)


def _complain(error: Exception | str, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code
