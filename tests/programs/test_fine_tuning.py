"""A network from a Keras model file, from training to a report, as a user has it."""

import json
import shutil

import keras
import numpy as np
import pytest
from calling import call

from anpvs_tf.common import interruption
from anpvs_tf.common.errors import Interrupted, UsageError
from anpvs_tf.runs import directory, resolution
from anpvs_tf.runs.directory import RunDirectory
from anpvs_tf.runs.finished_run import open_run
from anpvs_tf.training import result, trainer, warm_start
from anpvs_tf.tuning.sweep import Definition, Sweep

layers = keras.layers
SMALL = {
    "dataset": "digits",
    "epochs": 1,
    "batch_size": 16,
    "steps_per_epoch": 3,
    "eval_examples": 20,
    "attack_steps": 1,
    "eval_attack_steps": 1,
}
CHOICE = {"method": "anp_vib", "freeze_below": "norm", "gate_learning_rate": 0.3, "beta": 50.0}
CHOICE |= {"weight_average": 0.5, "shrink": True}


def flags(**values):
    return [f"--{name}={value}" for name, value in values.items()]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A model of pixels from 0 to 255 that ends in softmax."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Rescaling(1 / 255, name="pixels"),
            layers.Conv2D(3, 5, strides=4, name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(name="relu"),
            layers.Flatten(name="flat"),
            layers.Dense(6, activation="relu", name="hidden"),
            layers.Dense(10, activation="softmax", name="top"),
        ]
    )
    model.get_layer("norm").moving_mean.assign([0.1, -0.1, 0.2])
    path = tmp_path_factory.mktemp("mine") / "mine.keras"
    model.save(path)
    return path


@pytest.fixture(scope="module")
def trained(file, tmp_path_factory):
    """A run of that file by the program, after which the file is gone."""
    home = tmp_path_factory.mktemp("home")
    shutil.copy(file, home / "mine.keras")
    ended = call("train", "--network=mine.keras", *flags(**SMALL, **CHOICE), cwd=home)
    assert ended.returncode == 0, ended.stderr
    (home / "mine.keras").unlink()
    return RunDirectory(home / "runs/digits-mine.keras-anp_vib-seed0"), ended.stdout


def test_the_run_begins_with_the_file_and_needs_it_no_more(trained, file, tmp_path):
    run, said = trained
    assert "mine.keras, seed 0, from the weights of mine.keras" in said
    assert "not trained       norm and all that it depends on" in said
    assert "mine.keras: its last softmax is taken away" in said
    assert "black is taken as 0, white as 255 (by its layer 'pixels')" in said
    assert run.network_path.read_bytes() == file.read_bytes()
    assert not list(run.path.parent.glob("*standard*"))  # The file is the trained network.
    for program, *given in (
        ("train", f"--run_dir={run.path}"),
        ("evaluate", f"--run_dir={run.path}", "--attack=pgd", "--examples=20"),
        ("report", run.path, f"--out={tmp_path}/report", "--examples=0"),
        ("export", f"--run_dir={run.path}", f"--export_base={tmp_path}/export", "--format=keras"),
    ):
        ended = call(program, *given)
        assert ended.returncode == 0, ended.stderr
    exported = keras.saving.load_model(tmp_path / "export/1/model.keras")
    images = np.random.default_rng(0).random((4, 28, 28, 1), np.float32)
    np.testing.assert_allclose(
        exported(images), open_run(run.path).network()(images, training=False)["logits"], atol=1e-5
    )
    card = (tmp_path / "export/1/README.md").read_text()
    assert "# `mine.keras` for `digits`" in card
    assert "began with the weights of the Keras file `mine.keras`" in card
    assert run.results()[0]["network"] == "mine.keras"


def test_no_bit_of_what_is_frozen_changes_and_the_rest_is_trained(trained, file):
    before, after = keras.saving.load_model(file), open_run(trained[0].path).network()
    changed = {
        layer.name
        for layer in before.layers
        for old, new in zip(
            layer.weights, after.get_layer(layer.name).weights if layer.weights else [], strict=True
        )
        if not np.array_equal(old, new)
    }
    assert changed == {"hidden", "top"}


def test_an_interrupted_run_ends_with_the_same_bits_without_the_file(
    trained, file, tmp_path, monkeypatch
):
    shutil.copy(file, tmp_path / "mine.keras")
    chosen = resolution.resolve({**SMALL, **CHOICE, "network": str(tmp_path / "mine.keras")})
    run, left = RunDirectory(tmp_path / "run"), [True]
    monkeypatch.setattr(result.efficiency, "report", lambda network: {})  # It takes seconds.
    with monkeypatch.context() as signalled:
        signalled.setattr(interruption, "asked", lambda: 0 if left and left.pop() else 15)
        with pytest.raises(Interrupted):
            trainer.train(chosen, run, network_file=tmp_path / "mine.keras")
    (tmp_path / "mine.keras").unlink()
    trainer.train(run.settings(), run)
    whole = trained[0]
    assert whole.metrics_path.read_bytes() == run.metrics_path.read_bytes()
    for one, other in zip(
        open_run(whole.path).network().weights, open_run(run.path).network().weights, strict=True
    ):
        np.testing.assert_array_equal(one.numpy(), other.numpy(), one.path)


