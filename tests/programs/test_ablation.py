"""The program of the ablation: its variants' flags, and the figures that it reads."""

import json

import numpy as np
import pytest

from anpvs_tf.runs import resolution
from benchmarks import ablation


@pytest.mark.parametrize("variant", ablation.VARIANTS)
def test_variants_are_settings_of_training(variant, tmp_path):
    chosen = ablation.BASE | ablation.VARIANTS[variant]
    chosen = {name: value for name, value in chosen.items() if value is not None}
    flags = [f"--{name}={value}" for name, value in chosen.items() if name != "match_cost_of"]
    if other := chosen.pop("match_cost_of", None):
        assert other.strip("{}") in ablation.VARIANTS
        flags.append(f"--match_cost_of={tmp_path / other.strip('{}')}")
    assert sorted(ablation.flags_of(variant, tmp_path)) == sorted(flags)
    resolution.choose(chosen)


def test_an_image_counts_if_no_attack_breaks_it(tmp_path):
    (tmp_path / "evaluation").mkdir()
    efficiency = {"flops_reduction": 4.0, "parameters": [7, 70]}
    records = [{"split": "test", "sparsity": 0.8, "efficiency": efficiency}]
    labels, clean = np.array([0, 1, 2, 3]), np.array([0, 1, 2, 0])
    for name, broken_by in (("apgd-ce", [-1, -1, 0, -1]), ("apgd-t", [-1, 1, -1, -1])):
        path = f"evaluation/{name}.npz"
        arrays = {"labels": labels, "clean_predictions": clean, "broken_by": np.array(broken_by)}
        np.savez(tmp_path / path, **arrays)
        found = {"split": "validation", "attack": {"name": name}, "per_example": path}
        records += [found, found | {"split": "test", "per_example": "none"}]
    (tmp_path / "results.json").write_text(json.dumps(records))
    (tmp_path / "metrics.csv").write_text("epoch,validation_robust_accuracy\n1,0.1\n2,0.5\n")
    found = ablation.figures(tmp_path)
    assert found[:5] == (0.8, 4.0, 7, 0.75, 0.5)
    assert list(found.robust) == [True, False, False, False]


def test_half_an_evaluation_is_done_again_and_a_whole_one_is_not(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(ablation, "call", lambda name, flags, directory: called.append(name))
    run = tmp_path / "base"
    run.mkdir()
    records = [{"split": "test", "attack": {"name": "pgd"}}]
    for name in ("apgd-ce", "apgd-t"):
        records.append({"split": "validation", "attack": {"name": name}})
        (run / "results.json").write_text(json.dumps(records))
        ablation.make("base", 0, tmp_path)
    assert called == ["evaluate"]


def test_differences_are_of_pairs():
    # Two of eight images are won and one is lost: the mean is 1/8, and the variance of a pair is
    # (3 - 8 / 64) / 7 = 0.4107, so half of the interval is 1.96 * sqrt(0.4107 / 8) = 0.4441.
    base = np.array([1, 1, 1, 1, 0, 0, 0, 0], bool)
    found = np.array([1, 1, 1, 0, 1, 1, 0, 0], bool)
    assert ablation.difference(found, base) == "+12.5 ± 44.4"
