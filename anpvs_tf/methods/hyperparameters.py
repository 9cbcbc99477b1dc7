"""The hyperparameters of a training step."""

import dataclasses
from collections.abc import Mapping

REDUCTIONS = ("mean", "sum")
DECAYS = ("steps", "linear")


@dataclasses.dataclass(frozen=True)
class Objective:
    """What a step minimises and against which adversary.

    Attributes:
        epsilon, step_size: of the training attack, in pixel units.
        attack_steps: gradient steps of the training attack.
        norm: of the training attack, "linf" or "l2".
        adversarial_weight: w of J = (CE(x) + w CE(x~)) / (1 + w).
        trades_beta: factor of KL(f(x) || f(x~)) for a method with the loss of TRADES.
        weight_decay: factor of sum ||v||^2 / 2 over the kernels.
        lambda_vs: factor of the vulnerability in the weights' loss.
        vulnerability_reduction: "mean" or "sum" over a layer's features.
        beta: factor of KL / train_examples in the gates' loss.
        layer_beta: {layer: factor} instead of beta, by the name of a gate without "_gate".
        train_examples: N, the number of training examples.
        kl_warmup_steps: steps with beta = 0, before the classifier resists the KL.
        kl_ramp_steps: steps over which beta then grows linearly to its value.
        epsilon_warmup_steps: steps over which epsilon and step_size grow linearly
            to their values, so that a large epsilon does not start on a plateau.
        kl_scale: factor of KL / train_examples of Gaussian weights in the weights' loss.
        crafting_draws: draws of Gaussian weights that the training attack sees; 0: their means.
        awp: norm of the adversarial weight perturbation over each kernel's; 0 is none.
    """

    epsilon: float
    step_size: float
    attack_steps: int
    train_examples: int
    norm: str = "linf"
    adversarial_weight: float = 2.0
    trades_beta: float = 6.0
    weight_decay: float = 1e-4
    lambda_vs: float = 0.0
    vulnerability_reduction: str = "mean"
    beta: float = 1.0
    layer_beta: Mapping[str, float] = dataclasses.field(default_factory=dict)
    kl_warmup_steps: int = 0
    kl_ramp_steps: int = 0
    epsilon_warmup_steps: int = 0
    kl_scale: float = 1.0
    crafting_draws: int = 0
    awp: float = 0.0
