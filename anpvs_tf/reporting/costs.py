"""The costs of networks as they are deployed, and the dense network of a pruned one's cost."""

import statistics

from anpvs_tf.methods.registry import METHODS
from anpvs_tf.reporting import measurements
from anpvs_tf.reporting.grouping import Group
from anpvs_tf.runs.finished_run import FinishedRun

KINDS = {"flops": "FLOPs", "parameters": "parameters"}
# A dense network costs the same as a pruned one if it costs at most so much more or less.
TOLERANCE = 0.1
# The method of the dense networks that pruned ones are compared with.
BASELINE = "at"


def of(run: FinishedRun) -> dict[str, int]:
    """Returns {kind: cost of the deployed network}; without the kinds that the record lacks."""
    saved = run.trained.get("efficiency") or {}
    return {kind: saved[kind][0] for kind in KINDS if kind in saved}


def mean(group: Group, kind: str) -> float | None:
    """Computes the mean cost of a group's networks; None if no record of it has the cost."""
    found = [of(run)[kind] for run in group.runs if kind in of(run)]
    return statistics.fmean(found) if found else None


def equals(group: Group, groups: list[Group]) -> dict[str, Group]:
    """Finds {kind: the dense group whose cost is nearest a pruned one's, within `TOLERANCE`}.

    Only groups that were evaluated in the same way are compared.
    """
    found: dict[str, Group] = {}
    alike = measurements.conditions(group.runs[0])
    dense = [
        other
        for other in groups
        if other.method == BASELINE and measurements.conditions(other.runs[0]) == alike
    ]
    for kind in KINDS:
        own = mean(group, kind)
        distances = [
            (abs(cost / own - 1), other)
            for other in dense
            if own and (cost := mean(other, kind)) is not None
        ]
        near = [one for one in distances if one[0] <= TOLERANCE]
        if near:
            found[kind] = min(near, key=lambda one: one[0])[1]
    return found


def notes(groups: list[Group]) -> list[str]:
    """Writes a sentence for each pruned group: the dense network of its cost, or its absence."""
    made = []
    for group in groups:
        # A method that prunes weights one by one leaves every operation in place.
        if METHODS[group.method].gate and of(group.runs[0]):
            made.append(_note(group, equals(group, groups)))
    return made


def _note(group: Group, found: dict[str, Group]) -> str:
    if not found:
        return (
            f"{group.label}: no dense `{BASELINE}` network here has its FLOPs or parameters "
            f"within {TOLERANCE:.0%}, so nothing here says whether a smaller dense network is "
            "better (bin/train.py --match_cost_of trains one)."
        )
    parts = [
        f"of the same {KINDS[kind]} ({mean(other, kind):,.0f} against {mean(group, kind):,.0f}): "
        f"{other.label}, {_robust(other)}"
        for kind, other in found.items()
    ]
    return f"{group.label}, {_robust(group)} under PGD; dense {'; '.join(parts)}."


def _robust(group: Group) -> str:
    return f"{statistics.fmean(run.trained['robust_accuracy'] for run in group.runs):.2%}"
