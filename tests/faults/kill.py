"""Kills a digits run at random moments, continues it each time, and compares the end.

    python -m tests.faults.kill --kills=30
    python -m tests.faults.kill --kills=30 --signal=TERM

Trains the run once undisturbed and once with that many kills: some at any moment from the
start of the process on, some while it trains, some while it writes a checkpoint. Then
metrics.csv, the final weights and results.json (but for its times) must be the same,
bit for bit, of the run and of the base that it starts from.
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import h5py
import numpy as np

ROOT = pathlib.Path(__file__).parents[2]
FLAGS = {
    "method": "anpvs",
    "shrink": True,
    "epochs": 6,
    "base_epochs": 2,
    "steps_per_epoch": 15,
    "eval_examples": 60,
    "attack_steps": 2,
    "eval_attack_steps": 2,
    "gate_learning_rate": 0.3,
    "checkpoint_minutes": 0.01,
}
MODES = ("any moment", "training", "writing a checkpoint")


def command(run: pathlib.Path, flags: dict) -> list[str]:
    given = [f"--{name}={value}" for name, value in flags.items()]
    return [sys.executable, str(ROOT / "bin/train.py"), *given, f"--run_dir={run}"]


def start(run: pathlib.Path, flags: dict) -> subprocess.Popen:
    return subprocess.Popen(
        command(run, flags),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"},
    )


def checkpoints(directory: pathlib.Path) -> dict[pathlib.Path, float]:
    """Of all runs below `directory`, with their times."""
    found = {}
    for path in directory.glob("*/checkpoints/ckpt-*.index"):
        with contextlib.suppress(FileNotFoundError):
            found[path] = path.stat().st_mtime
    return found


def until(process: subprocess.Popen, happened) -> bool:
    """Waits; returns whether it happened before the process ended."""
    while process.poll() is None:
        if happened():
            return True
        time.sleep(0.002)
    return False


def kill(
    run: pathlib.Path,
    flags: dict,
    mode: str,
    number: int,
    rng: random.Random,
) -> str | None:
    """Starts the run, ends it by a signal, and says what was lost; None if it ended by itself."""
    home = run.parent
    before = set(checkpoints(home))
    process = start(run, flags)
    began = time.time()
    if mode == MODES[0]:
        length = rng.uniform(0, 20)
        until(process, lambda: time.time() - began > length)
    else:
        # It trains when a checkpoint comes that was not there.
        until(process, lambda: set(checkpoints(home)) - before)
        if mode == MODES[1]:
            length, now = rng.uniform(0, 5), time.time()
            until(process, lambda: time.time() - now > length)
        else:
            until(process, lambda: list(home.glob("*/checkpoints/unfinished")))
            time.sleep(rng.uniform(0, 0.02))
    process.send_signal(number)
    _, errors = process.communicate(timeout=1200)
    if process.returncode == 0:
        return None
    ended = {signal.SIGKILL: -9, signal.SIGTERM: 143}[number]
    if process.returncode != ended:
        # A signal to a process that has not set up its handlers yet.
        assert process.returncode == -number, errors
    held = checkpoints(home)
    lost = time.time() - max([*held.values(), began])
    partial = len(list(home.glob("*/checkpoints/unfinished/*")))
    return f"{mode}: {lost:.1f} s since the last checkpoint, {partial} partial files"


def finish(run: pathlib.Path, flags: dict) -> None:
    process = start(run, flags)
    _, errors = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"{run} ended with {process.returncode}:\n{errors[-3000:]}")


def weights(run: pathlib.Path) -> dict[str, np.ndarray]:
    found = {}
    with h5py.File(run / "checkpoints/network.weights.h5") as file:
        file.visititems(lambda n, v: found.update({n: v[()]}) if hasattr(v, "shape") else None)
    return found


def differences(one: pathlib.Path, other: pathlib.Path) -> list[str]:
    """What is not the same in two finished runs, besides times."""
    found = []
    if (one / "metrics.csv").read_bytes() != (other / "metrics.csv").read_bytes():
        found.append("metrics.csv")
    records = []
    for run in (one, other):
        (record,) = json.loads((run / "results.json").read_text())
        del record["date"], record["timing"], record["efficiency"]["measured"]
        records.append(record)
    if records[0] != records[1]:
        found.append("results.json")
    a, b = weights(one), weights(other)
    found += [name for name in a if name not in b or not np.array_equal(a[name], b[name])]
    return found + sorted(set(b) - set(a))


def test(
    directory: pathlib.Path,
    kills: int,
    number: int,
    seed: int,
    flags: dict = FLAGS,
) -> list[str]:
    """Does it; returns a line a kill.

    Raises:
        AssertionError: an end is not the same.
    """
    rng = random.Random(seed)
    whole, killed = directory / "whole/run", directory / "killed/run"
    finish(whole, flags)
    lines = []
    for i in range(kills):
        line = kill(killed, flags, MODES[-1 - i % len(MODES)], number, rng)
        if line is None:
            lines.append("the run ended before this kill")
            break
        lines.append(line)
        print(f"{i + 1}: {line}", flush=True)
    finish(killed, flags)
    for name in sorted(path.name for path in whole.parent.iterdir()):
        wrong = differences(whole.parent / name, killed.parent / name)
        assert not wrong, f"{name} differs in {wrong}"
    assert not list(killed.parent.glob("*/checkpoints/unfinished"))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--signal", choices=("KILL", "TERM"), default="KILL")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=FLAGS["epochs"])
    given = parser.parse_args()
    number = signal.Signals[f"SIG{given.signal}"]
    with tempfile.TemporaryDirectory() as directory:
        home = pathlib.Path(directory)
        flags = FLAGS | {"epochs": given.epochs}
        lines = test(home, given.kills, number, given.seed, flags)
    for mode in MODES:
        print(f"{sum(line.startswith(mode) for line in lines)} kills: {mode}")
    print("every file is the same as without kills")


if __name__ == "__main__":
    main()
