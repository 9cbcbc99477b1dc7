"""Trackers hear of all that happens to a run, once."""

import json
import sys

import fake_runs
import pytest
from calling import call
from recording import Recorder

from anpvs_tf.common.errors import UsageError
from anpvs_tf.tracking import tracked_run, tracker
from anpvs_tf.tracking.tensorboard import Board


@pytest.fixture
def finished(tmp_path):
    return fake_runs.make(tmp_path / "run", weights=tmp_path / "weights", precision="float32")


def told(run, *trackers):
    with tracked_run.following(run, trackers) as tracked:
        tracked.artifact(run.metrics_path)


def test_a_tracker_that_fails_at_its_start_does_not_silence_another(finished, capsys):
    away, here = Recorder(fails_at=("begin", None)), Recorder()
    away.name = "other"
    told(finished, away, here)
    assert away.heard() == [("begin", None, 3)]
    assert [one[0] for one in here.told] == ["begin", *["epoch"] * 3, "result", "artifact", "end"]
    assert capsys.readouterr().err.count("warning: other failed") == 1
    held = json.loads(finished.tracking_path.read_text())
    assert held["other"] == {"identity": None, "epochs": 0}
    assert held["recorder"] == {"identity": "run of anpvs", "epochs": 3}


def test_a_run_that_starts_anew_is_another_tracked_run(finished):
    told(finished, Recorder())
    finished.clear()
    assert not finished.tracking_path.exists()


@pytest.mark.parametrize("text", ["", '["wandb"]', '{"wandb": 3}', '{"wandb": {"identity": "a"}}'])
def test_a_damaged_file_of_trackers_is_refused(finished, text):
    finished.tracking_path.write_text(text)
    with pytest.raises(UsageError, match=r"tracking.json cannot be read .* delete it"):
        tracked_run.TrackedRun(finished, [Recorder()])


def test_names_of_figures_are_such_that_every_tracker_takes_them(finished):
    fake_runs.evaluate(finished, epsilon=8 / 255, steps=20, restarts=5)
    fake_runs.evaluate(finished, "worst-case", of=[{"name": "pgd"}, {"name": "apgd-t"}])
    names = [list(tracker.figures(record)) for record in finished.results()[1:]]
    assert names[0][1] == "test/pgd 20 steps 5 start linf 8_255 359 images/robust_accuracy"
    assert names[1][0] == "test/worst case of pgd apgd-t linf 0.13 359 images/clean_accuracy"
    other = finished.results()[2] | {"posterior_draws": 8, "attack_seed": 3}
    assert " 359 images 8 posterior draws seed 3/" in next(iter(tracker.figures(other)))
    figures = tracker.figures(finished.results()[0])
    assert set(figures.values()) >= {0.97, 0.6, 0.03}


def test_the_board_of_tensorboard_is_a_tracker():
    assert isinstance(Board(), tracker.Tracker)


def test_a_tracker_that_is_not_installed_or_away_ends_a_program_with_one_line(
    tmp_path, finished, monkeypatch
):
    programs = {
        "train": [],
        "evaluate": [f"--run_dir={finished.path}", "--attack=fgsm"],
        "report": [str(finished.path), "--out=report"],
        "tune": ["--beta=1:2", "--run_dir=sweep"],
    }
    monkeypatch.setitem(sys.modules, "mlflow", None)
    for program, arguments in programs.items():
        ended = call(program, *arguments, "--track=mlflow", cwd=tmp_path)
        assert ended.returncode == 2, ended.stderr
        (line,) = ended.stderr.splitlines()
        assert "--track=mlflow needs the package mlflow: pip install 'anpvs_tf[mlflow]'" in line

    def away(self):
        raise UsageError("--track=wandb: no network")

    monkeypatch.setattr(tracked_run.TRACKERS["wandb"], "check", away)
    ended = call("train", "--track=wandb", cwd=tmp_path)
    assert ended.returncode == 2 and "error: --track=wandb: no network" in ended.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "weights"]
