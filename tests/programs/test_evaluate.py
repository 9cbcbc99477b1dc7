"""bin/evaluate.py as a user runs it."""

import functools
import json
import shutil

import keras
import numpy as np
import pytest
from calling import call

from anpvs_tf.data import loading
from anpvs_tf.pruning import compact
from anpvs_tf.runs import console, resolution
from anpvs_tf.runs.directory import RunDirectory
from anpvs_tf.runs.finished_run import open_run
from anpvs_tf.serving import (
    exporting,
    isolated_process,
    litert,
    model_card,
    signatures,
    verification,
)
from anpvs_tf.training import trainer

program = functools.partial(call, "evaluate")


pytestmark = pytest.mark.usefixtures("tiny_lenet5")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_lenet5):
    """A short run with gates, and the standard run that it started from."""
    chosen = resolution.resolve(
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
        open_run(run),
        compact.freeze(open_run(run).network()),
        "saved_model",
        1,
        verification.Report(examples=1, accuracy=1.0, exported={}),
    )
    assert "worst case of pgd, apgd-t, transfer" in card
    shown = console.evaluation_table(records[1:])
    assert "apgd-t (5 steps, 1 start(s), 2 targets)" in shown


def test_results_on_validation_data_are_kept_apart(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained / "run", run)
    flags = [f"--run_dir={run}", "--attack=noise", "--check_examples=0"]
    for split in ("validation", "test"):
        assert program(*flags, f"--split={split}", cwd=tmp_path).returncode == 0
    on_validation, on_test = json.loads((run / "results.json").read_text())[1:]
    assert (on_validation["split"], on_validation["examples"]) == ("validation", 143)
    assert (on_test["split"], on_test["examples"]) == ("test", 359)
    with np.load(run / on_validation["per_example"], allow_pickle=False) as file:
        np.testing.assert_array_equal(file["labels"], loading.load("digits").validation.labels)
    assert [record["split"] for record in open_run(run).evaluations] == ["test"]


def test_attacks_an_exported_model_like_the_run(trained, tmp_path):
    network = open_run(trained / "run").network()
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


def record_of(path):
    (record,) = json.loads((path / "results.json").read_text())
    return record


@pytest.fixture(scope="module")
def models(trained, tmp_path_factory):
    """The run's network as a user might have saved it; "plain" takes pixels in [0, 1]."""
    path = tmp_path_factory.mktemp("models")
    small = compact.freeze(open_run(trained / "run").network())
    # Without biases, a network of ReLUs would see no difference between two ranges from 0.
    bias = next(layer for layer in small.layers[::-1] if layer.weights).bias
    bias.assign_add(0.5 * np.eye(10, dtype=np.float32)[0])

    def save(name, *before, dtype="float32"):
        layers = [keras.Input((28, 28, 1), dtype=dtype), *before]
        x = layers[0]
        for layer in before:
            x = layer(x)
        outputs = small(x)
        keras.Model(layers[0], outputs["logits"] if isinstance(outputs, dict) else outputs).save(
            path / f"{name}.keras"
        )

    save("plain")
    save("rescaling", keras.layers.Rescaling(1 / 255))
    save("symmetric", keras.layers.Rescaling(0.5, 0.5))
    save("normalised", keras.layers.Normalization(mean=0.0, variance=255.0**2))
    save("integers", keras.layers.Rescaling(1 / 255), dtype="uint8")
    for name in ("rescaling", "integers"):
        keras.saving.load_model(path / f"{name}.keras").export(path / name, verbose=False)
    return path


