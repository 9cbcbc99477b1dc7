"""Damage, a full disk, numbers that are not finite; the long forms are in tests/faults."""

import errno
import json
import shutil
import signal
import types
import zipfile

import keras
import numpy as np
import processes
import pytest
import tensorflow as tf

from anpvs_tf.common import files, lock
from anpvs_tf.common.errors import LockLost, TrainingError, UsageError
from anpvs_tf.data.loading import SOURCES
from anpvs_tf.evaluation import attacked_model
from anpvs_tf.methods import losses
from anpvs_tf.methods.optimizer import GroupedAdam
from anpvs_tf.methods.registry import METHODS
from anpvs_tf.methods.robust_classifier import Objective, RobustClassifier
from anpvs_tf.networks import gating
from anpvs_tf.runs import build
from anpvs_tf.runs.directory import RunDirectory, os
from anpvs_tf.runs.finished_run import open_run
from anpvs_tf.training import checkpoints, history, names, nonfinite, trainer
from tests.faults import corruption, kill

pytestmark = pytest.mark.usefixtures("tiny_lenet5")


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_lenet5):
    return corruption.make(tmp_path_factory.mktemp("faults"))


def test_kills_change_nothing(tmp_path, monkeypatch):
    def start(run, flags):
        _, program, *given = kill.command(run, flags)
        return processes.Program(program, *given, small=True)

    monkeypatch.setattr(kill, "start", start)
    flags = corruption.TINY | {"steps_per_epoch": 40, "checkpoint_minutes": 0.001}
    lines = kill.test(tmp_path, 2, signal.SIGKILL, 0, flags)
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("file", "how", "expected"),
    [
        ("checkpoints/ckpt-2.data-00000-of-00001", "a bit flipped", "resuming from ckpt-1"),
        ("checkpoints/ckpt-2.index", "empty", "resuming from ckpt-1"),
        ("metrics.csv", "deleted", "the same result"),
        ("config.json", "cut in half", "holds no readable config.json"),
    ],
)
def test_a_damaged_file_of_a_stopped_run(made, tmp_path, file, how, expected):
    stopped, finished = made
    assert expected in corruption.outcome(
        corruption.damaged(stopped, file, how, tmp_path), finished
    )


@pytest.mark.parametrize(
    "file", ["metrics.csv", "results.json", "config.json", "checkpoints/network.weights.h5"]
)
def test_a_flipped_bit_of_a_finished_run_is_noticed(made, tmp_path, file):
    _, finished = made
    run = corruption.damaged(finished, file, "a bit flipped", tmp_path)
    with pytest.raises(UsageError):
        run.results()
    with pytest.raises(UsageError):
        open_run(run.path).network()


def test_a_changed_setting_is_noticed(made, tmp_path):
    stopped, _ = made
    shutil.copytree(stopped.path, tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    config = json.loads(run.config_path.read_text())
    config["settings"]["learning_rate"] *= 2
    run.config_path.write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"config.json says learning_rate=0.004.*was changed"):
        trainer.train(run.settings(), run)


