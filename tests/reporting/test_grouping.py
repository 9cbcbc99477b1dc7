"""What a report reads, groups and refuses."""

import json

import fake_runs
import pytest

from anpvs_tf.common.errors import UsageError
from anpvs_tf.methods import registry
from anpvs_tf.reporting import grouping, published
from anpvs_tf.reporting.grouping import collect
from anpvs_tf.runs import resolution


def test_a_directory_of_runs_stands_for_its_finished_runs(tmp_path):
    for name in ("b", "a"):
        fake_runs.make(tmp_path / "sweep" / name, "at", seed=ord(name))
    unfinished = fake_runs.make(tmp_path / "sweep/c", "at", seed=7)
    unfinished.results_path.unlink()
    damaged = fake_runs.make(tmp_path / "sweep/d", "at", seed=8)
    damaged.results_path.write_text("[{")
    (tmp_path / "sweep/notes").mkdir()
    alone = fake_runs.make(tmp_path / "alone", "anpvs")
    runs, skipped = collect(
        [str(tmp_path / "sweep") + "/", str(alone.path), str(tmp_path / "sweep/a")]
    )
    assert [run.directory.path.name for run in runs] == ["a", "b", "alone"]
    reasons = {one.path.rsplit("/")[-1]: one.reason for one in skipped}
    assert reasons.keys() == {"c", "d"} and "is not finished; resume it" in reasons["c"]
    # A message that is whole already is not wrapped, nor cut.
    assert reasons["d"].startswith(str(damaged.results_path) + " is not what was written")
    assert reasons["d"].endswith("if you trust the files")
    assert runs[0].command[0] == "bin/train.py"
    assert [row["epoch"] for row in runs[0].metrics] == [1, 2, 3]


def test_groups_are_runs_that_differ_by_their_seed_only(tmp_path):
    fake_runs.make(tmp_path / "1", "anpvs", seed=1)
    fake_runs.make(tmp_path / "0", "anpvs", seed=0)
    fake_runs.make(tmp_path / "2", "anpvs", seed=0, beta=12.0)
    fake_runs.make(tmp_path / "3", "anpvs", seed=0, beta=0.5)
    fake_runs.make(tmp_path / "4", "at", seed=5)
    fake_runs.make(tmp_path / "5", "standard", seed=5)
    runs, _ = collect([str(tmp_path)])
    groups = grouping.groups(runs)
    assert [(group.label, group.seeds) for group in groups] == [
        ("standard", [5]),
        ("at", [5]),
        ("anpvs (beta=0.5)", [0]),
        ("anpvs (target_sparsity=0.8)", [0, 1]),
        ("anpvs (beta=12)", [0]),
    ]
    order = [group.method for group in groups]
    assert order == sorted(order, key=list(registry.METHODS).index)


def test_a_label_does_not_list_every_setting_that_differs(tmp_path):
    other = {"beta": 3.0, "lambda_vs": 0.5, "batch_size": 16, "epsilon": 0.1, "step_size": 0.05}
    fake_runs.make(tmp_path / "a", "anpvs")
    fake_runs.make(tmp_path / "b", "anpvs", **other)
    fake_runs.make(tmp_path / "c", "anpvs", **other, shrink=True)
    runs, _ = collect([str(tmp_path)])
    labels = [group.label for group in grouping.groups(runs)]
    assert labels == [
        "anpvs (batch_size=16, shrink=False)",
        "anpvs (batch_size=16, shrink=True)",
        "anpvs (batch_size=32, shrink=False)",
    ]


def test_the_same_run_twice_counts_once(tmp_path):
    first = fake_runs.make(tmp_path / "first", "at")
    fake_runs.make(tmp_path / "second", "at")
    runs, skipped = collect([str(first.path), str(tmp_path)])
    assert [run.path for run in runs] == [str(first.path)]
    assert [one.path for one in skipped] == [str(tmp_path / "second")]
    assert str(first.path) in skipped[0].reason


def test_refuses_what_cannot_stand_in_one_report(tmp_path):
    fake_runs.make(tmp_path / "digits", "at")
    fake_runs.make(tmp_path / "mnist", "at", dataset="mnist")
    with pytest.raises(UsageError, match=r"digits: .*/digits; mnist: .*/mnist"):
        collect([str(tmp_path)])
    with pytest.raises(UsageError, match="does not exist"):
        collect([str(tmp_path / "no")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="not a run directory"):
        collect([str(tmp_path / "empty")])
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is no directory"):
        collect([str(tmp_path / "file")])
    for name in ("digits", "mnist"):
        (tmp_path / name / "results.json").unlink()
    with pytest.raises(UsageError, match=r"no finished run .*not finished"):
        collect([str(tmp_path)])


def test_a_record_of_no_training_is_no_result(tmp_path):
    run = fake_runs.make(tmp_path / "run", "at")
    record = {k: v for k, v in run.results()[0].items() if k != "efficiency"}
    run.write_results([record])
    fake_runs.make(tmp_path / "good", "at", seed=1)
    _, skipped = collect([str(tmp_path)])
    (one,) = skipped
    assert one.reason.endswith("results.json has no record of bin/train.py")
    assert json.loads(run.results_path.read_text()) == [record]


# Typed from the paper, independently of the module's table.
@pytest.mark.parametrize(
    ("dataset", "method", "expected"),
    [
        ("mnist", "anpvs", {"white_accuracy": 91.31, "flops_reduction": 10.57, "sparsity": 84.16}),
        ("cifar10", "at_bnn", {"clean_accuracy": 86.69, "black_vulnerability": 0.238}),
        ("cifar100", "admm", {"black_accuracy": 31.30, "sparsity": 65.0, "memory": 100.0}),
    ],
)
def test_published_figures(dataset, method, expected):
    found = published.PUBLISHED[dataset, method]
    assert {key: found[key] for key in expected} == expected


def test_published_figures_stand_beside_the_same_setting_only():
    def known(**chosen):
        return published.figures(resolution.resolve({"method": "at", **chosen}))

    assert known(dataset="cifar10")["white_accuracy"] == 49.85
    assert known(dataset="cifar10", network="resnet18") == {}
    assert known(dataset="mnist", epsilon=0.2) == {}
    assert known(dataset="mnist", norm="l2", epsilon=0.3) == {}
    assert known(dataset="digits") == {}
    assert "sparsity" not in published.PUBLISHED["mnist", "anp"]
