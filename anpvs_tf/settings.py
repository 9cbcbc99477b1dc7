"""Every setting of a training run: its meaning, its range, which methods use it."""

import dataclasses
import math
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf

from anpvs_tf.admm import STRUCTURES
from anpvs_tf.attacks.norms import NORMS
from anpvs_tf.defaults import BY_DATASET, BY_METHOD, BY_NORM, COMMON, RECIPES
from anpvs_tf.errors import UsageError
from anpvs_tf.gating import GATE_SCOPES
from anpvs_tf.losses import REDUCTIONS
from anpvs_tf.methods import METHODS, Method
from anpvs_tf.networks import NETWORKS
from anpvs_tf.optimization import DECAYS
from anpvs_tf.sources import KINDS, SOURCES, Source, check_name
from anpvs_tf.sources import describe as describe_source

PRECISIONS = {
    "float32": "float32",
    "bfloat16": "mixed_bfloat16",
    "float16": "mixed_float16",
}
SELECTIONS = ("last", "best")


def _setting(help: str, used_by: str | None = None, weights: str | bool = True, **range_) -> Any:
    """A field of `Settings`.

    Args:
        used_by: the trait (attribute of `Method`) of the methods that use it; None for all.
        weights: whether it decides a run's weights: of every method that uses it (True),
            of none (False), or of those with this trait.
        range_: choices, at_least, above, at_most.
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
    network: str = _setting("the architecture", choices=tuple(NETWORKS))
    epochs: int = _setting("passes over the training split", at_least=1)
    batch_size: int = _setting("clean examples in a training step", at_least=1)
    learning_rate: float = _setting("Adam's rate for the weights", above=0.0)
    gate_learning_rate: float = _setting("Adam's rate for the gates", "learned_gates", above=0.0)
    decay: str = _setting(
        "how the rates fall: to a tenth at each --decay_at, or linearly to 0 from the first on",
        choices=DECAYS,
    )
    decay_at: tuple[float, ...] = _setting(
        "shares of the steps at which the rates begin to fall", above=0.0, at_most=1.0
    )
    beta: float = _setting("factor of KL / N in the gates' loss", "learned_gates", at_least=0.0)
    layer_beta: tuple[str, ...] = _setting(
        "other factors for some layers, as layer=factor between commas", "learned_gates"
    )
    gate_scope: str = _setting("which layers get gates", "gate", choices=tuple(GATE_SCOPES))
    kl_warmup_epochs: int = _setting("epochs with beta = 0", "learned_gates", at_least=0)
    kl_ramp_epochs: int = _setting(
        "epochs over which beta then grows to its value", "learned_gates", at_least=0
    )
    lambda_vs: float = _setting(
        "factor of the vulnerability in the weights' loss", "vulnerability", at_least=0.0
    )
    vulnerability_reduction: str = _setting(
        "over the features of a layer, in training", "vulnerability", choices=REDUCTIONS
    )
    norm: str = _setting("of the threat model", weights="adversarial", choices=NORMS)
    epsilon: float = _setting(
        "radius of the ball, in pixel units of [0, 1]", weights="adversarial", above=0.0
    )
    step_size: float = _setting(
        "step of the training attack, in pixel units", "adversarial", above=0.0
    )
    attack_steps: int = _setting("gradient steps of the training attack", "adversarial", at_least=1)
    epsilon_warmup_epochs: int = _setting(
        "epochs over which the training attack's epsilon and step grow to their values",
        "adversarial",
        at_least=0,
    )
    eval_step_size: float = _setting(
        "step of the evaluation attack, in pixel units", weights=False, above=0.0
    )
    eval_attack_steps: int = _setting(
        "gradient steps of the evaluation attack", weights=False, at_least=1
    )
    adversarial_weight: float = _setting(
        "w of J = (CE(x) + w CE(x~)) / (1 + w)", "weighted_cross_entropy", at_least=0.0
    )
    trades_beta: float = _setting(
        "factor of KL(f(x) || f(x~)) beside CE(x)", "trades", at_least=0.0
    )
    prior_stddev: float = _setting(
        "standard deviation of the weights' prior", "bayesian", above=0.0
    )
    initial_rho: float = _setting(
        "where the posterior's standard deviations softplus(rho) begin", "bayesian"
    )
    kl_scale: float = _setting(
        "factor of KL / N of the weights' posterior in their loss", "bayesian", at_least=0.0
    )
    crafting_draws: int = _setting(
        "draws of the weights that the training attack sees at every step; 0: their means",
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
        "epochs between two updates of Z and U", "weight_pruning", at_least=1
    )
    admm_rho: float = _setting(
        "first factor of ||W - Z + U||^2 / 2 in the weights' loss", "weight_pruning", above=0.0
    )
    admm_rho_growth: float = _setting(
        "factor of rho at each update of Z and U", "weight_pruning", at_least=1.0
    )
    weight_decay: float = _setting("factor of sum ||v||^2 / 2 over the kernels", at_least=0.0)
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
        "of the initial weights, order, augmentation, noise", at_least=0, at_most=2**31 - 1
    )
    precision: str = _setting(
        "of the training step; auto is bfloat16 where the device has it fast",
        choices=("auto", *PRECISIONS),
    )
    base_epochs: int = _setting(
        "epochs of the standard run that a warm start trains first", "base", at_least=1
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
        """What the dataset held when the run began."""
        return source_of(vars(self))


FIELDS = {field.name: field for field in dataclasses.fields(Settings)}


def used(method: Method, name: str) -> bool:
    """Whether a method, or the run that it begins with, uses a setting."""
    return method.uses(FIELDS[name].metadata["used_by"])


def decisive(method: Method) -> list[str]:
    """The settings that decide the weights of a run of this method."""
    found = []
    for name, field in FIELDS.items():
        weights = field.metadata["weights"]
        if used(method, name) and (weights if isinstance(weights, bool) else method.uses(weights)):
            found.append(name)
    return found


# The settings that a user chooses; the others are found out.
CHOSEN = {name: field for name, field in FIELDS.items() if "found" not in field.metadata}


def source_of(values: Mapping[str, Any]) -> Source:
    """The dataset of a run as its settings describe it; by name, for those of older versions."""
    if "classes" not in values:
        return SOURCES[values["dataset"]]
    return Source(
        values["dataset"],
        (*values["image_size"], values["channels"]),
        values["classes"],
        tuple(values["class_names"]) if values.get("class_names") else None,
        values["augment"],
        values.get("data_version"),
    )


def _like(source: Source) -> str:
    """The dataset whose defaults hold: its own, or what is like it."""
    if source.name in BY_DATASET:
        return source.name
    return "mnist" if source.image_shape[-1] == 1 else "cifar10"


def defaults(
    source: Source | str, recipe: str = "published", method: str | None = None
) -> dict[str, Any]:
    """The settings of a dataset before the user's own.

    A dataset of the user's has those of MNIST if it is grey, of CIFAR-10 in colour, and
    LeNet-5 if images are not 32 x 32 x 3.

    Args:
        source: the dataset, or its name.
        method: whose own defaults apply too; None for the dataset's default method.

    Raises:
        UsageError: unknown dataset, recipe or method, or a recipe that the dataset lacks.
    """
    if isinstance(source, str):
        source = describe_source(source)
    dataset = _like(source)
    _check_choice("recipe", recipe, RECIPES)
    if recipe != "published" and dataset not in RECIPES[recipe]:
        raise UsageError(
            f"--recipe={recipe} exists for {', '.join(RECIPES[recipe])} only, not for {source.name}"
        )
    values = COMMON | BY_DATASET[dataset] | RECIPES[recipe].get(dataset, {})
    if source.image_shape != (32, 32, 3):
        values["network"] = "lenet5"
    values |= {"dataset": source.name, "augment": source.augment, "data_version": source.version}
    values |= {"image_size": source.image_shape[:2], "channels": source.image_shape[2]}
    values |= {"classes": source.classes, "class_names": source.class_names}
    method = method or values["method"]
    _check_choice("method", method, METHODS)
    return values | {"method": method} | BY_METHOD.get(method, {}).get(dataset, {})


def resolve(
    overrides: Mapping[str, Any], recipe: str = "published", data_dir: str | None = None
) -> Settings:
    """Settings from a user's choices; what is None or absent takes its default.

    Args:
        data_dir: where TFDS keeps its data, for what has to be found out of a dataset; nothing
            is looked at if the choices have `classes`, as a run's own settings do.

    Raises:
        UsageError: a value that is unknown, not finite or out of range, or one that the
            method does not use.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    if "image_size" in given:
        given["image_size"] = parsed_size(given["image_size"])
    if "classes" in given:
        source = source_of(given)
    else:
        found = (given.get(name) for name in ("image_size", "channels"))
        source = describe_source(given.get("dataset", "digits"), *found, data_dir)
    values = defaults(source, recipe, given.get("method"))
    check_used(values["method"], given)
    values |= given
    if values["norm"] in BY_NORM:
        values |= _of_norm(values, given) | given
    if values["base_epochs"] is None:
        values["base_epochs"] = values["epochs"]
    if values["precision"] == "auto":
        values["precision"] = fast_precision()
    return validated(values)


