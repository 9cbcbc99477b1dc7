"""Processes that are forked from one that has TensorFlow imported, and so need not import it.

A program starts in them as in a new interpreter, but for packages that were imported before.
"""

import functools
import multiprocessing
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
import types

from documents import ROOT


@functools.cache
def context():
    """The context of `multiprocessing` of these processes; each test process has a server."""
    found = multiprocessing.get_context("forkserver")
    # None of this package: a program has to import what it uses of it.
    packages = ["keras", "keras_tuner", "matplotlib.pyplot", "scipy.stats", "sklearn.datasets"]
    found.set_forkserver_preload([*packages, "tensorflow_probability.python.distributions"])
    return found


class Program:
    """A program that runs in a process of its own, with what a test needs of `Popen`.

    Args:
        program: below the repository; `-c` runs the first argument as code.
        small: with a small network as `lenet5`.
        cwd: where it runs.
        environment: variables that it has besides those of this process.
    """

    def __init__(self, program, *arguments, small=False, cwd=".", **environment):
        # Not a pipe, which would have to be read while the program runs.
        self._home = tempfile.TemporaryDirectory()
        self._streams = [pathlib.Path(self._home.name, name) for name in ("stdout", "stderr")]
        given = [str(program), *map(str, arguments)]
        environment = dict(os.environ) | environment
        place = pathlib.Path(cwd).resolve()
        self._process = context().Process(
            target=_run, args=(given, self._streams, place, environment, small)
        )
        self._process.start()

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self._process.pid, number)

    def communicate(self, timeout=None):
        """Waits for its end; returns what it wrote on standard output and on standard error."""
        self._process.join(timeout)
        if self.returncode is None:
            self._process.kill()
            raise subprocess.TimeoutExpired("the program", timeout)
        return tuple(stream.read_text() for stream in self._streams)


def call(program, *arguments, **how):
    """Runs a program to its end; its returncode, stdout and stderr."""
    process = Program(program, *arguments, **how)
    out, err = process.communicate(timeout=900)
    return types.SimpleNamespace(returncode=process.returncode, stdout=out, stderr=err)


def _run(given, streams, place, environment, small):
    for stream, path in zip((sys.stdout, sys.stderr), streams, strict=True):
        with path.open("w") as file:
            os.dup2(file.fileno(), stream.fileno())
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(place)
    if small:
        import tiny_network

        tiny_network.replace_lenet5()
    program, *arguments = given
    if program == "-c":
        sys.argv = [program, *arguments[1:]]
        exec(compile(arguments[0], "<string>", "exec"), {"__name__": "__main__"})
        return
    sys.argv = [program, *arguments]
    runpy.run_path(str(ROOT / program), run_name="__main__")
