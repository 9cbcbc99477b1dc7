"""Sweeps with real training: bin/tune.py and what it leaves."""

import json
import pathlib
import shutil

import processes
import pytest

from anpvs_tf.methods.registry import METHODS
from anpvs_tf.reporting import grouping
from anpvs_tf.runs.directory import RunDirectory
from anpvs_tf.runs.finished_run import open_run
from anpvs_tf.training import trainer
from anpvs_tf.tuning import search, sweep, table
from anpvs_tf.tuning.sweep import Definition, Sweep

TINY = {
    "epochs": "2",
    "steps_per_epoch": "2",
    "base_epochs": "1",
    "eval_examples": "20",
    "attack_steps": "1",
    "eval_attack_steps": "1",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two trials, of which the second cannot be trained, by the program itself."""
    path = tmp_path_factory.mktemp("real") / "sweep"
    flags = {"batch_size": "16|4096", "method": "anp", "gate_scope": "dense"} | TINY
    # A network at chance would not be chosen.
    flags |= {"steps_per_epoch": "60", "eval_examples": "100"}
    result = program("--tuner=grid", "--noshrink", run_dir=path, **flags)
    assert result.returncode == 0, result.stderr
    return path, result.stdout


def program(*arguments, **flags):
    flags = [f"--{name}={value}" for name, value in flags.items()]
    return processes.call("bin/tune.py", *arguments, *flags)


def test_trials_are_runs(trained):
    path, output = trained
    found, skipped = grouping.collect([str(path)])
    by_name = {pathlib.Path(run.path).name: run for run in found}
    assert not skipped
    assert {name for name in by_name if name.startswith("trial")} == {"trial-0000"}
    run = by_name["trial-0000"]
    assert run.settings.batch_size == 16 and run.settings.method == "anp"
    base = RunDirectory(run.settings.base_run)
    assert base.finished and base.settings().method == METHODS["anp"].base
    assert base.settings().batch_size == 16  # It decides the weights of the base too.
    open_run(run.directory.path).network()
    state = json.loads((path / "sweep.json").read_text())
    rows = {row["name"]: row for row in state["trials"]}
    assert rows["trial-0001"]["state"] == "failed"
    assert "--batch_size=4096" in rows["trial-0001"]["reason"]
    for name, run in by_name.items():
        if name in rows:
            last = run.metrics[-1]
            assert rows[name]["score"] == rows[name]["robust"] == last["validation_robust_accuracy"]
            assert rows[name]["sparsity"] == last["sparsity"]
            assert rows[name]["latency"] > 0
    assert state["chosen"] in by_name and state["chosen"] in state["front"]
    assert f"--run_dir={path / state['chosen']}" in output
    assert "failed: --batch_size=4096" in output


def test_a_damaged_trial_hides_no_other(trained, tmp_path):
    path, _ = trained
    copy = tmp_path / "sweep"
    shutil.copytree(path, copy)
    (copy / "trial-0000/results.json").write_text("[]")
    rows = table.trials(Sweep(copy, sweep.read_definition(path)))
    assert [row["state"] for row in rows] == ["failed", "failed"]
    assert "results.json" in rows[0]["reason"] and "4096" in rows[1]["reason"]
    shutil.rmtree(copy / "trial-0000")
    rows = table.trials(Sweep(copy, sweep.read_definition(path)))
    assert "trial-0000 holds no readable config.json" in rows[0]["reason"]


def test_a_finished_sweep_is_shown_again(trained, monkeypatch):
    path, output = trained
    definition = sweep.read_definition(path)
    assert definition.settings["shrink"] == "false"
    monkeypatch.setattr(trainer, "train", None)
    again = Sweep(path, definition)
    search.run(again)
    assert table.text(again) in output


def test_trials_that_agree_share_a_base(tmp_path, monkeypatch):
    made = Sweep(tmp_path / "s", Definition({"beta": "1|2", "seed": "0|1"} | TINY, tuner="grid"))
    chosen = []

    def stand_in(settings, run, *_, **__):
        chosen.append((settings, run.path.name))
        run.path.mkdir(parents=True)
        run.results_path.write_text("[]")

    monkeypatch.setattr(trainer, "train", stand_in)
    for i, seed in enumerate((0, 0, 1, 1)):
        made.train(made.settings_of({"beta": 1 + i % 2, "seed": seed}), made.run_of(str(i)))
    bases = [(one, name) for one, name in chosen if name.startswith("base")]
    assert [one.seed for one, _ in bases] == [0, 1]
    trials = [one for one, name in chosen if name.startswith("trial")]
    assert [pathlib.Path(one.base_run).name for one in trials] == [
        bases[0][1],
        bases[0][1],
        bases[1][1],
        bases[1][1],
    ]
    assert {one.epochs for one, _ in bases} == {1}
