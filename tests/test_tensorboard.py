"""What TensorBoard reads back of a run."""

import csv

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from anpvs_tf import interruption, loop, settings, tensorboard
from anpvs_tf.errors import Interrupted
from anpvs_tf.gates import gates_of
from anpvs_tf.runs import RunDirectory

TINY = {
    "method": "anp",
    "epochs": 2,
    "steps_per_epoch": 2,
    "base_epochs": 1,
    "eval_examples": 20,
    "attack_steps": 1,
    "eval_attack_steps": 2,
    "gate_scope": "all",
}


def read(run):
    found = EventAccumulator(str(run.tensorboard))
    found.Reload()
    return found


def of(events, tag):
    """{step: array} of a tag; it is an error if a step is there twice."""
    rows = [(event.step, tf.make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)]
    assert len(dict(rows)) == len(rows)
    return dict(rows)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that was interrupted after TensorBoard heard of epoch 2, and before it was saved."""
    run = RunDirectory(tmp_path_factory.mktemp("board") / "one")
    chosen = settings.resolve(TINY)
    with pytest.MonkeyPatch.context() as patch:
        write = tensorboard.Board.write

        def stop(self, row, *rest):
            write(self, {**row, "sparsity": 0.123} if row["epoch"] == 2 else row, *rest)
            if row["epoch"] == 2:
                raise Interrupted(15, "here")

        patch.setattr(tensorboard.Board, "write", stop)
        with pytest.raises(Interrupted):
            loop.train(chosen, run)
    assert not interruption.asked()
    loop.train(chosen, run)
    return run


def test_scalars_are_the_rows_of_the_metrics_each_epoch_once(run):
    events = read(run)
    for name in (run.metrics_path, run.timings_path):
        with open(name, newline="") as file:
            rows = list(csv.DictReader(file))
        for column in set(rows[0]) - {"epoch", "step"}:
            found = of(events, tensorboard.tag(column))
            assert {k: v.item() for k, v in found.items()} == {
                int(row["epoch"]): pytest.approx(float(row[column]), rel=1e-6) for row in rows
            }, column
    tags = events.Tags()["tensors"]
    assert {"loss/ce_clean", "loss/kl", "validation/robust_accuracy", "sparsity"} <= set(tags)


def test_histograms_count_each_feature_of_each_gate(run):
    events, network = read(run), run.load_network()
    assert gates_of(network)
    for gate in gates_of(network):
        for kind in ("importance", "mask"):
            found = of(events, f"{kind}/{gate.name}")
            assert sorted(found) == [1, 2]
            assert found[2][:, 2].sum() == gate.features
        low, high = found[2][0, 0], found[2][-1, 1]
        assert low <= np.min(gate.mean_mask()) + 1e-6
        assert high >= np.max(gate.mean_mask()) - 1e-6


def test_images_are_examples_and_the_attack_on_them(run):
    events = read(run)

    def image(tag):
        width, height, *pictures = of(events, f"example/{tag}")[2]
        decoded = np.stack([tf.io.decode_image(picture) for picture in pictures])
        assert decoded.shape[1:3] == (int(height), int(width)) == (28, 28)
        return decoded / 255.0

    clean, attacked, moved = map(image, ("1 clean", "2 attacked", "3 difference"))
    assert len(clean) == len(attacked) == len(moved) == 4
    change = attacked - clean
    epsilon = settings.resolve(TINY).epsilon
    assert 0.5 * epsilon < np.abs(change).max() <= epsilon + 1 / 255
    for one, shown in zip(change, moved, strict=True):
        assert np.corrcoef(one.ravel(), shown.ravel())[0, 1] > 0.99
        assert np.abs(shown - 0.5).max() == pytest.approx(0.5, abs=0.01)


def hparams(run):
    found = read(run)
    content = found.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    return plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info


def test_hyperparameters_are_the_settings_under_the_name_of_the_run(run):
    info = hparams(run)
    assert info.group_name == "one"
    assert info.hparams["beta"].number_value == settings.resolve(TINY).beta
    assert info.hparams["method"].string_value == "anp"
    assert info.hparams["shrink"].bool_value is False
    assert "decay_at" in info.hparams
    assert "train_examples" not in info.hparams  # Unset.


def test_an_experiment_compares_by_what_was_swept(tmp_path):
    tensorboard.write_experiment(tmp_path / "all", ["beta", "network"])
    found = EventAccumulator(str(tmp_path / "all"))
    found.Reload()
    content = found.PluginTagToContent("hparams")["_hparams_/experiment"]
    experiment = plugin_data_pb2.HParamsPluginData.FromString(content).experiment
    assert [info.name for info in experiment.hparam_infos] == ["beta", "network"]
    tags = [info.name.tag for info in experiment.metric_infos]
    assert "validation/robust_accuracy" in tags


def test_a_difference_is_grey_where_nothing_moved():
    clean = np.zeros((2, 2, 2, 1), np.float32)
    attacked = clean.copy()
    attacked[0, 0, 0], attacked[0, 1, 1] = 0.1, -0.05
    shown = tensorboard.difference(clean, attacked)
    assert shown[0, :, :, 0].tolist() == pytest.approx([[1.0, 0.5], [0.5, 0.25]])
    assert np.all(shown[1] == 0.5)
