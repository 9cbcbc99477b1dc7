"""A run that is interrupted anywhere ends like one that is not."""

import json
import os
import signal
import subprocess
import sys
import time

import calling
import numpy as np
import processes
import pytest
from documents import ROOT

from anpvs_tf.common import devices, interruption
from anpvs_tf.common.errors import Interrupted, UsageError
from anpvs_tf.runs import resolution
from anpvs_tf.runs.directory import RunDirectory
from anpvs_tf.runs.finished_run import open_run
from anpvs_tf.training import checkpoints, trainer

pytestmark = pytest.mark.usefixtures("tiny_lenet5")

TINY = {
    "dataset": "digits",
    "epochs": 2,
    "batch_size": 16,
    "steps_per_epoch": 3,
    "eval_examples": 20,
    "eval_attack_steps": 1,
}


def resolved(**changes):
    return resolution.resolve(TINY | changes)


def results_without_times(run):
    (record,) = run.results()
    for name in ("date", "timing"):
        del record[name]
    del record["efficiency"]["measured"]
    return record


def assert_same_run(one, other):
    """In every bit that is not a time."""
    assert one.metrics_path.read_bytes() == other.metrics_path.read_bytes()
    assert results_without_times(one) == results_without_times(other)
    weights = (open_run(run.path).network().weights for run in (one, other))
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), a.path)


def spy(monkeypatch, owner, name, events):
    """Appends the name of a function to `events` when it has done its work."""
    function = getattr(owner, name)

    def spied(*given):
        found = function(*given)
        events.append(name)
        return found

    monkeypatch.setattr(owner, name, spied)


def train_interrupted(chosen, run, monkeypatch, after):
    """Trains in lives, each ended by a signal after some steps or batches; returns their number."""
    left = []
    monkeypatch.setattr(interruption, "asked", lambda: 0 if left and left.pop() else signal.SIGTERM)
    for life, length in enumerate(after):
        left[:] = [True] * length
        try:
            trainer.train(chosen, run)
        except Interrupted as error:
            assert "ckpt-" in str(error)
        else:
            return life


def test_interruptions_within_epochs_change_no_bit(tmp_path, monkeypatch):
    base = RunDirectory(tmp_path / "base")
    trainer.train(resolved(method="standard", epochs=1, steps_per_epoch=1), base)
    change = {"attack_steps": 1, "shrink": True, "gate_learning_rate": 0.3, "weight_average": 0.3}
    change |= {"target_sparsity": 0.6, "target_of": "operations", "optimizer": "sgd"}
    chosen = resolved(method="anpvs", base_run=str(base.path), **change)
    whole, parts = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "parts")
    trainer.train(chosen, whole)
    events = []
    for owner, name in (
        (checkpoints.Checkpoints, "save"),
        (devices.Devices, "of_chief"),
        (trainer, "kept_for_later"),
    ):
        spy(monkeypatch, owner, name, events)
    # In the first epoch's validation; within the second epoch; in the final test.
    assert train_interrupted(chosen, parts, monkeypatch, after=(3, 1, 3, 9)) == 3
    assert_same_run(whole, parts)
    # After a step, all workers wait until the chief has saved: the first to go may end the others.
    left = [events[i - 2 : i] for i, name in enumerate(events) if name == "kept_for_later"]
    assert len(left) == 3 and ["save", "of_chief"] in left


def test_run_dir_alone_goes_on_after_sigterm_as_nothing_had_been(tmp_path):
    flags = {**TINY, "method": "at", "steps_per_epoch": 40, "eval_examples": 10}
    flags = [f"--{name}={value}" for name, value in flags.items()]

    def start(*arguments):
        return processes.Program("bin/train.py", *arguments, small=True)

    run, whole = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "whole")
    process = start(*flags, f"--run_dir={run.path}", "--checkpoint_minutes=0")
    while not run.begun and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 143, errors
    assert "SIGTERM: the last good checkpoint is" in errors.splitlines()[-1]
    assert not run.metrics()  # In the first epoch.
    process = start(f"--run_dir={run.path}")
    output, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    assert "Resuming" in output and "after epoch 0 and" in output
    # A process too: it has other threads, which add in another order.
    _, errors = start(*flags, f"--run_dir={whole.path}").communicate(timeout=900)
    assert whole.finished, errors
    assert_same_run(whole, run)
    # Other flags must agree with what the directory holds.
    ended = calling.call("train", f"--run_dir={run.path}", "--epsilon=0.2")
    assert ended.returncode == 2
    assert "holds a run of other settings: epsilon=0.13 (now 0.2)" in ended.stderr


SECOND_SIGNAL = """
import os, signal, time
from anpvs_tf.common import interruption

with interruption.deferred():
    os.kill(os.getpid(), signal.SIGINT)
    while not interruption.asked():
        time.sleep(0.01)
    assert interruption.asked() == signal.SIGINT
    print("asked", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(3600)
"""


def test_a_second_signal_ends_the_process_at_once():
    result = subprocess.run(
        [sys.executable, "-c", SECOND_SIGNAL],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=900,
    )
    assert result.returncode == 143, result.stderr
    assert "asked" in result.stdout and "once more to leave at once" in result.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon": "0.1"}, "--epsilon must be of kind float; got '0.1'"),
        ({"epochs": True}, "--epochs must be of kind int; got True"),
        ({"shrink": 1}, "--shrink must be of kind bool; got 1"),
        ({"epochs": 2.5}, "--epochs must be of kind int; got 2.5"),
        ({"epochs": None}, "--epochs must be of kind int; got None"),
        ({"epochs": -(10**400)}, "--epochs must be a finite number and at least 1"),
        ({"epsilon": float("nan")}, "--epsilon must be a finite number"),
        ({"base_run": ["x"]}, "--base_run must be of kind str"),
        ({"decay_at": 3}, "--decay_at must be numbers"),
        ({"decay_at": {"a": 1}}, "--decay_at must be numbers"),
        ({"dataset": "x"}, "unknown dataset 'x'"),
        ({"dataset": []}, "--dataset must be of kind str; got []"),
        ({"method": {}}, "--method must be of kind str; got {}"),
        ({"__class__": 1}, "unknown setting '__class__'"),
    ],
)
def test_a_hostile_config_is_refused_in_one_line(tmp_path, change, message):
    run = RunDirectory(tmp_path / "run")
    run.begin(resolved(), [])
    config = json.loads(run.config_path.read_text())
    config["settings"] |= change
    run.config_path.write_text(json.dumps(config))
    with pytest.raises(UsageError) as error:
        run.settings()
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[" * 100_000, "[]", "{", '{"settings": 3}', "\x00", "3"])
def test_a_config_that_is_none_is_refused(tmp_path, text):
    run = RunDirectory(tmp_path / "run")
    run.begin(resolved(), [])
    run.config_path.write_text(text)
    with pytest.raises(UsageError, match="holds no readable config"):
        run.settings()


def test_a_config_with_a_setting_out_of_range_says_which(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.begin(resolved(), [])
    config = json.loads(run.config_path.read_text())
    config["settings"]["epochs"] = 0
    run.config_path.write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"config.json cannot be used: --epochs must be"):
        run.settings()
