"""The network, the objective and the optimizer of a run, made from its settings."""

import dataclasses
import math
import pathlib
from collections.abc import Callable

import keras

from anpvs_tf.common.errors import UsageError
from anpvs_tf.data.sources import file_name
from anpvs_tf.methods.hyperparameters import Objective
from anpvs_tf.methods.optimizer import OPTIMIZERS, learning_rate_schedule
from anpvs_tf.methods.registry import METHODS
from anpvs_tf.networks import bayesian, freezing, own_network
from anpvs_tf.networks.architectures import NETWORKS
from anpvs_tf.networks.gate import gates_of
from anpvs_tf.pruning.admm import WeightPruning
from anpvs_tf.runs.settings import Settings, layer_betas


def objective_of(settings: Settings, train_examples: int, steps: int) -> Objective:
    """Returns the objective of a run, for epochs of `steps` steps."""
    names = [field.name for field in dataclasses.fields(Objective)]
    own = {name: getattr(settings, name) for name in names if hasattr(settings, name)}
    own |= {
        "train_examples": train_examples,
        "layer_beta": layer_betas(settings),
        "target_steps": _target_steps(settings, steps),
        "freeze_gates_step": _freeze_gates_step(settings, settings.epochs * steps),
        "kl_warmup_steps": settings.kl_warmup_epochs * steps,
        "kl_ramp_steps": settings.kl_ramp_epochs * steps,
        "epsilon_warmup_steps": settings.epsilon_warmup_epochs * steps,
    }
    return Objective(**own)


def _freeze_gates_step(settings: Settings, total_steps: int) -> int | None:
    share = settings.freeze_gates_at
    return None if share == 1.0 else round(share * total_steps)


def _target_steps(settings: Settings, steps: int) -> tuple[int, int, int]:
    """Computes the steps at which pruning begins, should reach its target, and ends."""
    begin = settings.kl_warmup_epochs * steps
    total = settings.epochs * steps
    reached = max(begin + 1, round(settings.target_at * total))
    last = (reached + max(reached, total)) // 2
    frozen = _freeze_gates_step(settings, total)
    return begin, reached, last if frozen is None else max(reached, min(last, frozen))


def weight_pruning(settings: Settings, network: keras.Model) -> WeightPruning:
    """Makes the pruning by ADMM of the kernels of a network, as the settings say."""
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
    """Makes the weights' optimizer, with a rate of the gates' own; loss scaling for float16."""
    optimizer = OPTIMIZERS[settings.optimizer](
        learning_rate=learning_rate_schedule(
            settings.learning_rate, total_steps, settings.decay_at, settings.decay
        ),
        gate_rate_multiple=settings.gate_learning_rate / settings.learning_rate,
        average=settings.weight_average,
        skip_nonfinite=skip_nonfinite,
        gates_until=_freeze_gates_step(settings, total_steps),
    )
    if settings.precision == "float16":
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def first_selectable_epoch(settings: Settings) -> int:
    """Computes the first epoch whose network may be selected, at the latest the last epoch.

    Warm-ups are over by then, and so is pruning to a target or by ADMM.
    """
    method = METHODS[settings.method]
    begins = 0
    if method.adversarial:
        begins = settings.epsilon_warmup_epochs
    if method.learned_gates:
        begins = max(begins, settings.kl_warmup_epochs + settings.kl_ramp_epochs)
        if settings.target_sparsity is not None:
            begins = max(begins, _target_steps(settings, 1)[2])
    if method.weight_pruning:
        begins = max(begins, settings.admm_epochs)
    return min(begins + 1, settings.epochs)


def _least(min_active: float, features: int) -> int:
    """Computes how many features of a layer `min_active`, a number or below 1 a share, is."""
    if min_active < 1:
        return math.ceil(min_active * features)
    return min(round(min_active), features)


def build_network(
    settings: Settings,
    dtype: str,
    file: pathlib.Path | None = None,
    say: Callable[[str], None] | None = None,
) -> keras.Model:
    """Builds the network of a run with its initial weights.

    Args:
        dtype: Keras dtype policy of all layers but the logits.
        file: that the network is made from (`RunDirectory.network_file`); None for a named one.
        say: called with what a user should know of a network from a file.

    Raises:
        UsageError: the network does not fit the dataset or the method.
    """
    source, method = settings.source, METHODS[settings.method]
    common = {"gate": method.gate, "gate_scope": settings.gate_scope}
    common |= {"seed": settings.seed, "dtype": dtype}
    if settings.coupled:
        common["coupled"] = True
    if file is not None:
        network = own_network.network_of(
            file,
            source.image_shape,
            source.classes,
            name=file_name(settings.network),
            pretrained=settings.pretrained,
            input_range=settings.input_range,
            say=say,
            **common,
        )
    else:
        network = NETWORKS[settings.network](
            source.image_shape, source.classes, width=settings.width, **common
        )
    for gate in gates_of(network):
        gate.min_active = _least(settings.min_active, gate.features)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = settings.sync_batch_norm
    if method.bayesian:
        network = bayesian.convert(network, settings.prior_stddev, settings.initial_rho)
    if settings.freeze_below is not None:
        freezing.freeze_below(network, settings.freeze_below)
        if method.learned_gates and not any(gate.trainable for gate in gates_of(network)):
            raise UsageError(
                f"--freeze_below={settings.freeze_below} leaves no gate to --method={method.name}; "
                "name an earlier layer, or a method without gates, such as at"
            )
    return network
