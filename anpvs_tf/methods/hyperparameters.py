"""The hyperparameters of a training step."""

import dataclasses
from collections.abc import Mapping

OPTIMIZERS = ("adam", "sgd")
DECAYS = ("steps", "linear", "one_cycle")
REDUCTIONS = ("mean", "sum")
TRAIN_ATTACKS = ("pgd", "n_fgsm")
TARGETS = ("features", "operations")


@dataclasses.dataclass(frozen=True)
class Objective:
    """The objective of a training step and its adversary.

    Attributes:
        epsilon: radius of the threat model, in pixel units.
        step_size: of the training attack, in pixel units.
        train_epsilon_scale: factor of epsilon in the training attack, above 0.
        attack_steps: gradient steps of the training attack.
        train_attack: one of `TRAIN_ATTACKS`: "pgd", or "n_fgsm", whose one step has length
            epsilon whatever step_size and attack_steps are.
        norm: of the training attack, "linf" or "l2".
        adversarial_weight: w of J = (CE(x) + w CE(x~)) / (1 + w).
        trades_beta: factor of KL(f(x) || f(x~)) for a method with the loss of TRADES.
        label_smoothing: share of the targets of both losses that is spread over the classes.
        weight_decay: factor of sum ||v||^2 / 2 over the kernels.
        lambda_vs: factor of the vulnerability in the weights' loss.
        vulnerability_reduction: "mean" or "sum" over a layer's features.
        beta: factor of KL / train_examples in the gates' loss.
        layer_beta: {layer: factor} instead of beta, by the name of a gate without "_gate".
        train_examples: N, the number of training examples.
        target_sparsity: share of `target_of` that is to be pruned in the end; beta is then
            steered, and only begins with the value given here. None: beta stays as given.
        target_of: one of `TARGETS`: "features" of the gates, or "operations", the
            multiplications of the network.
        target_steps: three steps: pruning begins, the target is to be reached, no feature is
            pruned any more.
        freeze_gates_step: the step from which gates act in training as they are deployed, by
            their mean; the optimizer is to hold them from then on (`GroupedAdam`'s
            gates_until). None: never.
        kl_warmup_steps: steps with beta = 0, before the classifier resists the KL.
        kl_ramp_steps: steps over which beta then grows linearly to its value.
        epsilon_warmup_steps: steps over which the training attack's radius and step grow
            linearly to their values, so that a large one does not start on a plateau.
        kl_scale: factor of KL / train_examples of Gaussian weights in the weights' loss.
        crafting_draws: draws of Gaussian weights that the training attack sees; 0: their means.
        awp: norm of the adversarial weight perturbation over each kernel's; 0 is none.
    """

    epsilon: float
    step_size: float
    attack_steps: int
    train_examples: int
    train_attack: str = "pgd"
    train_epsilon_scale: float = 1.0
    norm: str = "linf"
    adversarial_weight: float = 2.0
    trades_beta: float = 6.0
    label_smoothing: float = 0.0
    weight_decay: float = 1e-4
    lambda_vs: float = 0.0
    vulnerability_reduction: str = "mean"
    beta: float = 1.0
    layer_beta: Mapping[str, float] = dataclasses.field(default_factory=dict)
    target_sparsity: float | None = None
    target_of: str = "features"
    target_steps: tuple[int, int, int] = (0, 0, 0)
    freeze_gates_step: int | None = None
    kl_warmup_steps: int = 0
    kl_ramp_steps: int = 0
    epsilon_warmup_steps: int = 0
    kl_scale: float = 1.0
    crafting_draws: int = 0
    awp: float = 0.0
