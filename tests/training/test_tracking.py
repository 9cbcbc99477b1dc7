"""A run that is tracked while it trains."""

import numpy as np
import pytest
from recording import Recorder
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from anpvs_tf.common.errors import Interrupted
from anpvs_tf.runs import resolution
from anpvs_tf.runs.directory import RunDirectory
from anpvs_tf.runs.finished_run import open_run
from anpvs_tf.training import trainer

pytestmark = pytest.mark.usefixtures("tiny_lenet5")

TINY = {
    "dataset": "digits",
    "method": "at",
    "epochs": 3,
    "batch_size": 16,
    "steps_per_epoch": 3,
    "eval_examples": 20,
    "attack_steps": 1,
    "eval_attack_steps": 1,
}


def train(run, *trackers):
    execution = trainer.Execution(trackers=trackers)
    return trainer.train(resolution.resolve(TINY), run, execution=execution)


def scalars(run):
    events = EventAccumulator(str(run.tensorboard))
    events.Reload()
    tags = [tag for tag in events.Tags()["tensors"] if not tag.startswith("_")]
    return {
        tag: [(event.step, event.tensor_proto) for event in events.Tensors(tag)]
        for tag in tags
        if tag not in ("seconds", "images_per_second")
    }


@pytest.fixture(scope="module")
def untracked(tmp_path_factory, tiny_lenet5):
    run = RunDirectory(tmp_path_factory.mktemp("untracked") / "run")
    train(run)
    return run


def test_a_tracked_run_goes_on_as_one_and_has_the_bits_of_an_untracked_one(
    untracked, tmp_path, monkeypatch, capsys
):
    run = RunDirectory(tmp_path / "run")
    with monkeypatch.context() as patch:
        steps = iter(range(100))
        # A signal in the second epoch's validation, whose figures are computed again.
        patch.setattr(trainer.interruption, "asked", lambda: 15 if next(steps) > 6 else 0)
        first = Recorder()
        with pytest.raises(Interrupted):
            train(run, first)
    assert first.heard() == [
        ("begin", None, 0),
        ("epoch", 1, True),
        ("end", False),
    ]
    # The server goes away in the second process, which trains on.
    second = Recorder(fails_at=("epoch", 3))
    train(run, second)
    assert second.heard() == [
        ("begin", "run of at", 1),
        ("epoch", 2, True),
        ("epoch", 3, True),
    ]
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if "recorder" in line]
    assert "the server is away" in warning
    # It is told what it missed by the next command, here of the finished run.
    third = Recorder()
    train(run, third)
    assert third.heard() == [
        ("begin", "run of at", 3),
        ("epoch", 3, False),
        ("result", "pgd"),
        ("end", True),
    ]
    row = third.told[1][3]
    assert {name: str(value) for name, value in run.metrics()[2].items()}.keys() < row.keys()
    assert row["validation_clean_accuracy"] == second.told[2][3]["validation_clean_accuracy"]
    assert row["seconds"] == second.told[2][3]["seconds"]

    assert run.metrics_path.read_bytes() == untracked.metrics_path.read_bytes()
    networks = (open_run(untracked.path).network(), open_run(run.path).network())
    for a, b in zip(*(network.weights for network in networks), strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), a.path)
    assert scalars(run) == scalars(untracked)
    assert not untracked.tracking_path.exists()
