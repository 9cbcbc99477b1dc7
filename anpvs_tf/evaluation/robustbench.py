"""The entry of RobustBench's leaderboard that an evaluation makes (Croce et al. 2021)."""

import json
import pathlib
from typing import Any

from anpvs_tf.attacks import radius
from anpvs_tf.attacks.settings import STEPS, AttackSettings
from anpvs_tf.common.files import write_atomically
from anpvs_tf.runs.result_record import ResultRecord

# The leaderboards that there are: (dataset, norm) -> radius in pixel units; of 10,000 images.
BOARDS = {
    ("cifar10", "linf"): 8 / 255,
    ("cifar10", "l2"): 0.5,
    ("cifar100", "linf"): 8 / 255,
}
IMAGES = 10_000
STANDARD = {
    "steps": STEPS,
    "targets": AttackSettings.targets,
    "queries": AttackSettings.queries,
    "restarts": AttackSettings.restarts,
}
# Only the authors of a network know these.
YOURS = ("link", "name", "authors", "venue", "additional_data")


def missing(record: ResultRecord) -> list[str]:
    """Lists what keeps a record off the leaderboard of its dataset; empty if nothing does."""
    found = []
    board = (record["dataset"], record["threat_model"]["norm"])
    epsilon = record["threat_model"]["epsilon"]
    if board not in BOARDS or abs(epsilon - BOARDS[board]) > 1e-6:
        boards = [
            f"{norm} {radius.as_text(size)}"
            for (dataset, norm), size in BOARDS.items()
            if dataset == record["dataset"]
        ]
        found.append(f"the threat model must be {' or '.join(boards)}")
    attack = record["attack"]
    standard = attack["name"] == "autoattack"
    if not standard or any(attack[name] != value for name, value in STANDARD.items()):
        found.append("the attack must be autoattack with its defaults")
    if record["split"] != "test" or record["examples"] != IMAGES:
        found.append(
            f"{IMAGES:,} test images must be attacked; these were {record['examples']:,} of the "
            f"{record['split']} split"
        )
    if not record.get("reliable", True):
        found.append("the accuracy must be reliable")
    return found


def entry(record: ResultRecord) -> dict[str, Any]:
    """Makes the entry of a record of which nothing is `missing`; its authors fill in each None."""
    network = record.get("network", pathlib.Path(record["model"]).name)
    width = record.get("width", 1.0)
    robust = f"{100 * record['robust_accuracy']:.2f}"
    return {
        **dict.fromkeys(YOURS),
        "number_forward_passes": record.get("posterior_draws", 1),
        "dataset": record["dataset"],
        "architecture": network if width == 1 else f"{network}, width {width:g}",
        "eps": radius.as_text(record["threat_model"]["epsilon"]),
        "clean_acc": f"{100 * record['clean_accuracy']:.2f}",
        "reported": robust,
        "autoattack_acc": robust,
    }


def write(records: list[ResultRecord], directory: pathlib.Path) -> str:
    """Writes the entry of the first record that makes one.

    Args:
        records: of an evaluation.
        directory: where robustbench-<norm>.json goes.

    Returns:
        A line that says where it is, or what is missing; empty for a dataset without leaderboard.
    """
    candidates = [r for r in records if r["attack"]["name"] == "autoattack"]
    candidates = [r for r in candidates if r["dataset"] in {dataset for dataset, _ in BOARDS}]
    reasons = ""
    for record in candidates:
        if reasons := "; ".join(missing(record)):
            continue
        path = directory / f"robustbench-{record['threat_model']['norm']}.json"
        write_atomically(path, json.dumps(entry(record), indent=2) + "\n")
        return f"RobustBench: {path} is the entry; fill in {', '.join(YOURS)}"
    return f"RobustBench takes no entry of this: {reasons}" if reasons else ""
