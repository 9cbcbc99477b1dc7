"""Triton Inference Server on this machine: the one that nvidia-pytriton brings (extra `triton`)."""

import contextlib
import ctypes
import errno
import importlib.metadata
import importlib.util
import os
import pathlib
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

from anpvs_tf.common.errors import TrainingError, UsageError

INSTALL = "pip install 'anpvs_tf[triton]'"
# Closing connections may take so long; seconds.
GRACE = 5


@contextlib.contextmanager
def running(
    repository: str | os.PathLike, port: int = 8000, host: str = "127.0.0.1", patience: float = 60.0
) -> Iterator[subprocess.Popen]:
    """Starts the server, yields its process when it is ready, and stops it at the end.

    It answers HTTP (KServe's version 2 of the inference protocol), and serves the newest version
    of each model.

    Args:
        repository: directory of models: export bases of `--format=triton`, and nothing else.
        port: TCP port, 1 to 65535, that no other process listens on.
        host: address to listen at: "0.0.0.0" to be reached from other machines.
        patience: seconds to wait until it is ready.

    Raises:
        UsageError: nvidia-pytriton is not installed or does not run here, there is no such
            directory, or the port cannot be used.
        TrainingError: the server ended, or was not ready in time; the message has its reason.
    """
    package = _package()
    repository = pathlib.Path(repository).resolve()
    if not repository.is_dir():
        raise UsageError(f"no directory {repository}; give that of the models")
    _check_port(host, port)
    with tempfile.TemporaryDirectory() as scratch, open(f"{scratch}/log", "w+") as log:
        process = subprocess.Popen(
            [
                package / "tritonserver/bin/tritonserver",
                f"--model-repository={repository}",
                f"--backend-directory={_backends(package, pathlib.Path(scratch))}",
                f"--http-address={host}",
                f"--http-port={port}",
                "--allow-grpc=false",
                "--allow-metrics=false",
                f"--exit-timeout-secs={GRACE}",
            ],
            env=_environment(package),
            stdout=log,
            stderr=log,
            preexec_fn=_end_with_parent,
        )
        try:
            asked = "127.0.0.1" if host == "0.0.0.0" else host
            _await(process, f"http://{asked}:{port}/v2/health/ready", patience, log.name)
            yield process
        finally:
            _stop(process)


def _end_with_parent() -> None:
    """Lets the server end when this process does, however it ends; in the server's process."""
    set_death_signal = 1  # PR_SET_PDEATHSIG of Linux, the only system that the server runs on.
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGTERM)


def _package() -> pathlib.Path:
    """Finds the directory of nvidia-pytriton without its import, which would take a second."""
    found = importlib.util.find_spec("pytriton")
    if found is None or found.origin is None:
        raise UsageError(f"the server needs the package nvidia-pytriton: {INSTALL}")
    package = pathlib.Path(found.origin).parent
    if not _stub(package).exists():
        version = ".".join(map(str, sys.version_info[:2]))
        raise UsageError(f"nvidia-pytriton serves no Python {version}; use Python 3.10 to 3.12")
    numpy = importlib.metadata.version("numpy")
    if int(numpy.split(".")[0]) >= 2:
        # Its Python backend, compiled for numpy 1, would answer with empty arrays.
        raise UsageError(f"nvidia-pytriton needs numpy below 2, and here is {numpy}: {INSTALL}")
    return package


def _stub(package: pathlib.Path) -> pathlib.Path:
    version = ".".join(map(str, sys.version_info[:2]))
    return package / "tritonserver/python_backend_stubs" / version / "triton_python_backend_stub"


def _backends(package: pathlib.Path, scratch: pathlib.Path) -> pathlib.Path:
    """Makes a directory of backends: the Python backend, with the program for this Python."""
    python = scratch / "backends" / "python"
    python.mkdir(parents=True)
    files = (package / "tritonserver/backends/python").glob("*.*")
    for file in (*files, _stub(package)):
        (python / file.name).symlink_to(file)
    return python.parent


def _environment(package: pathlib.Path) -> dict[str, str]:
    libraries = [package.parent / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR")]
    places = {"LD_LIBRARY_PATH": libraries, "PATH": [pathlib.Path(sys.exec_prefix, "bin")]}
    found = dict(os.environ)
    for name, paths in places.items():
        held = [found[name]] if name in found else []
        found[name] = os.pathsep.join(str(path) for path in (*paths, *held) if path)
    return found


def _check_port(host: str, port: int) -> None:
    try:
        with socket.socket() as probe:
            # As the server does, which may follow another one at once.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        used = getattr(error, "errno", None) == errno.EADDRINUSE
        why = "is in use" if used else f"cannot be used: {error}"
        raise UsageError(f"port {port} of {host} {why}; choose another one") from error


def _await(process: subprocess.Popen, url: str, patience: float, log: str) -> None:
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if process.poll() is not None:
            raise TrainingError(f"tritonserver ended: {_reason(log)}")
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=1.0) as answer:
            if answer.status == 200:
                return
        time.sleep(0.05)
    raise TrainingError(f"tritonserver was not ready in {patience:g} s: {_reason(log)}")


def _reason(log: str) -> str:
    """Finds the first failure in a log; if it reports none, its last line."""
    text = pathlib.Path(log).read_text(errors="replace").strip()
    lines = text.splitlines() or ["it said nothing"]
    failures = [line for line in lines if "failed to load" in line or line.startswith("error:")]
    return (failures or lines[-1:])[0]


def _stop(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(GRACE + 5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
