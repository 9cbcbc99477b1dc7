"""Values of single runs, looked up in their records."""

import collections
import dataclasses
import json
import math
from collections.abc import Callable, Iterable
from typing import Any

from anpvs_tf.attacks.settings import RADII, usual_step_size
from anpvs_tf.methods.registry import METHODS
from anpvs_tf.reporting import commands
from anpvs_tf.runs import records
from anpvs_tf.runs.finished_run import FinishedRun
from anpvs_tf.runs.result_record import ResultRecord


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One value of one run.

    Attributes:
        value: as the record has it: accuracies and shares in [0, 1].
        command: that makes it again.
        examples: how many test images it is of; None if it is of none.
        unreliable: a self-check failed, or a stronger attack found more.
    """

    value: float
    command: str
    examples: int | None = None
    unreliable: bool = False


Lookup = Callable[[FinishedRun], Measurement | None]


@dataclasses.dataclass(frozen=True)
class Attack:
    """An attack in a threat model: what makes two robust accuracies comparable.

    settings: name, steps and so on, as JSON.
    """

    norm: str
    epsilon: float
    settings: str

    @property
    def values(self) -> dict[str, Any]:
        return json.loads(self.settings)


def attack_of(record: ResultRecord) -> Attack:
    """Makes the attack of a record; the sources of transferred examples are no part of it."""
    held = {k: v for k, v in record["attack"].items() if (k, v) != ("draws", 1) and k != "sources"}
    if record.get("posterior_draws"):  # Then another network was attacked.
        held["posterior_draws"] = record["posterior_draws"]
    held = {name: held[name] for name in sorted(held, key=_place)}
    threat = record["threat_model"]
    return Attack(threat["norm"], threat["epsilon"], json.dumps(held))


def conditions(run: FinishedRun) -> tuple[Attack, int]:
    """Returns the attack that ended a run's training, and the number of its images."""
    return attack_of(run.trained), run.trained["examples"]


def _place(name: str) -> tuple[int, str]:
    first = ("name", "steps", "step_size", "restarts")
    return (first.index(name) if name in first else len(first)), name


def attack_text(attack: Attack, varied: str = "") -> str:
    """Describes an attack in words, without the setting `varied`."""
    held = {name: value for name, value in attack.values.items() if name != varied}
    size = held.pop("step_size", None)
    text = records.attack_text(held).replace("1 start(s)", "1 start").replace("start(s)", "starts")
    if "posterior_draws" in held:
        text += f", ensemble of {held['posterior_draws']} posterior draws"
    if size is None:
        return text
    usual = math.isclose(size, usual_step_size(attack.epsilon, attack.values["steps"]))
    return f"{text}, step {f'{RADII:g} ε / steps' if usual else f'{size:g}'}"


def in_words(attacks: dict[str, Attack], varied: str = "") -> list[str]:
    """Writes ["<where, where>: <attack>", ...]: where each attack was used, equal ones once.

    Args:
        attacks: the attacks by where they were used.
        varied: a setting that is left out, because the keys of `attacks` say it.
    """
    kinds: dict[str, list[str]] = {}
    for where, attack in attacks.items():
        kinds.setdefault(attack_text(attack, varied), []).append(where)
    return [f"{', '.join(where)}: {text}" for text, where in kinds.items()]


def trained(key: str) -> Lookup:
    """Makes a look-up of a value in the record of bin/train.py.

    Args:
        key: of the value; it may lead into dicts: "efficiency/flops".
    """

    def look_up(run):
        found: Any = run.trained
        for part in key.split("/"):
            found = found.get(part) if isinstance(found, dict) else None
        if found is None:
            return None
        return Measurement(float(found), commands.training(run), run.trained["examples"])

    return look_up


def sparsity(run: FinishedRun) -> Measurement | None:
    """Looks up the share of features that is pruned; of weights if the method prunes those."""
    of_weights = METHODS[run.settings.method].weight_pruning
    return trained("weight_sparsity" if of_weights else "sparsity")(run)


def white_box(run: FinishedRun, key: str = "robust_accuracy") -> Measurement | None:
    """Looks up a value of the evaluation that ended training."""
    return under_attack(run, attack_of(run.trained), key)


def under_attack(
    run: FinishedRun, attack: Attack, key: str = "robust_accuracy"
) -> Measurement | None:
    """Looks up a value under one attack.

    Of several records, it takes that of the most images, and of these the first: bin/train.py's
    own. The value is unreliable if any of the records says so.
    """
    found = [r for r in run.records if attack_of(r) == attack]
    return _best(run, found, key)


def strongest_named(run: FinishedRun, names: Iterable[str], key: str) -> Measurement | None:
    """Looks up a value under an attack of one of these names in the run's own threat model.

    Records of ensembles of posterior draws, which are other networks, are left out.
    """
    own = run.trained["threat_model"]
    found = [
        record
        for record in run.evaluations
        if record["attack"]["name"] in names
        and record["threat_model"] == own
        and not record.get("posterior_draws")
    ]
    return _best(run, found, key)


def _best(run: FinishedRun, found: list[ResultRecord], key: str) -> Measurement | None:
    found = [record for record in found if record.get(key) is not None]
    if not found:
        return None
    record = max(found, key=lambda record: record["examples"])
    own = record is run.trained
    command = commands.training(run) if own else commands.evaluation(run, record)
    if key == "robust_accuracy":
        unreliable = any(other.get("reliable") is False for other in found)
    else:  # That another attack fools the network more often says nothing of how far it moves.
        checks = [check for other in found for check in other.get("checks", [])]
        unreliable = not all(check["passed"] for check in checks)
    return Measurement(record[key], command, record["examples"], unreliable)


def epsilon_sweep(runs: list[FinishedRun], name: str) -> dict[float, Attack]:
    """Finds {epsilon: the attack of that name that most runs have there}; empty for one epsilon.

    The attacks have the norm that the runs share.
    """
    return _sweep(runs, lambda attack: attack.epsilon if attack.values["name"] == name else None)


def steps_sweep(runs: list[FinishedRun]) -> dict[int, Attack]:
    """Finds {steps: the PGD that most runs have at their own epsilon}; empty for one count."""
    usual = {run.trained["threat_model"]["epsilon"] for run in runs}

    def steps(attack):
        held = attack.values
        return held["steps"] if held["name"] == "pgd" and attack.epsilon in usual else None

    return _sweep(runs, steps) if len(usual) == 1 else {}


def attack_names(runs: list[FinishedRun]) -> list[str]:
    """Lists the names of the attacks in the records, in the order in which they appear."""
    found = [r["attack"]["name"] for run in runs for r in run.records]
    return list(dict.fromkeys(found))


def _sweep(runs: list[FinishedRun], of: Callable[[Attack], Any]) -> dict[Any, Attack]:
    counts: dict[Any, collections.Counter[Attack]] = {}
    norms = {run.trained["threat_model"]["norm"] for run in runs}
    for run in runs:
        for attack in {attack_of(record) for record in run.records}:
            if norms == {attack.norm} and (value := of(attack)) is not None:
                counts.setdefault(value, collections.Counter())[attack] += 1
    if len(counts) < 2:
        return {}

    def rank(counted):
        attack, count = counted
        held = attack.values
        return count, held.get("steps", 0) * held.get("restarts", 1), attack.settings

    return {value: max(counts[value].items(), key=rank)[0] for value in sorted(counts)}
