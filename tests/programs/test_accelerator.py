"""A run that is trained by JAX from an export against the trainer's own."""

import dataclasses
import io

import numpy as np
import pytest

from anpvs_tf.common.errors import UsageError
from anpvs_tf.runs.directory import RunDirectory
from anpvs_tf.runs.finished_run import open_run
from anpvs_tf.runs.resolution import resolve
from anpvs_tf.training import trainer

pytest.importorskip("jax")

from benchmarks import accelerator, accelerator_run

SETTINGS = resolve(
    {
        "dataset": "digits",
        "method": "at",
        "batch_size": 8,
        "epochs": 2,
        "steps_per_epoch": 2,
        "attack_steps": 2,
        "eval_attack_steps": 2,
        "eval_examples": 20,
        "weight_average": 0.5,
        "precision": "float32",
    }
)


def test_an_exported_run_is_the_trainers(tmp_path):
    # The crops are part of the step; digits has none, but any data can.
    settings = dataclasses.replace(SETTINGS, augment=True)
    own, there = RunDirectory(tmp_path / "own"), RunDirectory(tmp_path / "there")
    exported = tmp_path / "export"

    accelerator.write_export(settings, exported, tmp_path / "digits.npz", there)
    # In two calls: the second goes on from what the first has saved.
    accelerator_run.main([str(exported), "--epochs=1", f"--out={tmp_path / 'first'}"])
    accelerator_run.main([str(exported), f"--resume={tmp_path / 'first'}"])
    accelerator.read_trained(exported, exported / "trained", there)
    (record,) = trainer.train(settings, own)

    for ours, theirs in zip(own.metrics(), there.metrics(), strict=True):
        assert list(ours) == list(theirs)
        np.testing.assert_allclose(
            [float(v) for v in theirs.values()], [float(v) for v in ours.values()], rtol=1e-4
        )
    networks = open_run(own.path).network(), open_run(there.path).network()
    for expected, found in zip(*(network.get_weights() for network in networks), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    (found,) = there.results()
    for name in ("clean_accuracy", "robust_accuracy", "epoch", "active_features"):
        assert found[name] == record[name]


def test_images_travel_as_jpeg_without_loss(tmp_path):
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    files = []
    for _ in range(3):
        buffer = io.BytesIO()
        image.fromarray(rng.integers(256, size=(8, 8, 3), dtype=np.uint8)).save(buffer, "JPEG")
        files.append(buffer.getvalue())
    content = np.frombuffer(b"".join(files), np.uint8)
    lengths = np.array([len(file) for file in files])
    images = rng.integers(256, size=(3, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(3, dtype=np.int32)
    np.savez(
        tmp_path / "data.npz",
        jpeg=accelerator_run.packed(content),
        lengths=lengths,
        correction=accelerator_run.packed(images - accelerator_run.decoded(content, lengths)),
        labels=labels,
        validation_images=accelerator_run.packed(images[:1]),
        validation_labels=labels[:1],
        shape=(8, 8, 3),
    )
    sha = accelerator_run.digest(images, labels, images[:1], labels[:1])

    found, *_ = accelerator_run.load_data(tmp_path / "data.npz", {"data_sha256": sha})

    np.testing.assert_array_equal(found, images)
    with pytest.raises(ValueError, match="other examples"):
        accelerator_run.load_data(tmp_path / "data.npz", {"data_sha256": "another"})


@pytest.mark.parametrize(
    "change, message",
    [({"method": "admm"}, "ADMM works between epochs"), ({"shrink": True}, "--shrink")],
)
def test_refuses_what_changes_the_step_between_epochs(change, message):
    method = {"method": change.get("method", "anpvs")}
    settings = dataclasses.replace(resolve({"dataset": "digits"} | method), **change)
    with pytest.raises(UsageError, match=message):
        accelerator.check_exportable(settings)
