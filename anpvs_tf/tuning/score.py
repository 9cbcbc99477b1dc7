"""The score that a sweep maximises, of a run's values on the validation split."""

import dataclasses
import math
import operator
import re
from collections.abc import Iterable

from anpvs_tf.common.errors import UsageError
from anpvs_tf.methods.registry import METHODS
from anpvs_tf.runs.finished_run import FinishedRun

# The parts of a score: their names here and their columns of metrics.csv.
FIGURES = {
    "clean": "validation_clean_accuracy",
    "robust": "validation_robust_accuracy",
    "sparsity": "sparsity",
    "vulnerability": "validation_vulnerability",
}
# Those of which more is better.
TARGETS = ("robust", "clean", "sparsity")
HELP = (
    f"what is maximised on validation: {', '.join(TARGETS)}; one of them where another value "
    "keeps a limit, as in robust@sparsity>=0.75; or pareto, the mean of the three"
)
# Settings of the data and of the attack by which all trials are judged; "eval_..." are too.
_YARDSTICKS = ("dataset", "image_size", "channels", "epsilon", "norm")
_COMPARISONS = {">=": operator.ge, "<=": operator.le}


@dataclasses.dataclass(frozen=True)
class Limit:
    """`figure` >= or <= `value`."""

    figure: str
    comparison: str
    value: float

    def miss(self, figures: dict[str, float]) -> float:
        """Computes by how much the limit is missed; 0 if it is kept."""
        found = figures[self.figure]
        kept = _COMPARISONS[self.comparison](found, self.value)
        return 0.0 if kept else abs(found - self.value)


@dataclasses.dataclass(frozen=True)
class Score:
    """The score of a trial; more is better.

    A run that keeps the limit has the mean of its `targets`, which is at least 0. One
    that misses it has minus the distance from it: less than any run that keeps it, and
    more the nearer it is, so that a search is led to the limit.
    """

    text: str
    targets: tuple[str, ...]
    limit: Limit | None = None

    @property
    def figures(self) -> tuple[str, ...]:
        return (*self.targets, *([self.limit.figure] if self.limit else []))

    def feasible(self, figures: dict[str, float]) -> bool:
        return self.limit is None or self.limit.miss(figures) == 0.0

    def score(self, figures: dict[str, float]) -> float:
        """Computes the score from the values of `validation_figures`."""
        if not self.feasible(figures):
            return -self.limit.miss(figures)
        return sum(figures[name] for name in self.targets) / len(self.targets)


def parse(text: str) -> Score:
    """Reads the objective of `--objective`.

    Raises:
        UsageError: the text has no form that `HELP` describes.
    """
    if text == "pareto":
        return Score(text, TARGETS)
    match = re.fullmatch(r"(\w+)(?:@(\w+)(>=|<=)([^<>=@]+))?", text)
    target, figure, comparison, limit = match.groups() if match else (None,) * 4
    if target not in TARGETS or (figure and figure not in FIGURES):
        raise UsageError(
            f"unknown --objective={text!r}; use {', '.join(TARGETS)}, pareto, or a limit as in "
            f"robust@sparsity>=0.75 (limits: {', '.join(FIGURES)})"
        )
    if figure is None:
        return Score(text, (target,))
    try:
        value = float(limit)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"--objective={text!r}: the limit must be a number; got {limit!r}")
    return Score(text, (target,), Limit(figure, comparison, value))


def check_recorded(objective: Score, methods: set[str]) -> None:
    """Raises UsageError if the runs of a method lack a value that the objective needs."""
    for name in sorted(methods):
        if "sparsity" in objective.figures and not METHODS[name].prunes:
            able = [row.name for row in METHODS.values() if row.prunes]
            raise UsageError(
                f"--objective={objective.text} needs sparsity, but --method={name} prunes nothing; "
                f"methods that do: {', '.join(able)}"
            )


def check_comparable(swept: Iterable[str]) -> None:
    """Raises UsageError if a swept setting decides how trials are measured."""
    for name in swept:
        if name in _YARDSTICKS or name.startswith("eval_"):
            raise UsageError(
                f"--{name} decides how a trial is measured, so that trials that differ in it "
                "cannot be compared; give it one value, and make a sweep for each"
            )


def validation_figures(run: FinishedRun) -> dict[str, float]:
    """Reads the values on validation of the epoch whose network is saved."""
    row = run.metrics[run.trained["epoch"] - 1]
    return {name: row[column] for name, column in FIGURES.items()}
