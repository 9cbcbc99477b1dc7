"""The training methods: a row of the table is data, and the training step reads it."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Method:
    """What distinguishes a way to train.

    Attributes:
        name: the word of the `--method` flag.
        summary: what it does, in one line.
        source: the paper it comes from.
        adversarial: train on PGD examples (J of Eq. 6) instead of clean ones only.
        gate: gate kind of `gating.GATE_KINDS`, or None.
        vulnerability: add lambda V to the weights' loss.
        warm_start: begin with the weights of a `standard` run.
    """

    name: str
    summary: str
    source: str
    adversarial: bool
    gate: str | None = None
    vulnerability: bool = False
    warm_start: bool = False


_ROWS = (
    Method("standard", "cross-entropy on clean images", "-", adversarial=False),
    Method(
        "bp",
        "Bayesian pruning: beta-Bernoulli gates, clean images",
        "Lee et al. 2018",
        adversarial=False,
        gate="beta_bernoulli",
        warm_start=True,
    ),
    Method("at", "adversarial training against PGD", "Madry et al. 2018", adversarial=True),
    Method(
        "at_vs",
        "adversarial training with vulnerability suppression",
        "Madaan et al. 2020",
        adversarial=True,
        vulnerability=True,
    ),
    Method(
        "anp",
        "adversarial neural pruning: gates learned against PGD",
        "Madaan et al. 2020",
        adversarial=True,
        gate="beta_bernoulli",
        warm_start=True,
    ),
    Method(
        "anpvs",
        "adversarial neural pruning with vulnerability suppression",
        "Madaan et al. 2020",
        adversarial=True,
        gate="beta_bernoulli",
        vulnerability=True,
        warm_start=True,
    ),
)

METHODS: dict[str, Method] = {row.name: row for row in _ROWS}
