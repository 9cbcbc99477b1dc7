"""The record that ends training says what came of a sparsity target."""

import fake_runs
import numpy as np
import pytest
import tiny_network

from anpvs_tf.evaluation import recording
from anpvs_tf.networks.gate import gates_of
from anpvs_tf.runs import resolution
from anpvs_tf.runs.finished_run import open_run
from anpvs_tf.training import result


@pytest.mark.parametrize(("closed", "met"), [(15, True), (14, False), (16, False)])
def test_a_target_is_met_within_a_hundredth(closed, met):
    network = tiny_network.tiny((28, 28, 1), 10, "beta_bernoulli")
    (gate,) = gates_of(network)
    gate.close(np.arange(20) < closed)
    settings = resolution.resolve({"dataset": "digits", "target_sparsity": 0.745})
    found = result._target(settings, network)
    assert (found["reached"], found["met"]) == (pytest.approx(closed / 20), met)


def test_a_record_says_how_much_is_pruned(tmp_path):
    network = tiny_network.tiny((28, 28, 1), 10, "beta_bernoulli")
    gates_of(network)[0].close(np.arange(20) < 15)
    settings = open_run(fake_runs.make(tmp_path / "run", "anpvs").path).settings
    accuracies = {"clean_accuracy": 0.9, "robust_accuracy": 0.5}
    made = recording.record(
        dataset="digits", split="test", examples=5, norm="linf", epsilon=0.1, **accuracies,
        settings=settings, network=network,
    )  # fmt: skip
    assert made["sparsity"] == 0.75 and made["active_features"] == {"conv1": [5, 20]}