def validated(values: Mapping[str, Any]) -> Settings:
    """Settings from a value for each, whoever gave them.

    Raises:
        UsageError: a name that is unknown or missing, a value of another kind or out of range.
    """
    names = [field.name for field in dataclasses.fields(Settings)]
    if unknown := sorted(set(values) - set(names)):
        raise UsageError(f"unknown setting {', '.join(map(repr, unknown))}")
    if missing := sorted(set(names) - set(values)):
        raise UsageError(f"missing setting {', '.join(missing)}")
    for name in ("layer_beta", "class_names"):
        if isinstance(values[name], list):
            values = values | {name: tuple(values[name])}
    values = values | {"image_size": parsed_size(values["image_size"])}
    settings = Settings(**values | {"decay_at": _shares(values["decay_at"])})
    for field in dataclasses.fields(Settings):
        _check_kind(field, getattr(settings, field.name))
        _check(field, getattr(settings, field.name))
    check_name(settings.dataset)
    shares = list(settings.decay_at)
    if not shares or shares != sorted(set(shares)):
        raise UsageError(f"--decay_at must be one or more increasing shares; got {shares}")
    if settings.decay == "linear" and len(shares) > 1:
        raise UsageError(f"--decay=linear begins once: give --decay_at one share; got {shares}")
    for name in ("epsilon", "step_size", "eval_step_size"):
        if settings.norm == "linf" and (value := getattr(settings, name)) > 1:
            raise UsageError(f"--{name} must be at most 1, the range of a pixel; got {value}")
    if METHODS[settings.method].weight_pruning and settings.admm_epochs >= settings.epochs:
        raise UsageError(
            f"--admm_epochs must leave epochs of --epochs={settings.epochs} to retrain; got "
            f"{settings.admm_epochs}"
        )
    layer_betas(settings)
    return settings


