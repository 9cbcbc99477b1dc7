"""Programs as a user calls them, without a process of their own: that would import TensorFlow."""

import contextlib
import importlib
import io
import os
import sys
import types


def call(program, *arguments, cwd="."):
    """Runs `bin/<program>.py` in a directory; returncode, stdout and stderr as of a process."""
    out, err, before, argv = io.StringIO(), io.StringIO(), os.getcwd(), sys.argv
    os.chdir(cwd)
    sys.argv = [f"bin/{program}.py", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            importlib.import_module(f"anpvs_tf.programs.{program}").run()
    except SystemExit as ended:
        code = ended.code
    finally:
        os.chdir(before)
        sys.argv = argv
    return types.SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())
