"""What a run trains with, as its settings say."""

import dataclasses

import keras

from anpvs_tf.admm import WeightPruning
from anpvs_tf.methods import METHODS
from anpvs_tf.objective import Objective
from anpvs_tf.optimization import GroupedAdam, learning_rate_schedule
from anpvs_tf.settings import Settings, layer_betas


def objective_of(settings: Settings, train_examples: int, steps: int) -> Objective:
    """What a step of a run minimises, for epochs of `steps` steps."""
    names = [field.name for field in dataclasses.fields(Objective)]
    own = {name: getattr(settings, name) for name in names if hasattr(settings, name)}
    own |= {
        "train_examples": train_examples,
        "layer_beta": layer_betas(settings),
        "kl_warmup_steps": settings.kl_warmup_epochs * steps,
        "kl_ramp_steps": settings.kl_ramp_epochs * steps,
        "epsilon_warmup_steps": settings.epsilon_warmup_epochs * steps,
    }
    return Objective(**own)


def weight_pruning(settings: Settings, network: keras.Model) -> WeightPruning:
    """ADMM on the kernels of a network, as the settings say."""
    return WeightPruning(
        network,
        settings.prune_ratio,
        settings.prune_structure,
        admm_epochs=settings.admm_epochs,
        interval=settings.admm_interval,
        rho=settings.admm_rho,
        rho_growth=settings.admm_rho_growth,
    )


def make_optimizer(
    settings: Settings, total_steps: int, skip_nonfinite: bool = False
) -> keras.optimizers.Optimizer:
    """Adam with the published schedule; loss scaling for float16."""
    optimizer = GroupedAdam(
        learning_rate_schedule(
            settings.learning_rate, total_steps, settings.decay_at, settings.decay
        ),
        settings.gate_learning_rate / settings.learning_rate,
        settings.weight_average,
        skip_nonfinite,
    )
    if settings.precision == "float16":
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def first_selectable_epoch(settings: Settings) -> int:
    """The first epoch whose network is what was asked for: all warm-ups are over."""
    method = METHODS[settings.method]
    begins = 0
    if method.adversarial:
        begins = settings.epsilon_warmup_epochs
    if method.learned_gates:
        begins = max(begins, settings.kl_warmup_epochs + settings.kl_ramp_epochs)
    if method.weight_pruning:
        begins = max(begins, settings.admm_epochs)
    return min(begins + 1, settings.epochs)
