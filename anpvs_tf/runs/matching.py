"""The width of a dense network that costs as much as a pruned one: the fair comparison."""

import dataclasses

import keras

from anpvs_tf.common.errors import UsageError
from anpvs_tf.methods.registry import METHODS
from anpvs_tf.pruning import efficiency
from anpvs_tf.pruning.compact import freeze
from anpvs_tf.runs import build
from anpvs_tf.runs.finished_run import FinishedRun
from anpvs_tf.runs.settings import Settings

# Costs of two networks that differ by no more than this share are compared as equal.
TOLERANCE = 0.1
# The widths that are tried lie 1/64 apart, finer than one of 64 features.
STEP = 1 / 64


@dataclasses.dataclass(frozen=True)
class Matched:
    """A width, the cost of a network of it, and the cost that was wanted."""

    width: float
    cost: int
    wanted: int


def matched(settings: Settings, run: FinishedRun, cost: str = "flops") -> Matched:
    """Finds the width at which the network of `settings` costs what the network of a run does.

    Both are counted as they are deployed: frozen, without pruned features.

    Args:
        settings: of a method without gates.
        run: of the network that it is to cost as much as.
        cost: one of `names.COSTS`.

    Raises:
        UsageError: a method with gates, or no width up to 1
            whose cost is within a tenth.
    """
    if METHODS[settings.method].gate is not None:
        raise UsageError(
            "--match_cost_of is for a dense network; choose a --method without gates, such as at"
        )
    wanted = run.trained["efficiency"][cost][0]
    low, high = 1, round(1 / STEP)
    while low < high:  # The narrowest that costs at least as much.
        middle = (low + high) // 2
        if _cost(settings, middle * STEP, cost) < wanted:
            low = middle + 1
        else:
            high = middle
    widths = [places * STEP for places in {max(low - 1, 1), low}]
    costs = {width: _cost(settings, width, cost) for width in widths}
    keras.backend.clear_session()  # The names of these networks would pile up.
    width = min(widths, key=lambda one: abs(costs[one] - wanted))
    if abs(costs[width] - wanted) > TOLERANCE * wanted:
        raise UsageError(
            f"no width up to 1 gives {settings.network} within {TOLERANCE:.0%} of the {wanted:,} "
            f"{cost} of {run.path}; --width={width:g} is nearest, with {costs[width]:,}"
        )
    return Matched(width, costs[width], wanted)


def _cost(settings: Settings, width: float, cost: str) -> int:
    network = build.build_network(dataclasses.replace(settings, width=width), "float32")
    dense = freeze(network, prune=False)
    return efficiency.flops(dense) if cost == "flops" else dense.count_params()