def check_used(method: str, given: Iterable[str]) -> None:
    """Raises UsageError if the method does not use a setting that was given."""
    for name in given:
        if not used(METHODS[method], name):
            users = [row.name for row in METHODS.values() if used(row, name)]
            raise UsageError(
                f"--{name} is not used by --method={method}; methods that use it: "
                f"{', '.join(users)}"
            )


def _of_norm(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, float]:
    """The defaults of a threat model that is not the dataset's: steps go 2.5 radii in all."""
    epsilon = given.get("epsilon", BY_NORM[values["norm"]][_like(source_of(values))])
    return {
        "epsilon": epsilon,
        "step_size": 2.5 * epsilon / values["attack_steps"],
        "eval_step_size": 2.5 * epsilon / values["eval_attack_steps"],
    }


def layer_betas(settings: Settings) -> dict[str, float]:
    """{layer: factor} of `layer_beta`.

    Raises:
        UsageError: not of the form layer=factor.
    """
    found = {}
    for text in settings.layer_beta:
        layer, _, factor = text.partition("=")
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


def describe(field: dataclasses.Field) -> str:
    """The help of a setting: meaning, choices, default by dataset."""
    text = field.metadata["help"]
    if field.metadata["used_by"]:
        users = [method.name for method in METHODS.values() if used(method, field.name)]
        text += f" [{' '.join(users)}]"
    if "choices" in field.metadata:
        text += f" ({', '.join(field.metadata['choices'])})"
    if field.name == "dataset":
        return f"{text}. Default: digits"
    values = {name: _show(field.name, defaults(name)[field.name]) for name in BY_DATASET}
    if len(set(values.values())) == 1:
        return f"{text}. Default: {values['digits']}"
    return f"{text}. Default: " + ", ".join(f"{name} {value}" for name, value in values.items())