def test_a_version_with_other_columns_does_not_go_on(made, tmp_path, monkeypatch):
    stopped, _ = made
    shutil.copytree(stopped.path, tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    row = history.epoch_row

    def other_row(*given):
        return {n: v for n, v in row(*given).items() if n != "sparsity"} | {"margin": 0.0}

    with monkeypatch.context() as patch:
        patch.setattr(history, "epoch_row", other_row)
        with pytest.raises(
            UsageError, match=r"csv without sparsity, with margin: resume it with the"
        ):
            trainer.train(run.settings(), run)
    assert before == {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    # Nor within an epoch that was begun with other loss terms.
    position = checkpoints.Position({}, step=1, sums={"loss": 1.0})
    network = build.build_network(run.settings(), "float32")
    with pytest.raises(UsageError, match=r"csv with margin: "):
        history.check_columns(run, position, ["loss", "margin"], network)


def test_no_checkpoint_that_can_be_read(made, tmp_path):
    stopped, _ = made
    shutil.copytree(stopped.path, tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    for path in run.checkpoints.glob("*.data*"):
        corruption.flip(path)
    with pytest.raises(UsageError, match=r"damaged.*damaged.*no other is left: start anew"):
        trainer.train(run.settings(), run)
    shutil.rmtree(run.checkpoints)
    with pytest.raises(UsageError, match=r"the checkpoints of .* are gone"):
        trainer.train(run.settings(), run)


def small_checkpoints(directory):
    held = tf.train.Checkpoint(v=tf.Variable([[1.5, 2.5], [3.5, 4.5]]), n=tf.Variable(7))
    position = checkpoints.Position({"seed": 0})
    return checkpoints.Checkpoints(directory, position, held=held), held


def test_every_bit_of_a_checkpoint_counts(tmp_path):
    saved, held = small_checkpoints(tmp_path)
    saved.save()
    saved.position.add({"loss": 0.1})
    saved.save()
    rng = np.random.default_rng(0)
    for path in sorted(tmp_path.glob("ckpt-2.*")):
        data = path.read_bytes()
        for place in range(len(data)):
            flipped = bytearray(data)
            flipped[place] ^= 1 << rng.integers(8)
            path.write_bytes(flipped)
            try:
                checkpoints.verify(saved.path(2))
            except checkpoints.UNREADABLE:
                continue
            # Only bits that mean nothing may pass.
            held.v.assign(tf.zeros([2, 2]))
            saved.restore(tmp_path, 2)
            assert held.v.numpy().tolist() == [[1.5, 2.5], [3.5, 4.5]]
            assert saved.position.sums == {"loss": 0.1}
        path.write_bytes(data)


def test_a_full_disk_leaves_the_checkpoints_before_and_nothing_else(tmp_path, monkeypatch):
    saved, _ = small_checkpoints(tmp_path)
    for _ in range(3):
        saved.save()
    before = sorted(path.name for path in tmp_path.iterdir())
    assert before[0] == "ckpt-2.data-00000-of-00001" and len(before) == 4

    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "flush", full)
        with pytest.raises(TrainingError, match=r"No space left.*ckpt-3; make room"):
            saved.save()
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: full(None))
        with pytest.raises(TrainingError, match=r"table.csv could not be written.*No space"):
            files.write_atomically(tmp_path / "table.csv", "1")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_checkpoint_in_a_directory_that_was_lost_meanwhile_touches_nothing(
    tmp_path, monkeypatch, goes_on
):
    saved, _ = small_checkpoints(tmp_path / "checkpoints")
    saved.save()
    write = saved.checkpoint.write

    def stalled(path):
        write(path)
        (tmp_path / lock.NAME).unlink()
        for name in ("ckpt-2.index", "ckpt-2.data-00000-of-00001", "unfinished/ckpt.index"):
            (saved.directory / name).write_text("another process's")
        if not goes_on:
            raise tf.errors.NotFoundError(None, None, "its files are gone")

    monkeypatch.setattr(saved.checkpoint, "write", stalled)
    with lock.owned(tmp_path, "--run_dir"):
        with pytest.raises(LockLost):
            saved.save()
        with pytest.raises(LockLost):
            saved.save()
    for name in ("ckpt-2.index", "ckpt-2.data-00000-of-00001", "unfinished/ckpt.index"):
        assert (saved.directory / name).read_text() == "another process's"
    checkpoints.verify(saved.path(1))


def test_a_run_that_another_process_has_taken_over_takes_no_step(tmp_path):
    run = RunDirectory(tmp_path)
    known = {"settings": types.SimpleNamespace(epochs=1), "steps": 1, "home": run}
    # Without an update: none is asked for.
    held = types.SimpleNamespace(
        **known, position=checkpoints.Position({}), _prepare_update=lambda epoch: None
    )
    held.checkpoints, _ = small_checkpoints(tmp_path / "checkpoints")
    held.execution = trainer.Execution()
    with run.owned():
        (tmp_path / lock.NAME).unlink()
        with pytest.raises(LockLost):
            run.clear()
        with pytest.raises(LockLost):
            trainer.Trainer.run_epoch(held)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16"])
def test_a_step_that_is_skipped_did_not_happen(dtype):
    layers = keras.layers
    image = keras.Input((8, 8, 1))
    x = layers.Conv2D(3, 3, name="conv", dtype=dtype)(image)
    x = layers.BatchNormalization(name="norm", dtype=dtype)(x)
    x = layers.Flatten(dtype=dtype)(layers.ReLU(name="relu", dtype=dtype)(x))
    x = layers.Dense(3, name="logits", dtype="float32")(x)
    network = gating.add_gates(keras.Model(image, x))
    objective = Objective(0.1, 0.05, 1, train_examples=100, lambda_vs=1.0)
    classifier = RobustClassifier(network, METHODS["anpvs"], objective, seed=1)
    optimizer = inner = GroupedAdam(1e-3, average=0.9, skip_nonfinite=True)
    if dtype == "mixed_float16":
        # Small enough that no gradient overflows: such a step would be left out as well.
        optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=16.0)
    classifier.compile(optimizer=optimizer, jit_compile=False)
    optimizer.build(network.trainable_variables)
    update = tf.function(classifier.update, autograph=False)
    images = np.random.default_rng(0).uniform(0, 1, (4, 8, 8, 1)).astype(np.float32)
    labels = np.arange(4) % 3
    spoiled = images.copy()
    spoiled[0] = np.nan

    def state():
        return [v.numpy() for v in [*network.weights, *inner.variables]]

    start = state()
    assert update((images, labels))["nonfinite"] == 0.0
    before = state()
    assert not np.array_equal(start[0], before[0])
    terms = {name: float(value) for name, value in update((spoiled, labels)).items()}
    assert terms["nonfinite"] == 1.0
    assert "became nan" in nonfinite.culprit(terms)
    for one, other in zip(before, state(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert update((images, labels))["nonfinite"] == 0.0
    assert not np.array_equal(before[0], state()[0])


@pytest.mark.parametrize("action", names.ACTIONS)
def test_steps_that_are_not_finite(made, tmp_path, monkeypatch, action, capsys):
    stopped, _ = made
    run = RunDirectory(tmp_path / "run")
    cross_entropy = losses.cross_entropy
    calls = tf.Variable(0)

    # Not a bad image: on some processors a maximum pooling puts out the least float for NaN.
    def bad_in_the_second_step(*arguments):
        return cross_entropy(*arguments) + tf.where(calls.assign_add(1) == 2, np.nan, 0.0)

    monkeypatch.setattr(losses, "cross_entropy", bad_in_the_second_step)
    execution = trainer.Execution(on_nonfinite=action)
    path = run.nonfinite / "epoch-1-step-2.npz"
    if action == "skip":
        trainer.train(stopped.settings(), run, execution=execution)
        assert [row["nonfinite"] for row in run.metrics()] == ["1", "0", "0"]
        said = f"ce_clean became nan in epoch 1, step 2 (its batch is in {path})"
        assert f"{said}: left out" in capsys.readouterr().err
    else:
        with pytest.raises(TrainingError, match=r"ce_clean became nan in epoch 1, step 2"):
            trainer.train(stopped.settings(), run, execution=execution)
    with np.load(path) as batch:
        assert batch["images"].shape == (32, 28, 28, 1)
        assert np.all(np.isfinite(batch["images"]))


def test_skipping_has_bounds():
    position = checkpoints.Position({})
    for _ in range(checkpoints.MOST_SKIPPED_IN_A_ROW - 1):
        position.skip()
    assert position.too_many_skipped() is None
    position.skip()
    assert position.too_many_skipped() == "the 10th step in a row"
    position.add({"loss": 1.0})
    assert position.too_many_skipped() is None
    position.skipped_before = checkpoints.MOST_SKIPPED - position.skipped
    assert position.too_many_skipped() == "the 100th step in all"


def test_a_model_that_carries_code_is_refused(tmp_path):
    image = keras.Input((28, 28, 1))
    x = keras.layers.Lambda(lambda x: x * 2.0)(image)
    model = keras.Model(image, keras.layers.Dense(10)(keras.layers.Flatten()(x)))
    path = tmp_path / "model.keras"
    model.save(path)
    assert "Lambda" in zipfile.ZipFile(path).read("config.json").decode()
    with pytest.raises(UsageError) as error:
        attacked_model.of_model(str(path), SOURCES["digits"])
    assert "\n" not in str(error.value)
