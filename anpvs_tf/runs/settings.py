"""Every setting of a training run: its meaning, its range, which methods use it."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from anpvs_tf.attacks.settings import NORMS
from anpvs_tf.common.errors import UsageError
from anpvs_tf.data.sources import KINDS, SOURCES, Source
from anpvs_tf.methods.hyperparameters import (
    DECAYS,
    OPTIMIZERS,
    REDUCTIONS,
    TARGETS,
    TRAIN_ATTACKS,
)
from anpvs_tf.methods.registry import METHODS, Method
from anpvs_tf.networks.names import GATE_SCOPES, NETWORKS
from anpvs_tf.pruning.names import STRUCTURES

PRECISIONS = {
    "float32": "float32",
    "bfloat16": "mixed_bfloat16",
    "float16": "mixed_float16",
}
SELECTIONS = ("last", "best")


def _setting(help: str, used_by: str | None = None, weights: str | bool = True, **range_) -> Any:
    """Makes a field of `Settings`.

    Args:
        used_by: the trait (attribute of `Method`) of the methods that use it; None for all.
        weights: whether it decides a run's weights: of every method that uses it (True),
            of none (False), or of those with this trait.
        range_: choices, at_least, above, at_most; pixels: a length in pixel units, which may
            be given as a fraction; before: its value in a run of a version that did not have it.
    """
    about = {"help": help, "used_by": used_by, "weights": weights}
    return dataclasses.field(metadata=about | range_)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The resolved settings of a run; see each field's `help`."""

    dataset: str = _setting(f"the data to train on ({', '.join([*SOURCES, *KINDS])})")
    image_size: tuple[int, int] = _setting(
        "height,width, or one number for both, that images of folder: and tfds: are resized to; "
        "without it 28 if they are grey, 32 in colour",
        at_least=1,
    )
    channels: int = _setting(
        "1 to take images of folder: and tfds: as grey, 3 as in colour; without it as they are"
    )
    augment: bool = _setting("random crop (pad 4) and horizontal flip in training")
    stream: bool = _setting("leave the images on disk and read them batch by batch", weights=False)
    classes: int = _setting("found in the data", found=True, at_least=2)
    class_names: tuple[str, ...] | None = _setting("found in the data", found=True)
    data_version: str | None = _setting("tells changed data", found=True)
    method: str = _setting("how to train; help lists them", weights=False, choices=tuple(METHODS))
    network: str = _setting(
        "the architecture, or a Keras model file of yours, FILE.keras", choices=NETWORKS
    )
    network_version: str | None = _setting("tells a changed file", found=True, before=None)
    pretrained: bool | None = _setting(
        "with FILE.keras: start from the weights of the file, not from initial ones", before=None
    )
    input_range: tuple[float, ...] | None = _setting(
        "with FILE.keras: the values that it takes for black and white, as 0,255; without it they "
        "are read off its first layers",
        before=None,
    )
    freeze_below: str | None = _setting(
        "this layer, and all that its output depends on, is not trained", before=None
    )
    width: float = _setting(
        "factor of the number of features of every hidden layer", above=0.0, at_most=16.0
    )
    epochs: int = _setting("passes over the training split", at_least=1)
    batch_size: int = _setting("clean examples in a training step", at_least=1)
    optimizer: str = _setting(
        "optimizer of the weights: Adam, or SGD with Nesterov's momentum of 0.9; gates have Adam",
        choices=OPTIMIZERS,
    )
    learning_rate: float = _setting("learning rate of the weights, at its highest", above=0.0)
    gate_learning_rate: float = _setting("Adam's rate for the gates", "learned_gates", above=0.0)
    decay: str = _setting(
        "how the rates change: to a tenth at each --decay_at; linearly to 0 from it on; or "
        "linearly from 0 until it and then to 0 (one_cycle)",
        choices=DECAYS,
    )
    decay_at: tuple[float, ...] = _setting(
        "shares of the steps at which the rates fall, or begin to", above=0.0, at_most=1.0
    )
    beta: float = _setting(
        "factor of the gates' KL divergence per training example in their loss; more prunes more",
        "learned_gates",
        at_least=0.0,
    )
    layer_beta: tuple[str, ...] = _setting(
        "other factors for some layers, as layer=factor between commas", "learned_gates"
    )
    target_sparsity: float | None = _setting(
        "share that is pruned in the end: steers beta, in place of --beta",
        "learned_gates",
        above=0.0,
        at_most=0.999,
    )
    target_of: str = _setting(
        "with --target_sparsity: what the share is of", "learned_gates", choices=TARGETS
    )
    target_at: float = _setting(
        "with --target_sparsity: share of the steps after which it is to be reached; pruning "
        "ends half way from there to the end",
        "learned_gates",
        above=0.0,
        at_most=1.0,
    )
    freeze_gates_at: float = _setting(
        "share of the steps after which gates stay as they are and act in training as they are "
        "deployed, by their mean; nothing is pruned after it; 1: never",
        "learned_gates",
        before=1.0,
        above=0.0,
        at_most=1.0,
    )
    min_active: float = _setting(
        "features that every gated layer keeps: a number, or below 1 a share",
        "learned_gates",
        at_least=0.0,
    )
    gate_scope: str = _setting("which layers get gates", "gate", choices=tuple(GATE_SCOPES))
    coupled: bool = _setting(
        "gate residual sums too: the layers that write to one share a gate", "gate", before=False
    )
    kl_warmup_epochs: int = _setting(
        "epochs at the beginning with beta = 0", "learned_gates", at_least=0
    )
    kl_ramp_epochs: int = _setting(
        "epochs over which beta then grows to its value", "learned_gates", at_least=0
    )
    lambda_vs: float = _setting(
        "factor of the vulnerability in the weights' loss; more holds the features stiller",
        "vulnerability",
        at_least=0.0,
    )
    vulnerability_reduction: str = _setting(
        "how vulnerability is taken over the features of a layer, in training",
        "vulnerability",
        choices=REDUCTIONS,
    )
    norm: str = _setting("norm of the threat model", weights="adversarial", choices=NORMS)
    epsilon: float = _setting(
        "radius of the ball, in pixel units of [0, 1], like 8/255",
        weights="adversarial",
        above=0.0,
        pixels=True,
    )
    step_size: float = _setting(
        "step of the training attack, in pixel units", "adversarial", above=0.0, pixels=True
    )
    train_attack: str = _setting(
        "attack of training: PGD, or N-FGSM, one step of length epsilon from 2 epsilon of noise",
        "adversarial",
        choices=TRAIN_ATTACKS,
    )
    attack_steps: int = _setting("gradient steps of the training attack", "adversarial", at_least=1)
    train_epsilon_scale: float = _setting(
        "radius of the training attack, as a multiple of epsilon: above 1 leaves a margin",
        "adversarial",
        above=0.0,
        before=1.0,
    )
    epsilon_warmup_epochs: int = _setting(
        "epochs over which the training attack's epsilon and step grow to their values",
        "adversarial",
        at_least=0,
    )
    eval_step_size: float = _setting(
        "step of the evaluation attack, in pixel units", weights=False, above=0.0, pixels=True
    )
    eval_attack_steps: int = _setting(
        "gradient steps of the evaluation attack", weights=False, at_least=1
    )
    adversarial_weight: float = _setting(
        "weight of the cross-entropy on attacked images, beside 1 for clean images",
        "weighted_cross_entropy",
        at_least=0.0,
    )
    trades_beta: float = _setting(
        "factor of how far the attack moves the prediction (a KL divergence)",
        "trades",
        at_least=0.0,
    )
    prior_stddev: float = _setting(
        "standard deviation of the weights' prior", "bayesian", above=0.0
    )
    initial_rho: float = _setting(
        "the posterior's standard deviations begin at softplus of this", "bayesian"
    )
    kl_scale: float = _setting(
        "factor of the posterior's KL divergence per training example in the weights' loss",
        "bayesian",
        at_least=0.0,
    )
    crafting_draws: int = _setting(
        "draws of the weights that the training attack averages over, the same ones at all its "
        "steps; 0: their means",
        "bayesian",
        at_least=0,
    )
    prune_ratio: float = _setting(
        "share of each layer's units that becomes zero", "weight_pruning", above=0.0, at_most=0.999
    )
    prune_structure: str = _setting("what a unit is", "weight_pruning", choices=STRUCTURES)
    admm_epochs: int = _setting(
        "epochs before the weights are cut; the others are masked retraining",
        "weight_pruning",
        at_least=1,
    )
    admm_interval: int = _setting(
        "epochs between two projections onto the pruned weights", "weight_pruning", at_least=1
    )
    admm_rho: float = _setting(
        "first factor of the pull towards the pruned weights (rho) in the weights' loss",
        "weight_pruning",
        above=0.0,
    )
    admm_rho_growth: float = _setting(
        "factor by which rho grows at each projection", "weight_pruning", at_least=1.0
    )
    weight_decay: float = _setting(
        "factor of half the squared norm of all kernels in the loss", at_least=0.0
    )
    label_smoothing: float = _setting(
        "share of the targets that is spread evenly over the classes, in training alone",
        at_least=0.0,
        at_most=0.9,
    )
    awp: float = _setting(
        "adversarial weight perturbation: its norm over each kernel's; 0 is none",
        "adversarial",
        at_least=0.0,
    )
    weight_average: float = _setting(
        "decay of the moving average of weights and gates that is evaluated and saved; 0 is none",
        at_least=0.0,
        at_most=1.0 - 1e-6,
    )
    select: str = _setting(
        "which epoch's network is saved: the last, or the best on validation (PGD)",
        choices=SELECTIONS,
    )
    sync_batch_norm: bool = _setting(
        "with several devices: normalise by the statistics of the global batch, not by those of "
        "each device's part"
    )
    shrink: bool = _setting(
        "take features out of the training network for good once they stay pruned", "gate"
    )
    shrink_after: int = _setting(
        "with --shrink: epochs in a row that a feature is pruned before it leaves",
        "gate",
        at_least=1,
    )
    seed: int = _setting(
        "seed of the initial weights, order, augmentation and noise", at_least=0, at_most=2**31 - 1
    )
    precision: str = _setting(
        "number format of the training step; auto is bfloat16 where the device has it fast",
        choices=("auto", *PRECISIONS),
    )
    base_epochs: int = _setting(
        "epochs of the standard run that a warm start trains first; 0: no warm start",
        "base",
        at_least=0,
    )
    base_run: str | None = _setting(
        "run directory whose weights training starts from", weights=False
    )
    train_examples: int | None = _setting(
        "train on only the first of the training split", at_least=1
    )
    steps_per_epoch: int | None = _setting("stop each epoch after this many steps", at_least=1)
    eval_examples: int | None = _setting(
        "evaluate on only the first of each split", weights=False, at_least=1
    )

    @property
    def source(self) -> Source:
        """Returns the facts about the dataset from when the run began."""
        return source_of(vars(self))


