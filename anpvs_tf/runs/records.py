"""Merges the result records of a run and describes them in words."""

from typing import Any

from anpvs_tf.attacks import radius
from anpvs_tf.runs.result_record import ResultRecord

WORST_CASE = "worst-case"


def merged(held: list[ResultRecord], new: list[ResultRecord]) -> list[ResultRecord]:
    """Appends `new` to `held`; a new record replaces those of the same measurement."""

    def identity(record):
        keys = ("model", "dataset", "split", "examples", "threat_model", "attack", "attack_seed")
        return {key: record.get(key) for key in keys}

    kept = list(held)
    for record in new:
        same = [other for other in kept if identity(other) == identity(record)]
        if same and "checks" not in record:
            # A repetition without checks keeps the results of the earlier checks.
            found = {
                key: same[-1][key]
                for key in ("checks", "reliable", "unreliable_because")
                if key in same[-1]
            }
            record = found | record if record.get("reliable") is False else record | found
        kept = [other for other in kept if other not in same] + [record]
    return kept


def attack_text(attack: dict[str, Any]) -> str:
    """Describes an attack of a record in words."""
    if attack["name"] == WORST_CASE:
        return "worst case of " + ", ".join(dict.fromkeys(one["name"] for one in attack["of"]))
    words = {
        "steps": "{} steps",
        "step_size": "of {}",
        "restarts": "{} start(s)",
        "draws": "{} draws",
        "targets": "{} targets",
        "queries": "{} queries",
        "noise_draws": "{} draws of noise",
        "gamma": "gamma {:g}",
    }
    parts = [
        words[name].format(radius.as_text(value) if name == "step_size" else value)
        for name, value in attack.items()
        if name in words and not (name == "draws" and value == 1)
    ]
    return f"{attack['name']} ({', '.join(parts)})" if parts else attack["name"]


def pruned(record: ResultRecord) -> list[str]:
    """Says which shares are pruned, as ["77.25% of features"]; none that rounds to 0."""
    shares = {"sparsity": "features", "weight_sparsity": "weights"}
    texts = [f"{record.get(key, 0.0):.2%} of {what}" for key, what in shares.items()]
    return [text for text in texts if not text.startswith("0.00%")]


def of_training(record: ResultRecord) -> bool:
    """Says whether bin/train.py wrote this record; if not, bin/evaluate.py did."""
    return "efficiency" in record
