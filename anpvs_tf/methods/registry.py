"""The training methods: a row of the table is data, and the training step reads it."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to train, by the properties that distinguish it.

    Attributes:
        name: the word of the `--method` flag.
        summary: the method in one line.
        source: the paper it comes from.
        adversarial: train on adversarial examples too, not on clean ones alone.
        trades: the loss of Zhang et al. 2019 in place of J (Eq. 6).
        gate: gate kind of `gating.GATE_KINDS`, or None.
        frozen_gates: the gates stay as the base run left them.
        vulnerability: add lambda V to the weights' loss.
        bayesian: the weights have a Gaussian posterior.
        weight_pruning: ADMM drives weights to zero, then a mask keeps them there.
        base: the method of the run whose weights training begins with, or None.
    """

    name: str
    summary: str
    source: str
    adversarial: bool = True
    trades: bool = False
    gate: str | None = None
    frozen_gates: bool = False
    vulnerability: bool = False
    bayesian: bool = False
    weight_pruning: bool = False
    base: str | None = None

    @property
    def learned_gates(self) -> bool:
        return self.gate is not None and not self.frozen_gates

    @property
    def prunes(self) -> bool:
        """Whether it prunes features or weights."""
        return self.gate is not None or self.weight_pruning

    @property
    def weighted_cross_entropy(self) -> bool:
        """Whether the weights' loss is J = (CE(x) + w CE(x~)) / (1 + w)."""
        return self.adversarial and not self.trades

    def uses(self, trait: str | None) -> bool:
        """Says whether the method, or the run that it begins with, has a trait.

        Args:
            trait: an attribute of `Method`; None for what every method has.
        """
        if trait is None or getattr(self, trait):
            return True
        return self.base is not None and METHODS[self.base].uses(trait)


_MADAAN = "Madaan et al. 2020"
_BETA, _BOTTLENECK = "beta_bernoulli", "information_bottleneck"

_ROWS = (
    Method("standard", "cross-entropy on clean images", "-", adversarial=False),
    Method(
        "bp",
        "Bayesian pruning: beta-Bernoulli gates, clean images",
        "Lee et al. 2018",
        adversarial=False,
        gate=_BETA,
        base="standard",
    ),
    Method("at", "adversarial training against PGD", "Madry et al. 2018"),
    Method(
        "at_bnn",
        "adversarial training of a Bayesian network: Gaussian weights",
        "Liu et al. 2019",
        bayesian=True,
    ),
    Method(
        "pretrained_at",
        "adversarial training that begins with a trained network",
        "Hendrycks et al. 2019",
        base="standard",
    ),
    Method(
        "admm",
        "adversarial training while ADMM prunes weights, then masked retraining",
        "Ye et al. 2019",
        weight_pruning=True,
    ),
    Method(
        "trades",
        "cross-entropy on clean images, and how far their prediction can be moved",
        "Zhang et al. 2019",
        trades=True,
    ),
    Method(
        "pat",
        "prune, then adversarial training: gates of a bp run, frozen",
        _MADAAN,
        gate=_BETA,
        frozen_gates=True,
        base="bp",
    ),
    Method(
        "at_vs",
        "adversarial training with vulnerability suppression",
        _MADAAN,
        vulnerability=True,
    ),
    Method(
        "anp",
        "adversarial neural pruning: gates learned against PGD",
        _MADAAN,
        gate=_BETA,
        base="standard",
    ),
    Method(
        "anpvs",
        "adversarial neural pruning with vulnerability suppression",
        _MADAAN,
        gate=_BETA,
        vulnerability=True,
        base="standard",
    ),
    Method(
        "anp_vib",
        "anp with gates of the variational information bottleneck",
        f"{_MADAAN}; Dai et al. 2018",
        gate=_BOTTLENECK,
        base="standard",
    ),
    Method(
        "anpvs_vib",
        "anpvs with gates of the variational information bottleneck",
        f"{_MADAAN}; Dai et al. 2018",
        gate=_BOTTLENECK,
        vulnerability=True,
        base="standard",
    ),
    Method(
        "trades_anpvs",
        "anpvs with the loss of trades",
        f"{_MADAAN}; Zhang et al. 2019",
        trades=True,
        gate=_BETA,
        vulnerability=True,
        base="standard",
    ),
)

METHODS: dict[str, Method] = {row.name: row for row in _ROWS}