def test_a_run_does_not_go_on_with_another_file(trained, file, tmp_path):
    run = trained[0]
    other = tmp_path / "mine.keras"
    model = keras.saving.load_model(file)
    model.layers[-1].bias.assign(np.ones(10))
    model.save(other)
    ended = call("train", f"--network={other}", f"--run_dir={run.path}")
    assert ended.returncode == 2
    assert "holds a run of other settings: network_version=" in ended.stderr
    # The same file, from wherever it lies.
    assert call("train", f"--network={file}", f"--run_dir={run.path}").returncode == 0
    # And where it is gone.
    gone = f"--network={tmp_path / 'gone' / 'mine.keras'}"
    assert call("train", gone, f"--run_dir={run.path}").returncode == 0
    ended = call("train", gone, f"--run_dir={tmp_path / 'new'}")
    assert ended.returncode == 2 and "mine.keras does not exist" in ended.stderr
    ended = call("train", "--network=lenet5", f"--run_dir={run.path}")
    assert "holds a run of other settings: network='mine.keras' (now 'lenet5')" in ended.stderr
    ended = call("train", f"--network={run.network_path}", f"--run_dir={run.path}", "--overwrite")
    assert "is in the run that --overwrite deletes" in ended.stderr
    assert run.network_path.exists()
    # A copy that is damaged.
    copy = RunDirectory(shutil.copytree(run.path, tmp_path / "copy"))
    copy.network_path.write_bytes(other.read_bytes())
    with pytest.raises(UsageError, match=r"network.keras is not what was written"):
        open_run(copy.path).network()
    copy.results_path.unlink()
    with pytest.raises(UsageError, match=r"network.keras is not the mine.keras that the run is of"):
        trainer.train(copy.settings(), copy)
    copy.network_path.unlink()
    with pytest.raises(UsageError, match=r"missing; give --network=mine.keras again"):
        trainer.train(copy.settings(), copy)


def test_the_file_stands_for_the_base_unless_a_base_is_asked_for(file, tmp_path):
    def needs(**changes):
        chosen = resolution.resolve({"dataset": "digits", "network": str(file), **changes})
        return warm_start.needs_base(chosen), chosen

    assert [needs(method=m)[0] for m in ("anpvs", "pretrained_at", "pat")] == [False, False, True]
    wanted, chosen = needs(method="anpvs", base_epochs=2, freeze_below="conv")
    base = warm_start.base_settings(chosen)
    assert wanted and (base.epochs, base.freeze_below) == (2, "conv")
    assert base.network_version == chosen.network_version
    wanted, chosen = needs(method="anpvs", pretrained=False)
    assert wanted and chosen.base_epochs == 15
    # A base that has yet to learn something is trained whole.
    _, chosen = needs(method="anpvs", pretrained=False, freeze_below="conv")
    assert warm_start.base_settings(chosen).freeze_below is None
    with pytest.raises(UsageError, match="begins with a trained network"):
        needs(method="pretrained_at", pretrained=False, base_epochs=0)


def test_a_later_run_starts_from_an_earlier_one_of_the_same_file(trained, file, tmp_path):
    run = trained[0]
    asked = {"dataset": "digits", "base_run": str(run.path)}

    def base_of(**changes):
        chosen = resolution.resolve(asked | changes)
        return warm_start.base_run(chosen, RunDirectory(tmp_path / "next"))

    # By the name of the copy, with every layer trained.
    assert base_of(network=str(run.network_path)).path == run.path
    with pytest.raises(UsageError, match=r"has input_range None, this run needs \(0.0, 1.0\)"):
        base_of(network=str(file), input_range=[0, 1])
    with pytest.raises(UsageError, match=r"has network mine.keras, this run needs lenet5"):
        base_of()


def test_a_run_that_was_written_before_there_were_files_can_be_read(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.begin(resolution.resolve({"dataset": "digits"}), [])
    config = json.loads(run.config_path.read_text())
    for name in ("network_version", "pretrained", "input_range", "freeze_below", "coupled"):
        del config["settings"][name]
    run.config_path.write_text(json.dumps(config))
    assert run.settings() == resolution.resolve({"dataset": "digits"})


def test_a_sweep_keeps_the_files_of_its_trials(file, tmp_path):
    other = tmp_path / "other.keras"
    shutil.copy(file, other)
    small = {name: str(value) for name, value in SMALL.items()}
    definition = Definition(
        {"network": f"{file}|{other}|lenet5", "method": "at", **small}, tuner="grid"
    )
    swept = Sweep(tmp_path / "sweep", definition)
    swept.path.mkdir()
    swept.begin()
    other.unlink()
    again = Sweep(tmp_path / "sweep", definition)
    again.check()
    chosen = again.settings_of({"network": str(other)})
    assert (chosen.network, chosen.pretrained) == ("other.keras", True)
    run = again.run_of("0")
    again.train(chosen, run)
    assert run.network_path.read_bytes() == file.read_bytes()
    assert again.settings_of({"network": "lenet5"}).network_version is None
    other.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UsageError, match=r"other.keras was changed after the sweep"):
        again.check()
    with pytest.raises(UsageError, match=r"names two files mine.keras"):
        Sweep(tmp_path / "two", Definition({"network": f"{file}|{tmp_path}/mine.keras"}))


def test_run_directories_are_named_after_the_file(file):
    chosen = resolution.resolve({"dataset": "digits", "network": str(file), "method": "at"})
    assert directory.default_name(chosen) == "digits-mine.keras-at-seed0"