def describe_methods(dataset: str = "digits", recipe: str = "published") -> str:
    """The table of methods: what each does, its source, its own flags with their defaults.

    Raises:
        UsageError: as `defaults`.
    """
    lines = []
    for method in METHODS.values():
        values = defaults(dataset, recipe, method.name)
        own = [n for n, f in FIELDS.items() if f.metadata["used_by"] and used(method, n)]
        flags = "  ".join(f"--{name}={_show(name, values[name])}" for name in own)
        begins = f"; begins with a {method.base} run" if method.base else ""
        lines += [f"{method.name}: {method.summary} ({method.source}){begins}"]
        lines += textwrap.wrap(flags, 96, initial_indent="    ", subsequent_indent="    ")
    shared = " ".join(f"--{n}" for n, f in CHOSEN.items() if not f.metadata["used_by"])
    lines += textwrap.wrap(f"All methods: {shared}", 100, subsequent_indent="    ")
    lines += [f"Defaults are those of --dataset={dataset} --recipe={recipe}."]
    return "\n".join(lines)


# What an unset value stands for.
_UNSET = {
    "base_epochs": "as --epochs",
    "base_run": "none, or by method a run beside this one",
    "eval_examples": "1,000 for validation after an epoch, the whole test set at the end",
}


def _show(name: str, value: Any) -> str:
    if value is None:
        return _UNSET.get(name, "all")
    if isinstance(value, tuple):
        return ",".join(f"{v:g}" for v in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _shares(values) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise UsageError(f"--decay_at must be numbers between commas; got {values}") from None


def kind_of(field: dataclasses.Field) -> type:
    """The kind of a setting's values, besides None: bool, int, float, str or tuple."""
    return typing.get_origin(_declared(field)) or _declared(field)


def _declared(field: dataclasses.Field) -> Any:
    union = isinstance(field.type, types.UnionType)
    return typing.get_args(field.type)[0] if union else field.type


def _check_kind(field: dataclasses.Field, value: Any) -> None:
    kind = kind_of(field)
    good = isinstance(value, kind) or (value is None and isinstance(field.type, types.UnionType))
    if kind is float:
        good |= isinstance(value, int)  # An integer is a number too,
    if isinstance(value, bool):
        good = kind is bool  # but True is neither.
    if good and isinstance(value, tuple):
        item = typing.get_args(_declared(field))[0]
        good = all(isinstance(one, item) for one in value)
    if not good:
        raise UsageError(f"--{field.name} must be of kind {kind.__name__}; got {value!r}")


def parsed_size(values) -> tuple[int, int]:
    """(height, width) of --image_size.

    Raises:
        UsageError: other than one or two numbers.
    """
    try:
        height, width = [int(value) for value in values] * (2 if len(values) == 1 else 1)
    except (TypeError, ValueError):
        raise UsageError(
            f"--image_size must be height,width or one number for both; got {values}"
        ) from None
    return height, width


def _check_choice(name: str, value: Any, choices) -> None:
    if value not in choices:
        raise UsageError(f"unknown {name} {value!r}; choose one of {', '.join(choices)}")


def _check(field: dataclasses.Field, value: Any) -> None:
    limits = field.metadata
    if "choices" in limits:
        _check_choice(field.name, value, limits["choices"])
    for number in value if isinstance(value, tuple) else (value,):
        if not isinstance(number, int | float):
            continue
        bounds = []
        good = abs(number) < math.inf  # Any integer is comparable; not any is a float.
        if "at_least" in limits:
            good &= number >= limits["at_least"]
            bounds.append(f"at least {limits['at_least']:g}")
        if "above" in limits:
            good &= number > limits["above"]
            bounds.append(f"above {limits['above']:g}")
        if "at_most" in limits:
            good &= number <= limits["at_most"]
            bounds.append(f"at most {limits['at_most']:g}")
        if not good:
            wanted = " and ".join(["a finite number", *bounds])
            raise UsageError(f"--{field.name} must be {wanted}; got {number}")


def fast_precision() -> str:
    """bfloat16 where the device multiplies it faster than float32, else float32."""
    for gpu in tf.config.list_physical_devices("GPU"):
        capability = tf.config.experimental.get_device_details(gpu).get("compute_capability")
        return "bfloat16" if capability and capability >= (8, 0) else "float32"
    try:
        with open("/proc/cpuinfo") as cpuinfo:
            return "bfloat16" if " amx_bf16" in cpuinfo.read() else "float32"
    except OSError:
        return "float32"
