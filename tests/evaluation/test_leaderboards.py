"""What goes to a leaderboard, and what does not."""

import dataclasses
import json

import numpy as np
import pytest
import tiny_network

from anpvs_tf.attacks.settings import AttackSettings
from anpvs_tf.data.sources import SOURCES
from anpvs_tf.evaluation import attack_choice, leaderboards
from anpvs_tf.evaluation.attacked_model import Subject
from anpvs_tf.networks.gate import gates_of
from anpvs_tf.pruning import efficiency
from anpvs_tf.runs import resolution

STRANGER = Subject("runs/r", SOURCES["cifar10"], "", lambda images: images)
REFUSED = "The Adversarial Pruning Benchmark takes no entry of this: "


def record(**changes):
    settings = AttackSettings(8 / 255, classes=10)
    return {
        **{"dataset": "cifar10", "split": "test", "network": "resnet20", "width": 0.5},
        "model": "runs/r",
        **{"examples": 10_000, "clean_accuracy": 0.70004, "robust_accuracy": 0.3687},
        "threat_model": {"norm": "linf", "epsilon": 8 / 255},
        "attack": attack_choice.description("autoattack", settings),
    } | changes


def write(records, directory, subject=STRANGER):
    """(line of RobustBench, line of the Adversarial Pruning Benchmark), "" for none."""
    said = leaderboards.write(records, directory, subject)
    names = ("RobustBench", "The Adversarial Pruning Benchmark")
    assert all(line.startswith(names) for line in said) and len(said) <= 2
    return tuple("".join(line for line in said if line.startswith(name)) for name in names)


# ---- RobustBench ----


def test_an_entry_has_the_fields_of_robustbench(tmp_path):
    (tmp_path / "evaluation").mkdir()
    others = [record(attack={"name": "pgd", "steps": 20}), record(examples=1000)]
    said, _ = write([*others, record()], tmp_path / "evaluation")
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
    said, _ = write([record(**changes)], tmp_path)
    assert said.startswith("RobustBench takes no entry of this: ") and why in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("setting", ["steps", "targets", "queries", "restarts"])
def test_an_attack_with_other_settings_is_no_autoattack(setting, tmp_path):
    attack = record()["attack"] | {setting: 2}
    said = write([record(attack=attack)], tmp_path)
    assert all("autoattack with its defaults" in line for line in said)


def test_of_data_without_leaderboard_nothing_is_said(tmp_path):
    assert write([record(dataset="digits")], tmp_path) == ("", "")
    assert write([record(dataset="cifar100", examples=1)], tmp_path)[1] == ""
    assert write([record(dataset="tfds:svhn_cropped", examples=1)], tmp_path)[0] == ""


BOTH = "RobustBench, The Adversarial Pruning Benchmark"


@pytest.mark.parametrize(
    ("dataset", "boards"),
    [
        ("cifar10", BOTH),
        ("cifar100", "RobustBench"),
        ("tfds:svhn_cropped", "The Adversarial Pruning Benchmark"),
        ("digits", ""),
    ],
)
def test_without_autoattack_one_line_asks_for_it(dataset, boards, tmp_path):
    made = [record(dataset=dataset, attack={"name": name}) for name in ("pgd", "worst-case")]
    why = "takes an entry of this: the attack must be autoattack with its defaults"
    said = leaderboards.write(made, tmp_path, STRANGER)
    assert said == ([f"No leaderboard ({boards}) {why}"] if boards else [])
    assert not list(tmp_path.iterdir())


# ---- Adversarial Pruning Benchmark ----


def gated(closed):
    """500 weights in a convolution of 20 features, 7,200 behind it: 385 of each feature."""
    network = tiny_network.tiny((28, 28, 1), 10, "beta_bernoulli")
    gates_of(network)[0].close(np.arange(20) < closed)
    return network


@pytest.fixture
def shares(monkeypatch):
    """Lets the share of removed weights stand in the place of a network."""
    monkeypatch.setattr(efficiency, "removed_weights", lambda share: share)


def subject_of(network, method, **settings):
    chosen = {"dataset": "cifar10", "method": method, "network": "vgg16", **settings}
    return Subject(
        *("runs/r", SOURCES["cifar10"], "", lambda images: images),
        network=network,
        settings=resolution.choose(chosen),
    )


def of_run(method, **changes):
    return record(**{"method": method, "network": "resnet18", "width": 1.0} | changes)


def test_an_entry_has_the_fields_of_the_adversarial_pruning_benchmark(tmp_path):
    robustbench, said = write([of_run("anpvs")], tmp_path, subject_of(gated(15), "anpvs"))
    assert robustbench.startswith("RobustBench: ")
    path = tmp_path / "adversarial-pruning-linf.json"
    yours = "link_to_paper, ap_key, Model GDrive, Distances GDrive, Robust Accuracy (HO-FMN)"
    assert said == f"The Adversarial Pruning Benchmark: {path} is the entry; fill in {yours}"
    entry = json.loads(path.read_text())
    assert "no normalization" in entry.pop("Architecture details and normalization")
    assert entry == {
        "JSON Entry": {
            **{"link_to_paper": None, "ap_key": None},
            "Type of Pipeline:": "D-Methods Pruning During Training",
            "D: Training step ": "Adversarial Training (AT) PGD",
            "Pruning structure": "Structured (S) channels",
            "Pruning locality": "Global Pruning (G)",
            "Pruning criterion": "Least Importance Score (LIS)",
        },
        "Evaluation Results": {
            "Model key": "ap_key_R18_CIFAR10_S_75",
            **{"Model GDrive": None, "Distances GDrive": None, "Robust Accuracy (HO-FMN)": None},
            **{"Clean Accuracy": "70.00", "Robust Accuracy (AA)": "36.87"},
            **{"Epsilon (AA)": "8/255", "Pruned weights": "75.00"},
        },
    }


