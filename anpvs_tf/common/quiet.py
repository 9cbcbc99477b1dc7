"""TensorFlow without its messages about itself."""

import contextlib
import importlib.abc
import importlib.util
import logging as standard_logging
import os
import sys
import tempfile
from collections.abc import Iterator

from absl import logging


def hide_messages() -> None:
    """Hides what TensorFlow and Keras say of kernels, processors, saves and retracing.

    Call it before TensorFlow is imported.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # That holds from the end of TensorFlow's import on; until then its libraries print everything.
    sys.meta_path.insert(0, _Finder())
    logging.set_verbosity(logging.WARNING)  # Keras and TFDS log each save and read.
    # It takes many networks and stages for one function that is retraced.
    standard_logging.getLogger("tensorflow").setLevel("ERROR")


class _Finder(importlib.abc.MetaPathFinder):
    """Finds TensorFlow as Python does, and has it imported with standard error held back."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_quietly(module) -> None:
                with standard_error_held_back():
                    load(module)

            spec.loader.exec_module = load_quietly
        return spec


@contextlib.contextmanager
def standard_error_held_back() -> Iterator[None]:
    """Shows what is written to file descriptor 2 only if an error leaves the block."""
    sys.stderr.flush()
    shown = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(shown, held.read())
            raise
        finally:
            os.dup2(shown, 2)
            os.close(shown)
