"""bin/evaluate.py as a user runs it."""

import json
import os
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from documents import ROOT

from anpvs_tf.pruning import compact
from anpvs_tf.runs import console, resolve
from anpvs_tf.runs.directory import RunDirectory
from anpvs_tf.serving import model_card, signatures, verification
from anpvs_tf.training import trainer


def program(*arguments, cwd):
    return subprocess.run(
        [sys.executable, str(ROOT / "bin/evaluate.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=900,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short run with gates, and the standard run that it started from."""
    chosen = resolve.resolve(
        {
            "dataset": "digits",
            "epochs": 1,
            "base_epochs": 2,
            "steps_per_epoch": 20,
            "eval_examples": 40,
            "attack_steps": 2,
            "eval_attack_steps": 3,
        }
    )
    path = tmp_path_factory.mktemp("runs")
    trainer.train(chosen, RunDirectory(path / "run"))
    return path


def test_attacks_a_run_and_does_nothing_twice(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained / "run", run)
    flags = [
        *(f"--run_dir={run}", "--attack=pgd,apgd-t,transfer"),
        *(f"--source_run={trained / 'digits-lenet5-standard-seed0'}", "--targets=2"),
        *("--attack_steps=5", "--examples=50"),
    ]
    result = program(*flags, "--epsilons=0.02", "--check_examples=50", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    files = sorted((run / "evaluation").iterdir())
    assert len(files) == 3
    first = json.loads((run / "results.json").read_text())
    times = [file.stat().st_mtime_ns for file in files]
    result = program(*flags, "--epsilons=0.02,0.2", "--check_examples=0", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert [file.stat().st_mtime_ns for file in files] == times
    assert len(list((run / "evaluation").iterdir())) == 6
    records = json.loads((run / "results.json").read_text())
    for one, other in zip(first, records[:5], strict=True):
        assert one["robust_accuracy"] == other["robust_accuracy"]
    assert [record["attack"]["name"] for record in records] == [
        "pgd",  # bin/train.py's own
        *("pgd", "apgd-t", "transfer", "worst-case") * 2,
    ]
    small, large = records[4], records[8]
    assert small["threat_model"]["epsilon"] == 0.02 and large["threat_model"]["epsilon"] == 0.2
    assert 0 <= large["robust_accuracy"] < small["robust_accuracy"] <= small["clean_accuracy"]
    low, high = small["interval"]
    assert low < small["robust_accuracy"] < high
    assert records[1]["vulnerability"] > records[3]["vulnerability"] > 0  # white box, black box
    assert {check["name"] for check in small["checks"]} >= {"ball", "chance", "frozen"}
    for record in records[1:4]:
        with np.load(run / record["per_example"], allow_pickle=False) as file:
            assert len(file["labels"]) == 50
            robust = (file["broken_by"] < 0) & (file["clean_predictions"] == file["labels"])
            assert robust.mean() == record["robust_accuracy"]
            assert np.nanmax(file["distances"]) <= 0.02 * (1 + 1e-5) + 1e-6

    # The records are readable by everybody who reads records.
    card = model_card.text(
        RunDirectory(run),
        compact.freeze(RunDirectory(run).load_network()),
        "saved_model",
        1,
        verification.Report(examples=1, accuracy=1.0, exported={}),
    )
    assert "worst case of pgd, apgd-t, transfer" in card
    shown = console.evaluation_table(records[1:])
    assert "apgd-t (5 steps, 1 start(s), 2 targets)" in shown


def test_attacks_an_exported_model_like_the_run(trained, tmp_path):
    network = RunDirectory(trained / "run").load_network()
    small = compact.freeze(network)
    signatures.write_saved_model(small, None, tmp_path / "exported")
    small.save(tmp_path / "model.keras")
    shutil.copytree(trained / "run", tmp_path / "run")
    shared = ("--attack=fgsm", "--epsilons=0.05", "--examples=60", "--check_examples=0")
    figures = []
    for model in ("exported", "model.keras"):
        flags = (f"--saved_model={tmp_path / model}", "--dataset=digits", *shared)
        result = program(*flags, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        (record,) = json.loads((tmp_path / f"{model}-evaluation/results.json").read_text())
        figures.append(record["robust_accuracy"])
    result = program(f"--run_dir={tmp_path / 'run'}", *shared, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "run/results.json").read_text())[-1]
    assert figures == [record["robust_accuracy"]] * 2
    assert 0 < record["robust_accuracy"] < record["clean_accuracy"]


def test_misuse(trained, tmp_path):
    run = f"--run_dir={trained / 'run'}"
    images = keras.Input((28, 28, 1))
    flat = keras.layers.Flatten()(images)
    softmax = keras.Model(images, keras.layers.Dense(10, activation="softmax")(flat))
    softmax.save(tmp_path / "softmax.keras")
    keras.Model(images, keras.layers.Dense(7)(flat)).save(tmp_path / "seven.keras")
    (tmp_path / "broken.keras").write_text("not a model")
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    shutil.copy(trained / "run/config.json", unfinished)

    def model(name):
        return (f"--saved_model={tmp_path / name}", "--dataset=digits", "--examples=60")

    cases = {
        (): "--run_dir or --saved_model",
        (run, "--attack=magic"): "unknown attack 'magic'",
        (run, "--epsilons=0"): "epsilon must be positive",
        (run, "--epsilons=2"): r"must lie in (0, 1]",
        (run, "--epsilons=a"): "--epsilons: 'a' is no number and no fraction like 8/255",
        (run, "--epsilons=8"): "got 8: did you mean 8/255?",
        (run, "--threat_model=linf-8/0"): "--threat_model: '8/0' divides by zero",
        (run, "--norm=l1", "--epsilons=1"): "norm must be one of",
        (run, "--norm=l2"): "needs --epsilons",
        (run, "--check_examples=10"): "at least 50",
        (run, "--gamma=2"): "--gamma is used by pgd-latent only",
        (run, "--attack=pgd", "--step_size=nan"): "--step_size: 'nan' is not finite",
        (run, "--out_dir=elsewhere"): "--out_dir belongs to --saved_model",
        (run, "--attack=transfer", *[f"--source_run={trained / 'run'}"] * 2): "names a run twice",
        (run, "--attack_steps=0", "--attack=pgd"): "steps must be at least 1",
        (run, "--restarts=0"): "--restarts must be at least 1",
        (run, "--attack=transfer"): "need each other",
        (run, "--dataset=mnist"): "a run knows its own",
        (run, "--posterior_draws=2"): "--posterior_draws needs a Bayesian run",
        (run, "--posterior_draws=0"): "--posterior_draws must be at least 1",
        (f"--run_dir={unfinished}",): "is not finished",
        (f"--run_dir={tmp_path / 'absent'}",): "no readable config.json",
        (f"--saved_model={tmp_path}",): "needs --dataset",
        model("absent"): "does not exist",
        model("broken.keras"): "cannot be loaded",
        (*model("broken.keras"), "--posterior_draws=2"): "a saved model has no posterior",
        model("seven.keras"): "returns [7] values for an image; the 10 classes",
        model("softmax.keras"): "returns probabilities",
    }
    # One process for all: what is tested is the program's own main.
    script = """
import json, sys
from absl import flags
from anpvs_tf.common.errors import UsageError
from anpvs_tf.programs import evaluate
evaluate._define_flags()
for arguments in json.loads(sys.argv[1]):
    flags.FLAGS.unparse_flags()
    for name in flags.FLAGS.flags_by_module_dict().get("anpvs_tf.programs.evaluate", []):
        name.unparse()
    flags.FLAGS(["evaluate", *arguments])
    try:
        evaluate.main()
        print("nothing was refused")
    except UsageError as error:
        print(str(error))
"""
    result = subprocess.run(
        [sys.executable, "-c", script, json.dumps(list(cases))],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=900,
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.strip().splitlines()
    assert len(lines) == len(cases), result.stdout
    for line, (arguments, message) in zip(lines, cases.items(), strict=True):
        assert message in line, (arguments, line)
    # And its exit code, once.
    refused = program(run, "--attack=magic", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.strip().splitlines()[-1].startswith("error: unknown attack")
    assert not (trained / "run/evaluation").exists()
