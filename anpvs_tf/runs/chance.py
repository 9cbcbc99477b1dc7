"""Checks that a classifier is better than a constant answer; if not, its accuracies mislead."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from anpvs_tf.methods.registry import METHODS
from anpvs_tf.runs.settings import Settings


def of_labels(labels: Sequence[int], classes: int) -> float:
    """Computes the accuracy of the best constant answer, at least that of guessing: in (0, 1]."""
    most = np.bincount(np.asarray(labels, int)).max(initial=0) / max(len(labels), 1)
    return max(float(most), 1.0 / classes)


def recorded(
    record: Mapping[str, Any], chance: float, settings: Settings | None = None
) -> dict[str, Any]:
    """Makes the fields of a record: chance, and at_chance only if the classifier is at chance.

    Args:
        record: has clean_accuracy and examples.
    """
    found = verdict(record["clean_accuracy"], record["examples"], chance, settings)
    return {"chance": chance} | ({"at_chance": found} if found else {})


def verdict(
    accuracy: float, examples: int, chance: float, settings: Settings | None = None
) -> str | None:
    """Says that a classifier is at chance, and the likely cause; None if it is above.

    It is above if the 95 % interval of its accuracy (Wilson 1927) is.

    Args:
        accuracy: on `examples` unperturbed images, in [0, 1].
        chance: of `of_labels`.
        settings: of the run; None for a model that was not trained here.
    """
    from scipy.stats import binomtest  # Importing it takes as long as checking the flags.

    right = round(accuracy * examples)
    interval = binomtest(right, examples).proportion_ci(method="wilson")
    if interval.low > chance:
        return None
    return (
        f"clean accuracy {accuracy:.2%} is not above chance: a constant answer is right for "
        f"{chance:.2%} of the images. Likely cause: {_cause(settings)}"
    )


def _cause(settings: Settings | None) -> str:
    if settings is None:
        return "another --input_range, another order of the classes, or another dataset"
    method, found = METHODS[settings.method], []
    if method.adversarial and not settings.epsilon_warmup_epochs:
        found.append(
            "the attack has its full size from the first step (a larger --epsilon_warmup_epochs)"
        )
    if method.learned_gates and not settings.kl_warmup_epochs:
        found.append(
            "gates close before the network has learned (a larger --kl_warmup_epochs and "
            "--kl_ramp_epochs, or a smaller --beta)"
        )
    return "; or ".join(found) or "a too high --learning_rate, or too few --epochs"