UNIT = "what is pruned must be weights, filters or gated features"


def key_and_share(directory):
    entry = json.loads((directory / "adversarial-pruning-linf.json").read_text())
    found = entry["Evaluation Results"]
    return found["Model key"].rpartition("CIFAR10_")[-1], found["Pruned weights"]


@pytest.mark.parametrize(
    ("settings", "share", "expected"),
    [
        ({"method": "anp"}, 0.4951, ("S_50", "49.51")),
        ({"method": "anp"}, 0.85, ("S_75", "85.00")),
        ({"method": "anp_vib"}, 0.9711, ("S_90", "97.11")),
        ({"method": "admm", "prune_structure": "filter"}, 0.7496, ("S_75", "74.96")),
        ({"method": "admm"}, 0.8996, ("US_90", "89.96")),
        ({"method": "admm"}, 0.9449, ("US_90", "94.49")),
        ({"method": "admm"}, 0.9892, ("US_99", "98.92")),
    ],
)
def test_the_share_of_pruned_weights_decides(settings, share, expected, shares, tmp_path):
    gates = settings["method"] != "admm"
    made = of_run(settings["method"], weight_sparsity=0.0 if gates else share)
    write([made], tmp_path, subject_of(share if gates else None, **settings))
    assert key_and_share(tmp_path) == expected


@pytest.mark.parametrize(
    ("settings", "share", "changes", "why"),
    [
        ({}, 0.4949, {}, "50% of the weights must be pruned; these were 49.49%"),
        (
            *({"method": "admm"}, None, {"weight_sparsity": 0.8949}),
            "90% of the weights must be pruned; these were 89.49%",
        ),
        ({"method": "admm", "prune_structure": "column"}, 0.9, {}, f"{UNIT}, not columns"),
        ({"method": "at"}, None, {}, "the network must be that of a run whose method prunes"),
        ({}, 0.75, {"network": "resnet20"}, "the network must be resnet18 or vgg16 of width 1"),
        ({}, 0.75, {"width": 0.5}, "the network must be resnet18 or vgg16 of width 1"),
        (
            *({}, 0.75, {"examples": 9_999}),
            "10,000 test images must be attacked; these were 9,999 of the test split",
        ),
        (
            *({}, 0.75, {"threat_model": {"norm": "l2", "epsilon": 0.5}}),
            "the threat model must be linf 8/255 or linf 0.031",
        ),
    ],
)
def test_what_the_pruning_benchmark_misses(settings, share, changes, why, shares, tmp_path):
    settings = {"method": "anp"} | settings
    said = write([of_run(settings["method"], **changes)], tmp_path, subject_of(share, **settings))
    assert said[1] == REFUSED + why
    assert not (tmp_path / "adversarial-pruning-linf.json").exists()


def test_an_int8_file_is_no_entry_of_the_pruning_benchmark(shares, tmp_path):
    subject = dataclasses.replace(subject_of(0.75, "anp"), simulated=lambda images: images)
    _, said = write([of_run("anp")], tmp_path, subject)
    assert said == f"{REFUSED}the network must be float32, not int8"


def test_a_model_from_elsewhere_is_not_known_to_be_pruned(tmp_path):
    _, said = write([record()], tmp_path)
    assert said == f"{REFUSED}the network must be that of a run whose method prunes"


def test_the_radius_and_the_images_of_the_pruning_benchmark(shares, tmp_path):
    """Its own radius is 0.031, and SVHN has more images than it takes."""
    threat = {"norm": "linf", "epsilon": 0.031}
    made = of_run("anp", dataset="tfds:svhn_cropped", examples=26_032, threat_model=threat)
    write([made | {"network": "vgg16"}], tmp_path, subject_of(0.5, "anp"))
    entry = json.loads((tmp_path / "adversarial-pruning-linf.json").read_text())
    found = entry["Evaluation Results"]
    assert (found["Model key"], found["Epsilon (AA)"]) == ("ap_key_V16_SVHN_S_50", "0.031")


ADMM = {
    "Type of Pipeline:": "A-Methods Pruning After Training",
    "A: OneShot (1S) vs Iterative (IT)": "1S",
    "Pruning locality": "Local Pruning (L)",
    "Pruning criterion": "Solver Based LWM (SOLWM)",
}
AT = "Adversarial Training (AT) "


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # The published entry of Ye et al. 2019, but for link, key and its second structure.
        (
            {"method": "admm"},
            {"A: Pretraining ": f"{AT}PGD", "A: Finetuning": f"{AT}PGD"}
            | ADMM
            | {"Pruning structure": "Unstructured (US)"},
        ),
        (
            {"method": "admm", "prune_structure": "filter", "train_attack": "n_fgsm"},
            {"A: Pretraining ": f"{AT}N-FGSM", "A: Finetuning": f"{AT}N-FGSM"}
            | ADMM
            | {"Pruning structure": "Structured (S) filters"},
        ),
        (
            {"method": "pat"},
            {"A: Pretraining ": "Natural Training (NT)", "A: Finetuning": f"{AT}PGD"},
        ),
        ({"method": "trades_anpvs"}, {"D: Training step ": f"{AT}TRADES"}),
        ({"method": "bp"}, {"D: Training step ": "Natural Training (NT)"}),
    ],
)
def test_the_taxonomy_of_a_method(settings, expected, shares, tmp_path):
    made = of_run(settings["method"], weight_sparsity=0.9)
    write([made], tmp_path, subject_of(0.9, **settings))
    entry = json.loads((tmp_path / "adversarial-pruning-linf.json").read_text())
    assert expected.items() <= entry["JSON Entry"].items()