def evaluated(models, tmp_path, name, *flags):
    out = tmp_path / f"{name}-results"
    given = [f"--saved_model={models / name}", "--dataset=digits", f"--out_dir={out}"]
    given += ["--epsilons=0.1", "--examples=100", "--check_examples=0", *flags]
    ended = program(*given, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    return record_of(out), ended.stdout


def test_the_range_that_a_model_takes_is_read_off_its_layers(models, tmp_path):
    attack = ("--attack=pgd", "--attack_steps=5")
    plain, output = evaluated(models, tmp_path, "plain.keras", *attack)
    assert "--input_range" not in output and "input_range" not in plain
    assert plain["robust_accuracy"] < plain["clean_accuracy"] > 0.3
    for name, low, high in (
        ("rescaling", 0, 255),
        ("symmetric", -1, 1),
        ("normalised", 0, 255),
        ("integers", 0, 255),
    ):
        record, output = evaluated(models, tmp_path, f"{name}.keras", *attack)
        assert record["input_range"] == [low, high]
        assert f"black is taken as {low}, white as {high} (by its layer" in output
        assert record["clean_accuracy"] == plain["clean_accuracy"]
        # Epsilon is in pixels of [0, 1] for all; integers round what is crafted.
        assert record["robust_accuracy"] == pytest.approx(plain["robust_accuracy"], abs=0.03)


def test_a_saved_model_says_nothing_of_its_range_and_a_wrong_one_is_noticed(models, tmp_path):
    right, _ = evaluated(models, tmp_path, "rescaling", "--attack=fgsm", "--input_range=0,255")
    assert "reliable" not in right and right["clean_accuracy"] > 0.3
    (tmp_path / "again").mkdir()
    wrong, output = evaluated(models, tmp_path / "again", "rescaling", "--attack=fgsm")
    assert wrong["reliable"] is False
    assert wrong["unreliable_because"] == ["clean accuracy is not above chance"]
    assert "AT CHANCE" in output and "--input_range" in output
    assert "UNRELIABLE: clean accuracy is not above chance" in output


def test_integers_pass_no_gradient(models, tmp_path):
    record, output = evaluated(models, tmp_path, "integers", "--attack=square", "--queries=5")
    assert "white as 255 (it takes uint8)" in output and record["clean_accuracy"] > 0.3
    ended = program(
        f"--saved_model={models / 'integers'}", "--dataset=digits", "--attack=pgd", cwd=tmp_path
    )
    assert ended.returncode == 2
    assert "it takes integers; give a Keras model file" in ended.stderr


def test_models_that_are_no_classifiers_of_the_data(tmp_path):
    images = keras.Input((28, 28, 1))
    flat = keras.layers.Flatten()(images)
    softmax = keras.Model(images, keras.layers.Dense(10, activation="softmax")(flat))
    softmax.export(tmp_path / "softmax", verbose=False)
    keras.Model(images, keras.layers.Dense(7)(flat)).save(tmp_path / "seven.keras")
    for name, message in (
        ("seven.keras", "returns [7] values for an image; the 10 classes"),
        ("softmax", "returns probabilities"),
    ):
        given = (f"--saved_model={tmp_path / name}", "--dataset=digits", "--examples=60")
        ended = program(*given, cwd=tmp_path)
        assert ended.returncode == 2 and message in ended.stderr


def test_a_figure_that_another_attack_beats_says_which(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained / "run", run)
    ended = program(
        f"--run_dir={run}", "--attack=noise,pgd", "--attack_steps=10", "--examples=100",
        "--check_examples=0", "--curve_examples=20", cwd=tmp_path,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    (curves,) = (run / "evaluation" / "tensorboard").iterdir()
    assert curves.name.startswith("pgd-linf-") and any(curves.glob("*tfevents*"))
    noise, pgd, worst = json.loads((run / "results.json").read_text())[1:]
    more = 100 * (noise["robust_accuracy"] - pgd["robust_accuracy"])
    assert more > 1
    assert noise["unreliable_because"] == [f"pgd breaks {more:.1f} points more"]
    assert "unreliable_because" not in pgd and "unreliable_because" not in worst
    assert f"UNRELIABLE: pgd breaks {more:.1f} points more" in ended.stdout
    for what in (f"python bin/report.py {run}", f"python bin/export.py --run_dir={run}"):
        assert what in ended.stdout


def test_attacks_an_int8_file_of_the_run(trained, tmp_path):
    pytest.importorskip("ai_edge_litert")
    run = open_run(trained / "run")
    images = exporting.calibration_images(run, 50)
    litert.write(compact.freeze(run.network()), tmp_path, ("int8",), images)
    before = (trained / "run/results.json").read_text()
    ended = program(
        f"--run_dir={trained / 'run'}", f"--litert={tmp_path / 'model_int8.tflite'}",
        "--attack=transfer,pgd,square", "--epsilons=0.1", "--attack_steps=10", "--queries=20",
        "--examples=100", "--check_examples=0", cwd=tmp_path,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "epsilon 0.1 is 25/255 to images of 256 levels a pixel" in ended.stdout
    assert (trained / "run/results.json").read_text() == before
    home = tmp_path / "model_int8.tflite-evaluation"
    *attacks, worst = json.loads((home / "results.json").read_text())
    robust, test = [], loading.load("digits").test.take(100)
    for record in attacks:
        assert record["threat_model"] == {"norm": "linf", "epsilon": 25 / 255}
        with np.load(home / record["per_example"], allow_pickle=False) as file:
            robust.append((file["broken_by"] < 0) & (file["clean_predictions"] == test.labels))
            clean = file["clean_predictions"]
    answers = isolated_process.tflite_functions(tmp_path)["model_int8.tflite"]
    np.testing.assert_array_equal(clean, answers(test.images)["classes"])
    transfer, pgd, square = (record["robust_accuracy"] for record in attacks)
    assert attacks[0]["attack"]["sources"] == [run.path]
    assert worst["robust_accuracy"] == np.mean(np.logical_and.reduce(robust))
    assert worst["robust_accuracy"] <= pgd <= transfer + 0.03 < square < worst["clean_accuracy"]
    assert worst["model"] == str(tmp_path / "model_int8.tflite")
    assert worst["method"] == run.settings.method
