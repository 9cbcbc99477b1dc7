"""What TensorBoard reads back of a run."""

import time

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from anpvs_tf.data import loading
from anpvs_tf.evaluation.evaluator import Evaluator, PgdAttack
from anpvs_tf.networks.gate import gates_of
from anpvs_tf.runs import build, resolution
from anpvs_tf.runs.directory import RunDirectory
from anpvs_tf.tracking import tensorboard

CHOSEN = resolution.resolve({"method": "anpvs"})


def row(epoch, value):
    names = ("loss", "ce_clean", "kl", "validation_robust_accuracy", "active_conv1", "sparsity")
    return {"epoch": epoch, "step": 7 * epoch} | {n: value + i for i, n in enumerate(names)}


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
def network():
    made = build.build_network(CHOSEN, "float32")
    for number, gate in enumerate(gates_of(made)):
        gate.close(np.arange(gate.features) < number)
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory, network):
    """A run that died after TensorBoard heard of epoch 2, and before that was saved."""
    run = RunDirectory(tmp_path_factory.mktemp("board") / "one")
    attack = PgdAttack(CHOSEN.epsilon, CHOSEN.epsilon, 1)
    evaluate = Evaluator(network, attack, 5)
    evaluate(loading.load("digits").validation.take(10), 0)
    before = tensorboard.Board()
    before.begin(run, CHOSEN, 0, None)
    before.epoch(row(1, 0.5), network, evaluate.examples)
    before.epoch(row(2, 99.0), network, evaluate.examples)
    # A process that goes on is younger; the names of event files count seconds.
    time.sleep(1.1)
    after = tensorboard.Board()
    after.begin(run, CHOSEN, 1, None)
    after.epoch(row(2, 1.5), network, evaluate.examples)
    after.epoch(row(3, 2.5), network, evaluate.examples)
    return run


def test_scalars_are_the_rows_of_the_metrics_each_epoch_once(run):
    events = read(run)
    tags = ["loss/loss", "loss/ce_clean", "loss/kl"]
    tags += ["validation/robust_accuracy", "active_features/conv1", "sparsity"]
    for i, tag in enumerate(tags):
        assert of(events, tag) == {1: 0.5 + i, 2: 1.5 + i, 3: 2.5 + i}


def test_the_mark_of_a_start_is_read_just_before_what_follows_it(run):
    names = sorted(path.name for path in run.tensorboard.iterdir())
    assert [name.rsplit(".", 1)[1] for name in names] == ["v1", "v2", "v1", "v2"]


def test_histograms_count_each_feature_of_each_gate(run, network):
    events = read(run)
    assert len(gates_of(network)) > 2
    for number, gate in enumerate(gates_of(network)):
        for kind in ("importance", "mask"):
            found = of(events, f"{kind}/{gate.name}")
            assert sorted(found) == [1, 2, 3]
            assert found[2][:, 2].sum() == gate.features
        lows, _, counts = of(events, f"mask/{gate.name}")[3].T
        if number:
            assert lows[0] == 0 and counts[0] == number  # Those that are closed.


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
    assert 0.5 * CHOSEN.epsilon < np.abs(change).max() <= CHOSEN.epsilon + 1 / 255
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
    assert info.hparams["beta"].number_value == CHOSEN.beta
    assert info.hparams["method"].string_value == "anpvs"
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
    np.testing.assert_allclose(shown[0, :, :, 0], [[1.0, 0.5], [0.5, 0.25]])
    assert np.all(shown[1] == 0.5)
