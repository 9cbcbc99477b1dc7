"""The width of a dense network that costs what a pruned one does."""

import pytest

from anpvs_tf.common.errors import UsageError
from anpvs_tf.runs import build, matching, resolution
from anpvs_tf.runs.directory import RunDirectory
from anpvs_tf.runs.finished_run import FinishedRun

DENSE = {"dataset": "digits", "method": "at"}


def costing(**costs):
    """Makes a finished run whose network has these costs."""
    trained = {"efficiency": {name: [cost, 10 * cost] for name, cost in costs.items()}}
    return FinishedRun(RunDirectory("a"), resolution.resolve(DENSE), [], trained, [], [])


def test_parameters_by_hand():
    # Of width 1/2: 5x5x1x10 + 10, 5x5x10x25 + 25, 400x250 + 250, 250x10 + 10.
    run = costing(parameters=109_295)
    found = matching.matched(resolution.resolve(DENSE), run, "parameters")
    assert found == matching.Matched(0.5, 109_295, 109_295)
    network = build.build_network(resolution.resolve(DENSE | {"width": found.width}), "float32")
    assert network.count_params() == found.cost


@pytest.mark.usefixtures("tiny_lenet5")
def test_flops_between_two_widths():
    run = costing(flops=300_000)
    found = matching.matched(resolution.resolve(DENSE), run)
    assert abs(found.cost - 300_000) <= 30_000 and 0.4 < found.width < 0.6


@pytest.mark.usefixtures("tiny_lenet5")
def test_what_cannot_be_matched_is_refused():
    run = costing(flops=100_000_000)
    with pytest.raises(UsageError, match=r"no width up to 1 .* --width=1 is nearest"):
        matching.matched(resolution.resolve(DENSE), run)
    with pytest.raises(UsageError, match="without gates"):
        matching.matched(resolution.resolve({"dataset": "digits"}), run)
