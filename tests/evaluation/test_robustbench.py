"""What goes to a leaderboard, and what does not."""

import json

import pytest

from anpvs_tf.attacks.settings import AttackSettings
from anpvs_tf.evaluation import attack_choice, robustbench


def record(**changes):
    settings = AttackSettings(8 / 255, classes=10)
    return {
        **{"dataset": "cifar10", "split": "test", "network": "resnet20", "width": 0.5},
        "model": "runs/r",
        **{"examples": 10_000, "clean_accuracy": 0.70004, "robust_accuracy": 0.3687},
        "threat_model": {"norm": "linf", "epsilon": 8 / 255},
        "attack": attack_choice.description("autoattack", settings),
    } | changes


def test_an_entry_has_the_fields_of_the_leaderboard(tmp_path):
    (tmp_path / "evaluation").mkdir()
    others = [record(attack={"name": "pgd", "steps": 20}), record(examples=1000)]
    said = robustbench.write([*others, record()], tmp_path / "evaluation")
    path = tmp_path / "evaluation" / "robustbench-linf.json"
    yours = "link, name, authors, venue, additional_data"
    assert said == f"RobustBench: {path} is the entry; fill in {yours}"
    assert json.loads(path.read_text()) == {
        **{"link": None, "name": None, "authors": None, "venue": None},
        **{"additional_data": None, "number_forward_passes": 1, "dataset": "cifar10"},
        **{"architecture": "resnet20, width 0.5", "eps": "8/255", "clean_acc": "70.00"},
        **{"reported": "36.87", "autoattack_acc": "36.87"},
    }


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"examples": 1017}, "10,000 test images must be attacked; these were 1,017"),
        ({"split": "validation"}, "test images must be attacked"),
        ({"threat_model": {"norm": "linf", "epsilon": 0.03}}, "must be linf 8/255 or l2 0.5"),
        ({"threat_model": {"norm": "l2", "epsilon": 1.0}}, "must be linf 8/255 or l2 0.5"),
        ({"reliable": False}, "the accuracy must be reliable"),
    ],
)
def test_what_is_missing_is_said(changes, why, tmp_path):
    said = robustbench.write([record(**changes)], tmp_path)
    assert said.startswith("RobustBench takes no entry of this: ") and why in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("setting", ["steps", "targets", "queries", "restarts"])
def test_an_attack_with_other_settings_is_no_autoattack(setting, tmp_path):
    attack = record()["attack"] | {setting: 2}
    assert "autoattack with its defaults" in robustbench.write([record(attack=attack)], tmp_path)


def test_of_data_without_leaderboard_nothing_is_said(tmp_path):
    assert robustbench.write([record(dataset="digits")], tmp_path) == ""
    assert robustbench.write([record(attack={"name": "pgd"})], tmp_path) == ""
