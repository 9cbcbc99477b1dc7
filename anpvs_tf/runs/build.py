"""What a run trains with, as its settings say."""

import dataclasses

import keras

from anpvs_tf.methods.hyperparameters import Objective
from anpvs_tf.methods.optimizer import GroupedAdam, learning_rate_schedule
from anpvs_tf.methods.registry import METHODS
from anpvs_tf.networks import bayesian
from anpvs_tf.networks.architectures import NETWORKS
from anpvs_tf.pruning.admm import WeightPruning
from anpvs_tf.runs.settings import Settings, layer_betas


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


def build_network(settings: Settings, dtype: str) -> keras.Model:
    """The network of a run with its initial weights.

    Raises:
        UsageError: the network does not fit the dataset.
    """
    source, method = settings.source, METHODS[settings.method]
    network = NETWORKS[settings.network](
        source.image_shape,
        source.classes,
        gate=method.gate,
        gate_scope=settings.gate_scope,
        seed=settings.seed,
        dtype=dtype,
    )
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = settings.sync_batch_norm
    if method.bayesian:
        return bayesian.convert(network, settings.prior_stddev, settings.initial_rho)
    return network