FIELDS = {field.name: field for field in dataclasses.fields(Settings)}


def used(method: Method, name: str) -> bool:
    """Says whether a method, or the run that it begins with, uses a setting."""
    return method.uses(FIELDS[name].metadata["used_by"])


def decisive(method: Method) -> list[str]:
    """Lists the settings that decide the weights of a run of this method."""
    found = []
    for name, field in FIELDS.items():
        weights = field.metadata["weights"]
        if used(method, name) and (weights if isinstance(weights, bool) else method.uses(weights)):
            found.append(name)
    return found


# The settings that a user chooses; the others are found in the data.
CHOSEN = {name: field for name, field in FIELDS.items() if "found" not in field.metadata}


def source_of(values: Mapping[str, Any]) -> Source:
    """Makes the facts about the dataset of a run from its settings."""
    return Source(
        values["dataset"],
        (*values["image_size"], values["channels"]),
        values["classes"],
        tuple(values["class_names"]) if values.get("class_names") else None,
        values["augment"],
        values.get("data_version"),
    )


def as_text(value: Any) -> str:
    """Writes a setting's value as its flag takes it."""
    if isinstance(value, tuple):
        return ",".join(map(as_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def layer_betas(settings: Settings) -> dict[str, float]:
    """Parses `layer_beta` as {layer: factor}.

    Raises:
        UsageError: not of the form layer=factor.
    """
    found = {}
    for text in settings.layer_beta:
        layer, _, factor = text.partition("=")
        if layer in found:
            raise UsageError(f"--layer_beta names layer {layer!r} twice")
        try:
            found[layer] = float(factor)
        except ValueError:
            found[layer] = math.nan
        if not (layer and math.isfinite(found[layer]) and found[layer] >= 0):
            raise UsageError(
                "--layer_beta must be layer=factor between commas, factors at least 0 "
                f"(conv1=8,dense1=2); got {text!r}"
            )
    return found


def kind_of(field: dataclasses.Field) -> type:
    """Returns the kind of a setting's values, besides None: bool, int, float, str or tuple."""
    return typing.get_origin(declared(field)) or declared(field)


def declared(field: dataclasses.Field) -> Any:
    """Returns the type of a setting as it is declared, without None."""
    union = isinstance(field.type, types.UnionType)
    return typing.get_args(field.type)[0] if union else field.type
