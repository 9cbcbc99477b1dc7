"""Notices catastrophic overfitting: a network that withstands its training attack alone.

Training against one or a few steps can end suddenly in a network that such an attack no
longer moves and that PGD breaks entirely (Wong et al. 2020; Andriushchenko & Flammarion
2020). Nothing in the training losses shows it; the attack on the validation split does.
"""

import sys
from typing import Any

from anpvs_tf.common.errors import TrainingError
from anpvs_tf.methods.registry import METHODS
from anpvs_tf.runs.directory import RunDirectory
from anpvs_tf.runs.settings import Settings

# More steps than that have not been seen to collapse at the usual radii.
FEW_STEPS = 3
# A fall of validation accuracy under attack that is no noise: to half, and by so much.
LEFT, LOST = 0.5, 0.15


def possible(settings: Settings) -> bool:
    """Says whether the training attack is so cheap that catastrophic overfitting is watched for."""
    few = settings.train_attack == "n_fgsm" or settings.attack_steps <= FEW_STEPS
    return METHODS[settings.method].adversarial and few


def noticed(settings: Settings, rows: list[dict[str, Any]]) -> bool:
    """Says whether the last epoch overfitted: better under attack in training, worse in validation.

    Accuracy under the validation attack fell to less than half of its best so far and by
    more than 15 points, while accuracy under the training attack rose.

    Args:
        rows: of metrics.csv.
    """
    if not possible(settings) or len(rows) < 2:
        return False
    *_, before, now = rows
    best = max(row["validation_robust_accuracy"] for row in rows[:-1])
    robust = now["validation_robust_accuracy"]
    rose = now["train_accuracy"] > before["train_accuracy"]
    return rose and robust < min(LEFT * best, best - LOST)


def check_good_epoch(epoch: int, best: int, run: RunDirectory) -> None:
    """Says that training ends because of catastrophic overfitting, and what is kept.

    Raises:
        TrainingError: no epoch before can be kept.
    """
    found = (
        f"catastrophic overfitting in epoch {epoch}: accuracy under the training attack rose, "
        "under the validation attack it fell to less than half"
    )
    cure = "more --attack_steps with --train_attack=pgd, or a smaller --learning_rate, prevent it"
    if not best:
        raise TrainingError(
            f"{found}, and no epoch before had the network that was asked for; {cure}; start "
            f"anew with --overwrite ({run.path} keeps the epochs before)"
        )
    print(f"warning: {found}; training ends, epoch {best} is kept; {cure}", file=sys.stderr)
