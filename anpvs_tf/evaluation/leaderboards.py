"""The entries of leaderboards that an evaluation makes.

They are RobustBench's (Croce et al. 2021) and that of the Adversarial Pruning Benchmark (Piras et
al. 2024), by the names that these give to fields and values.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from anpvs_tf.attacks import radius
from anpvs_tf.attacks.settings import STEPS, AttackSettings
from anpvs_tf.common.files import write_atomically
from anpvs_tf.evaluation.attacked_model import Subject
from anpvs_tf.methods.registry import METHODS, Method
from anpvs_tf.pruning import efficiency
from anpvs_tf.runs.result_record import ResultRecord
from anpvs_tf.runs.settings import Settings

IMAGES = 10_000
STANDARD = {
    "steps": STEPS,
    "targets": AttackSettings.targets,
    "queries": AttackSettings.queries,
    "restarts": AttackSettings.restarts,
}
ATTACK = "the attack must be autoattack with its defaults"


@dataclasses.dataclass(frozen=True)
class Leaderboard:
    """A leaderboard of AutoAttack on `IMAGES` test images.

    Attributes:
        name: of it, in a sentence.
        file: the beginning of the file name of its entries.
        radii: {(dataset, norm): those that it takes, in pixel units}.
        yours: the fields that only the authors of a network know.
        missing: (record, subject) -> what else keeps the record off it.
        entry: (record, subject) -> the entry of a record of which nothing is missing, each of
            `yours` None.
    """

    name: str
    file: str
    radii: Mapping[tuple[str, str], tuple[float, ...]]
    yours: tuple[str, ...]
    missing: Callable[[ResultRecord, Subject], list[str]]
    entry: Callable[[ResultRecord, Subject], dict[str, Any]]

    @property
    def datasets(self) -> set[str]:
        return {dataset for dataset, _ in self.radii}


def missing(board: Leaderboard, record: ResultRecord, subject: Subject) -> list[str]:
    """Lists what keeps a record off a leaderboard; empty if nothing does."""
    found = []
    dataset, epsilon = record["dataset"], record["threat_model"]["epsilon"]
    taken = board.radii.get((dataset, record["threat_model"]["norm"]), ())
    if all(abs(epsilon - one) > 1e-6 for one in taken):
        threats = [
            f"{norm} {radius.as_text(one)}"
            for (of, norm), radii in board.radii.items()
            for one in radii
            if of == dataset
        ]
        found.append(f"the threat model must be {' or '.join(threats)}")
    attack = record["attack"]
    if any(attack[name] != value for name, value in STANDARD.items()):
        found.append(ATTACK)
    if record["split"] != "test" or record["examples"] < IMAGES:
        found.append(
            f"{IMAGES:,} test images must be attacked; these were {record['examples']:,} of the "
            f"{record['split']} split"
        )
    if not record.get("reliable", True):
        found.append("the accuracy must be reliable")
    return found + board.missing(record, subject)


def write(records: list[ResultRecord], directory: pathlib.Path, subject: Subject) -> list[str]:
    """Writes an entry for each leaderboard, of the first record that makes one.

    Args:
        records: of an evaluation.
        directory: where <leaderboard>-<norm>.json goes.
        subject: the model that was evaluated.

    Returns:
        A line for each leaderboard of the dataset: where the entry is, or what is missing. One
        line for all of them, if AutoAttack was not run.
    """
    candidates = [record for record in records if record["attack"]["name"] == "autoattack"]
    if not candidates:
        evaluated = {record["dataset"] for record in records}
        boards = ", ".join(one.name for one in LEADERBOARDS if evaluated & one.datasets)
        return [f"No leaderboard ({boards}) takes an entry of this: {ATTACK}"] if boards else []
    said = [_written(board, candidates, directory, subject) for board in LEADERBOARDS]
    return [line for line in said if line]


def _written(
    board: Leaderboard, candidates: list[ResultRecord], directory: pathlib.Path, subject: Subject
) -> str:
    reasons = ""
    for record in candidates:
        if record["dataset"] not in board.datasets:
            continue
        if reasons := "; ".join(missing(board, record, subject)):
            continue
        path = directory / f"{board.file}-{record['threat_model']['norm']}.json"
        made = json.dumps(board.entry(record, subject), indent=2)
        write_atomically(path, made + "\n")
        return f"{board.name}: {path} is the entry; fill in {', '.join(board.yours)}"
    return f"{board.name} takes no entry of this: {reasons}" if reasons else ""


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


# ---- RobustBench ----

ROBUSTBENCH_YOURS = ("link", "name", "authors", "venue", "additional_data")


def _robustbench(record: ResultRecord, subject: Subject) -> dict[str, Any]:
    network = record.get("network", pathlib.Path(record["model"]).name)
    width = record.get("width", 1.0)
    robust = _percent(record["robust_accuracy"])
    return {
        **dict.fromkeys(ROBUSTBENCH_YOURS),
        "number_forward_passes": record.get("posterior_draws", 1),
        "dataset": record["dataset"],
        "architecture": network if width == 1 else f"{network}, width {width:g}",
        "eps": radius.as_text(record["threat_model"]["epsilon"]),
        "clean_acc": _percent(record["clean_accuracy"]),
        "reported": robust,
        "autoattack_acc": robust,
    }


# ---- Adversarial Pruning Benchmark ----


class Structure(NamedTuple):
    """What is pruned: `taxonomy` and `key` name it; `rates`: the pruned shares compared, in %."""

    taxonomy: str
    key: str
    rates: tuple[int, ...]


US, S = ("US", (90, 95, 99)), ("S", (50, 75, 90))
GATES = Structure("Structured (S) channels", *S)
# By --prune_structure. Columns are compared nowhere.
OF_WEIGHTS = {
    "irregular": Structure("Unstructured (US)", *US),
    "filter": Structure("Structured (S) filters", *S),
}
ARCHITECTURES = {"resnet18": "R18", "vgg16": "V16"}
DATASETS = {"cifar10": "CIFAR10", "tfds:svhn_cropped": "SVHN"}
# Its authors attack by the rounded radius, and take the other one for their second attack.
PRUNING_RADII = (8 / 255, 0.031)
# Percentage points that a network may lack: the last layer is usually not pruned.
ALLOWED = 0.5
TAXONOMY_YOURS = ("link_to_paper", "ap_key")
MODEL_YOURS = ("Model GDrive", "Distances GDrive", "Robust Accuracy (HO-FMN)")
CHECKPOINT = (
    "takes pixels in [0, 1], no normalization; not a base model: model.py and model.pt of "
    "bin/export.py --format=torch"
)


def _not_pruned_for_it(record: ResultRecord, subject: Subject) -> list[str]:
    method = METHODS.get(record.get("method", ""))
    if method is None or not method.prunes:
        return ["the network must be that of a run whose method prunes"]
    found = [] if subject.simulated is None else ["the network must be float32, not int8"]
    if record["network"] not in ARCHITECTURES or record["width"] != 1:
        found.append(f"the network must be {' or '.join(ARCHITECTURES)} of width 1")
    structure = _structure(method, subject.settings)
    if structure is None:
        found.append("what is pruned must be weights, filters or gated features, not columns")
    elif _rate(share := _share(method, record, subject), structure) is None:
        found.append(
            f"{structure.rates[0]}% of the weights must be pruned; these were {_percent(share)}%"
        )
    return found


def _pruned(record: ResultRecord, subject: Subject) -> dict[str, Any]:
    method, settings = METHODS[record["method"]], subject.settings
    structure = _structure(method, settings)
    share = _share(method, record, subject)
    parts = ("ap_key", ARCHITECTURES[record["network"]], DATASETS[record["dataset"]])
    return {
        "JSON Entry": _taxonomy(method, settings, structure),
        "Evaluation Results": {
            "Model key": "_".join((*parts, structure.key, str(_rate(share, structure)))),
            **dict.fromkeys(MODEL_YOURS),
            "Clean Accuracy": _percent(record["clean_accuracy"]),
            "Robust Accuracy (AA)": _percent(record["robust_accuracy"]),
            "Epsilon (AA)": radius.as_text(record["threat_model"]["epsilon"]),
            "Pruned weights": _percent(share),
        },
        "Architecture details and normalization": CHECKPOINT,
    }


def _structure(method: Method, settings: Settings) -> Structure | None:
    return OF_WEIGHTS.get(settings.prune_structure) if method.weight_pruning else GATES


def _share(method: Method, record: ResultRecord, subject: Subject) -> float:
    """Returns the share of the weights that is zero, by ADMM, or gone, by gates; in [0, 1]."""
    if method.weight_pruning:
        return record["weight_sparsity"]
    return efficiency.removed_weights(subject.network)


def _rate(share: float, structure: Structure) -> int | None:
    """Returns the highest of the compared shares, in %, that a network reaches; None if none."""
    reached = [rate for rate in structure.rates if 100 * share + ALLOWED >= rate]
    return max(reached, default=None)


def _taxonomy(method: Method, settings: Settings, structure: Structure) -> dict[str, str | None]:
    training = _training(method, settings)
    if method.learned_gates:
        pipeline = {
            "Type of Pipeline:": "D-Methods Pruning During Training",
            "D: Training step ": training,
        }
    else:
        base = METHODS[method.base] if method.base else method
        pipeline = {
            "Type of Pipeline:": "A-Methods Pruning After Training",
            "A: Pretraining ": _training(base, settings),
            "A: Finetuning": training,
            "A: OneShot (1S) vs Iterative (IT)": "1S",
        }
    return {
        **dict.fromkeys(TAXONOMY_YOURS),
        **pipeline,
        "Pruning structure": structure.taxonomy,
        # One objective weighs the gates of all layers; ADMM cuts each kernel to the same share.
        "Pruning locality": "Local Pruning (L)" if method.weight_pruning else "Global Pruning (G)",
        "Pruning criterion": "Solver Based LWM (SOLWM)"
        if method.weight_pruning
        else "Least Importance Score (LIS)",
    }


def _training(method: Method, settings: Settings) -> str:
    if not method.adversarial:
        return "Natural Training (NT)"
    attack = {"pgd": "PGD", "n_fgsm": "N-FGSM"}[settings.train_attack]
    return f"Adversarial Training (AT) {'TRADES' if method.trades else attack}"


LEADERBOARDS = (
    Leaderboard(
        "RobustBench",
        "robustbench",
        {
            ("cifar10", "linf"): (8 / 255,),
            ("cifar10", "l2"): (0.5,),
            ("cifar100", "linf"): (8 / 255,),
        },
        ROBUSTBENCH_YOURS,
        lambda record, subject: [],
        _robustbench,
    ),
    Leaderboard(
        "The Adversarial Pruning Benchmark",
        "adversarial-pruning",
        {(dataset, "linf"): PRUNING_RADII for dataset in DATASETS},
        (*TAXONOMY_YOURS, *MODEL_YOURS),
        _not_pruned_for_it,
        _pruned,
    ),
)
