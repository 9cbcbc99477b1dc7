"""Kills a sweep at random moments, continues it each time, and compares the end.

    python -m tests.faults.sweep --kills=12

Six trials of a random search are trained undisturbed, and again with that many `kill -9`: at
any moment from the start of the process on, or as soon as a trial has its results. Then the
two sweeps must have the same trials, each once, with the same settings and the same weights.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

from tests.faults.kill import ROOT, differences, until

FLAGS = (
    "--beta=0.5:4:log",
    "--lambda_vs=1:30:log",
    "--trials=6",
    "--epochs=3",
    "--base_epochs=1",
    "--steps_per_epoch=15",
    "--eval_examples=60",
    "--gate_learning_rate=0.3",
    "--checkpoint_minutes=0.01",
)


def start(sweep: pathlib.Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "bin/tune.py"), *FLAGS, f"--run_dir={sweep}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"},
    )


def finish(sweep: pathlib.Path) -> None:
    process = start(sweep)
    _, errors = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"{sweep} ended with {process.returncode}:\n{errors[-3000:]}")


def results(sweep: pathlib.Path) -> set[pathlib.Path]:
    return set(sweep.glob("trial-*/results.json"))


def kill(sweep: pathlib.Path, between: bool, rng: random.Random) -> str | None:
    """Starts the sweep and kills it; says what there was then, None if it ended by itself."""
    before = results(sweep)
    process = start(sweep)
    began = time.time()
    if between:
        until(process, lambda: results(sweep) - before)
        time.sleep(rng.uniform(0, 0.3))
    else:
        length = rng.uniform(0, 25)
        until(process, lambda: time.time() - began > length)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    if process.returncode == 0:
        return None
    where = "between two trials" if between else "at any moment"
    return f"{where}: {len(results(sweep))} of 6 trials had results"


def trials(sweep: pathlib.Path) -> list[dict]:
    """Of sweep.json, without what is measured anew each time."""
    record = json.loads((sweep / "sweep.json").read_text())
    left_out = ("latency", "front")
    return [{k: v for k, v in trial.items() if k not in left_out} for trial in record["trials"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as directory:
        whole, killed = pathlib.Path(directory) / "whole", pathlib.Path(directory) / "killed"
        finish(whole)
        for number in range(1, given.kills + 1):
            line = kill(killed, number % 3 == 0, rng)
            print(f"{number}: {line or 'the sweep ended before this kill'}", flush=True)
            if line is None:
                break
        finish(killed)
        assert trials(whole) == trials(killed), (trials(whole), trials(killed))
        names = sorted(path.name for path in whole.glob("*-*"))
        assert names == sorted(path.name for path in killed.glob("*-*"))
        for name in names:
            wrong = differences(whole / name, killed / name)
            assert not wrong, f"{name} differs in {wrong}"
    print("the same trials, each once, with the same settings and the same weights")


if __name__ == "__main__":
    main()
