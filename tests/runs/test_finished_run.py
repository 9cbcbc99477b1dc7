"""A finished run is opened once, and what is wrong with it is found then."""

import json

import fake_runs
import pytest

from anpvs_tf.common.errors import UsageError
from anpvs_tf.runs import resolution
from anpvs_tf.runs.directory import RunDirectory
from anpvs_tf.runs.finished_run import open_run


def test_what_its_files_say(tmp_path):
    made = fake_runs.make(tmp_path / "run", "at", clean=0.75, command=["--method=at"])
    fake_runs.evaluate(made, "apgd-ce", accuracy=0.25)
    run = open_run(str(made.path))
    assert run.path == str(tmp_path / "run")
    assert (run.settings.method, run.command) == ("at", ["bin/train.py", "--method=at"])
    assert run.trained["clean_accuracy"] == 0.75
    assert [one["attack"]["name"] for one in run.records] == ["pgd", "apgd-ce"]
    assert [row["epoch"] for row in run.metrics] == [1.0, 2.0, 3.0]
    assert not run.at_chance


def test_no_run_and_one_that_is_not_finished_are_refused(tmp_path):
    with pytest.raises(UsageError, match="absent holds no readable config"):
        open_run(tmp_path / "absent")
    RunDirectory(tmp_path / "run").begin(resolution.resolve({"dataset": "digits"}), [])
    with pytest.raises(UsageError, match=r"run .* is not finished; resume it with bin/train\.py"):
        open_run(tmp_path / "run")


@pytest.mark.parametrize(
    "file, content, complaint",
    [
        ("metrics.csv", "epoch,loss\n1,many\n", r"metrics\.csv is not what was written"),
        ("results.json", "[]", r"results\.json is not what was written"),
        ("config.json", "{}", r"no readable config\.json"),
    ],
)
def test_damaged_files_are_refused(file, content, complaint, tmp_path):
    made = fake_runs.make(tmp_path / "run", "at")
    (made.path / file).write_text(content)
    with pytest.raises(UsageError, match=complaint):
        open_run(made.path)


def test_without_sums_the_content_is_judged(tmp_path):
    made = fake_runs.make(tmp_path / "run", "at")
    (made.path / "SHA256SUMS").unlink()
    (made.path / "metrics.csv").write_text("epoch,loss\n1,many\n")
    with pytest.raises(UsageError, match=r"cannot be used: could not convert .*many"):
        open_run(made.path)
    (made.path / "metrics.csv").write_text("")
    evaluation = {"attack": {"name": "fgsm"}}
    (made.path / "results.json").write_text(json.dumps([evaluation]))
    with pytest.raises(UsageError, match=r"results\.json has no record of bin/train\.py"):
        open_run(made.path)


def test_weights_that_are_gone_are_missed_when_they_are_needed(tmp_path):
    made = fake_runs.make(tmp_path / "run", "at")  # Without weights.
    with pytest.raises(UsageError, match=r"network\.weights\.h5 does not exist"):
        open_run(made.path).network()
