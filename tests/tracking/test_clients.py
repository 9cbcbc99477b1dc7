"""The real clients of the trackers, writing to a folder; skipped where they are not installed."""

import importlib.util
import json
import subprocess
import sys

import fake_runs
import pytest

from anpvs_tf.common.errors import UsageError
from anpvs_tf.tracking import tracked_run

ROBUST = "test/pgd 20 steps of 0.02 1 start linf 0.13 359 images/robust_accuracy"
AFTER = "test/apgd-ce 100 steps 1 start linf 0.13 359 images/robust_accuracy"


def installed(name):
    absent = importlib.util.find_spec(name) is None
    return pytest.mark.skipif(absent, reason=f"{name} is not installed: pip install '.[{name}]'")


def twice_told(run, kind):
    """Two processes' work on a run: its training, then an evaluation and a report."""
    trackers = tracked_run.named([kind])
    tracked_run.check(trackers)
    with tracked_run.following(run, trackers):
        pass
    fake_runs.evaluate(run, "apgd-ce", accuracy=0.4)
    page = run.path / "report.html"
    page.write_text("<p>A report</p>")
    with tracked_run.following(run, tracked_run.named([kind])) as tracked:
        tracked.result(run.results()[-1])
        tracked.artifact(page)
    return json.loads(run.tracking_path.read_text())[kind]


@installed("mlflow")
def test_mlflow(tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(name, "1")
    run = fake_runs.make(tmp_path / "mine", precision="float32")
    held = twice_told(run, "mlflow")
    client = MlflowClient()
    experiment = client.get_experiment_by_name("anpvs_tf")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_id == held["identity"] and held["epochs"] == 3
    assert (found.info.run_name, found.info.status) == ("mine", "FINISHED")
    assert found.data.params["beta"] == "1.5" and found.data.params["method"] == "anpvs"
    assert found.data.metrics[ROBUST] == 0.6 and found.data.metrics[AFTER] == 0.4
    curve = client.get_metric_history(found.info.run_id, "validation/robust_accuracy")
    rows = [float(row["validation_robust_accuracy"]) for row in run.metrics()]
    assert [(point.step, point.value) for point in curve] == list(enumerate(rows, 1))
    assert [file.path for file in client.list_artifacts(found.info.run_id)] == ["report.html"]

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(UsageError, match=r"--track=mlflow: .*MLFLOW_TRACKING_URI"):
        tracked_run.check(tracked_run.named(["mlflow"]))


@installed("wandb")
def test_wandb(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    run = fake_runs.make(tmp_path / "mine", precision="float32")
    held = twice_told(run, "wandb")
    logs = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert [log.name for log in logs] == [f"run-{held['identity']}.wandb"] * 2
    first, second = map(recorded, logs)
    (begun,) = first["run"]
    assert (begun["display_name"], begun["project"]) == ("mine", "anpvs_tf")
    assert begun["config"]["update"]["beta"] == 1.5
    curve = [
        (one["item"]["_step"], one["item"]["validation/robust_accuracy"])
        for one in first["history"]
    ]
    rows = [float(row["validation_robust_accuracy"]) for row in run.metrics()]
    assert curve == list(enumerate(rows, 1)) and "history" not in second
    assert figures(first)[ROBUST] == 0.6 and figures(second)[AFTER] == 0.4
    (kept,) = second["artifact"]
    assert [file["path"] for file in kept["manifest"]["contents"]] == ["report.html"]
    assert [one["exit_code"] for log in (first, second) for one in log["exit"]] == [0, 0]


def recorded(log):
    """{kind: records} of a file of wandb, as its own tool reads it."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    found = {}
    for record in map(json.loads, shown.stdout.splitlines()):
        found.setdefault(record["type"], []).append(record[record["type"]])
    return found


def figures(records):
    found = {}
    for one in records["summary"]:
        found |= one["update"]
    return found
