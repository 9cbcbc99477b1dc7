"""What networks cost, the dense network of equal cost, ensembles, and the list of runs."""

import json
import re

import fake_runs
import pytest

from anpvs_tf.common.errors import UsageError
from anpvs_tf.reporting import (
    costs,
    grouping,
    measurements,
    run_list,
    style,
    tables,
    training_figures,
)
from anpvs_tf.reporting.grouping import collect


def make(path, method, flops, parameters, **more):
    run = fake_runs.make(path, method, **more)
    (record,) = run.results()
    record["efficiency"] |= {"flops": [flops, 1000], "parameters": [parameters, 100]}
    run.write_results([record])
    return run


def groups_in(path):
    return grouping.groups(collect([str(path)])[0])


def test_the_nearest_dense_network_within_a_tenth_is_named(tmp_path):
    make(tmp_path / "pruned", "anpvs", 500, 40, robust=0.6)
    make(tmp_path / "near", "at", 546, 60, robust=0.55, width=0.5)
    make(tmp_path / "nearer", "at", 480, 50, robust=0.5, width=0.45)
    make(tmp_path / "far", "at", 551, 45, robust=0.7, width=0.6)
    make(tmp_path / "not_at", "standard", 500, 40, robust=0.0)
    found = groups_in(tmp_path)
    (pruned,) = (group for group in found if group.method == "anpvs")
    equal = costs.equals(pruned, found)
    assert {kind: group.runs[0].directory.path.name for kind, group in equal.items()} == {
        "flops": "nearer"
    }
    (note,) = (n for n in tables.comparison(found).notes if n.startswith("anpvs"))
    assert "60.00%" in note and "FLOPs (480 against 500)" in note and "50.00%" in note


def test_networks_of_one_cost_have_no_figure_of_costs(tmp_path):
    make(tmp_path / "a", "at", 1000, 100, robust=0.5)
    make(tmp_path / "b", "at_vs", 1000, 100, robust=0.6)
    groups = groups_in(tmp_path)
    assert training_figures.cost(groups, style.Strokes(groups)) is None
    make(tmp_path / "c", "anpvs", 100, 10, robust=0.4)
    make(tmp_path / "d", "anpvs", 300, 20, robust=0.45, beta=0.1)
    groups = groups_in(tmp_path)
    axes = training_figures.cost(groups, style.Strokes(groups)).draw(style.LIGHT).axes
    lines = {one.get_linestyle(): one.get_xydata().tolist() for one in axes[0].lines}
    assert lines["-"] == [[300, 0.45], [100, 0.4]] and "--" not in lines
    assert axes[0].get_xscale() == "log"


def test_it_is_said_when_no_dense_network_costs_as_much(tmp_path):
    make(tmp_path / "pruned", "anpvs", 500, 40)
    make(tmp_path / "dense", "at", 1000, 100)
    assert any("no dense `at` network" in n for n in tables.comparison(groups_in(tmp_path)).notes)


def test_an_ensemble_is_named_whether_or_not_its_attack_has_a_step():
    record = {
        "attack": {"name": "autoattack", "restarts": 1},
        "threat_model": {"norm": "linf", "epsilon": 0.13},
        "posterior_draws": 7,
    }
    text = measurements.attack_text(measurements.attack_of(record))
    assert "ensemble of 7 posterior draws" in text


def test_the_list_has_a_line_for_each_run_in_each_state(tmp_path):
    done = fake_runs.make(tmp_path / "done", "at", clean=0.97, robust=0.6, seed=3)
    fake_runs.evaluate(done, "autoattack", accuracy=0.55)
    stopped = fake_runs.make(tmp_path / "stopped", "anpvs")
    stopped.results_path.unlink()
    fake_runs.make(tmp_path / "damaged", "anp").results_path.write_text("[{")
    broken = fake_runs.make(tmp_path / "line\nbreak", "at")
    broken.config_path.write_text(json.dumps([]))
    working = fake_runs.make(tmp_path / "working", "anpvs")
    working.results_path.unlink()
    with working.owned():
        head, *lines = run_list.text([str(tmp_path)]).splitlines()
    assert head.split()[:4] == ["run", "dataset", "method", "seed"]
    assert len(lines) == 5
    names = ("done", "stopped", "working")
    line = {name: next(one for one in lines if f"/{name}" in one) for name in names}
    for part in ("digits", "at", "3", "finished", "97.0 %", "60.0 %", "55.0 %"):
        assert part in line["done"]
    assert re.search(r"55\.0 % +- ", line["done"])  # Nothing of sparsity.
    assert "interrupted at epoch 3" in line["stopped"]
    assert " running " in line["working"]
    assert "interrupted at epoch 3" in run_list.text([str(working.path)])
    assert sum("damaged" in one.replace("/damaged", "") for one in lines) == 2
    with pytest.raises(UsageError, match="does not exist"):
        run_list.text([str(tmp_path / "absent")])
