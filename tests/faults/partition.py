"""Cuts one of three machines off in mid-epoch, starts all again, and compares the end.

    python -m tests.faults.partition

The machines are network namespaces of this one, joined by a switch (a bridge in a fourth); that
needs root. A cut link loses all packets without a word, as a pulled cable does: no process ends
and no connection is refused. All three workers must notice within a minute and end with the exit
code of WorkerLost; started again, they must end as if nothing had been.
"""

import argparse
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from anpvs_tf.common.errors import WorkerLost
from tests.faults.kill import ROOT, checkpoints, command, differences
from tests.faults.worker import FLAGS

MACHINES = 3
SECONDS = 60
BATCH = {"batch_size": 33}


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


class Network:
    """Machines with an address each, joined by a switch."""

    def __init__(self, name: str):
        self.switch = f"{name}s"
        self.machines = [f"{name}m{i}" for i in range(MACHINES)]
        self.addresses = [f"10.77.0.{i + 1}" for i in range(MACHINES)]

    def make(self) -> None:
        for namespace in (self.switch, *self.machines):
            ip("netns", "add", namespace)
            ip("-n", namespace, "link", "set", "lo", "up")
        ip("-n", self.switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", self.switch, "link", "set", "bridge", "up")
        for i, (machine, address) in enumerate(zip(self.machines, self.addresses, strict=True)):
            peer = ("peer", "name", "wire", "netns", machine)
            ip("-n", self.switch, "link", "add", f"port{i}", "type", "veth", *peer)
            ip("-n", self.switch, "link", "set", f"port{i}", "master", "bridge", "up")
            ip("-n", machine, "address", "add", f"{address}/24", "dev", "wire")
            ip("-n", machine, "link", "set", "wire", "up")

    def link(self, machine: int, state: str) -> None:
        """Cuts a machine off at the switch ("down"), or joins it again ("up")."""
        ip("-n", self.switch, "link", "set", f"port{machine}", state)

    def delete(self) -> None:
        for namespace in (self.switch, *self.machines):
            subprocess.run(["ip", "netns", "delete", namespace], check=False)


@contextlib.contextmanager
def network() -> Iterator[Network]:
    made = Network(f"anpvs{os.getpid()}")
    try:
        made.make()
        yield made
    finally:
        made.delete()


def start(joined: Network, run: pathlib.Path) -> list[subprocess.Popen]:
    """Starts a worker on each machine; what it says on standard error is in a file beside `run`."""
    workers = [f"{address}:12345" for address in joined.addresses]
    started = []
    run.parent.mkdir(exist_ok=True)
    for index, machine in enumerate(joined.machines):
        task = {"type": "worker", "index": index}
        config = json.dumps({"cluster": {"worker": workers}, "task": task})
        environment = {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", "TF_CONFIG": config}
        _, *program = command(run, FLAGS | BATCH)
        small = str(ROOT / "tests/tiny_network.py")
        with said_of(run, index).open("w") as errors:
            started.append(
                subprocess.Popen(
                    ["ip", "netns", "exec", machine, sys.executable, small, *program],
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    env=os.environ | environment,
                )
            )
    return started


def said_of(run: pathlib.Path, index: int) -> pathlib.Path:
    return run.parent / f"worker-{index}.txt"


def finish(joined: Network, run: pathlib.Path) -> None:
    for index, process in enumerate(start(joined, run)):
        process.wait()
        assert process.returncode == 0, said_of(run, index).read_text()[-3000:]


def ends(run: pathlib.Path, workers: list[subprocess.Popen]) -> list[float]:
    """Waits until all workers have ended, and says when and how each did; the seconds it took."""
    began = time.monotonic()
    noticed: dict[int, float] = {}
    ended: dict[int, float] = {}
    try:
        while len(ended) < MACHINES and time.monotonic() - began < 3 * SECONDS:
            for index, worker in enumerate(workers):
                now = time.monotonic() - began
                if "\nerror: " in said_of(run, index).read_text():
                    noticed.setdefault(index, now)
                if worker.poll() is not None:
                    ended.setdefault(index, now)
            time.sleep(0.05)
    finally:
        for worker in workers:
            worker.kill()
    for index, worker in enumerate(workers):
        *_, last = said_of(run, index).read_text().splitlines()
        times = [f"{when.get(index, float('inf')):.1f} s" for when in (noticed, ended)]
        print(f"worker {index} noticed after {times[0]}, ended after {times[1]}", end=" ")
        print(f"with {worker.wait()}: {last}")
    assert [worker.returncode for worker in workers] == [WorkerLost.code] * MACHINES
    return list(ended.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--machine", type=int, default=2, help="which is cut off; 0 is the chief's")
    cut = parser.parse_args().machine
    with tempfile.TemporaryDirectory() as directory, network() as joined:
        home = pathlib.Path(directory)
        whole, run = home / "whole/run", home / "cut/run"
        finish(joined, whole)
        workers = start(joined, run)
        while len(checkpoints(run.parent)) < 2:
            assert all(worker.poll() is None for worker in workers)
            time.sleep(0.01)
        joined.link(cut, "down")
        assert max(ends(run, workers)) <= SECONDS
        joined.link(cut, "up")
        finish(joined, run)
        wrong = differences(whole, run)
        assert not wrong, wrong
        assert not list(run.glob("checkpoints/unfinished"))
    print("all were started again; every file is the same as without the cut")


if __name__ == "__main__":
    main()
