"""Kills one of two workers in mid-epoch, starts both again, and compares the end.

    python -m tests.faults.worker

The workers are processes on this machine. The one that is left must notice, say so and end
with the exit code of WorkerLost; started again, the two must end as if nothing had been.
"""

import argparse
import json
import os
import pathlib
import signal
import socket
import subprocess
import tempfile
import time

from anpvs_tf.common.errors import WorkerLost
from tests.faults.kill import ROOT, checkpoints, command, differences

FLAGS = {
    "method": "at",
    "epochs": 2,
    "steps_per_epoch": 60,
    "eval_examples": 40,
    "attack_steps": 2,
    "eval_attack_steps": 2,
    "checkpoint_minutes": 0.01,
}


def start(run: pathlib.Path) -> list[subprocess.Popen]:
    with socket.create_server(("localhost", 0)) as a, socket.create_server(("localhost", 0)) as b:
        workers = [f"localhost:{held.getsockname()[1]}" for held in (a, b)]
    started = []
    for index in range(2):
        task = {"type": "worker", "index": index}
        config = json.dumps({"cluster": {"worker": workers}, "task": task})
        environment = {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", "TF_CONFIG": config}
        started.append(
            subprocess.Popen(
                command(run, FLAGS),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | environment,
            )
        )
    return started


def finish(run: pathlib.Path) -> None:
    for process in start(run):
        _, errors = process.communicate()
        assert process.returncode == 0, errors[-3000:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", type=int, default=1, help="which is killed")
    killed = parser.parse_args().worker
    with tempfile.TemporaryDirectory() as directory:
        home = pathlib.Path(directory)
        whole, run = home / "whole/run", home / "killed/run"
        finish(whole)
        workers = start(run)
        while len(checkpoints(run.parent)) < 2:
            assert all(worker.poll() is None for worker in workers)
            time.sleep(0.01)
        workers[killed].send_signal(signal.SIGKILL)
        began = time.time()
        _, errors = workers[1 - killed].communicate(timeout=600)
        code = workers[1 - killed].returncode
        print(f"the other worker ended after {time.time() - began:.1f} s with {code}:")
        print([line for line in errors.splitlines() if line.startswith("error")])
        assert code == WorkerLost.code
        finish(run)
        wrong = differences(whole, run)
        assert not wrong, wrong
        assert not list(run.glob("checkpoints/unfinished"))
    print("both were started again; every file is the same as without the kill")


if __name__ == "__main__":
    main()
