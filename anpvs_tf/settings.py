"""Every setting of a training run: its meaning, its default by dataset, its range."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from anpvs_tf.datasets import SOURCES
from anpvs_tf.errors import UsageError
from anpvs_tf.losses import REDUCTIONS
from anpvs_tf.methods import METHODS
from anpvs_tf.networks import NETWORKS
from anpvs_tf.optimization import DECAYS

PRECISIONS = {
    "float32": "float32",
    "bfloat16": "mixed_bfloat16",
    "float16": "mixed_float16",
}


def _setting(help: str, **range_) -> Any:
    return dataclasses.field(metadata={"help": help, **range_})


@dataclasses.dataclass(frozen=True)
class Settings:
    """The resolved settings of a run; see each field's `help`."""

    dataset: str = _setting("the data to train on", choices=tuple(SOURCES))
    method: str = _setting("how to train", choices=tuple(METHODS))
    network: str = _setting("the architecture", choices=tuple(NETWORKS))
    epochs: int = _setting("passes over the training split", at_least=1)
    batch_size: int = _setting("clean examples in a training step", at_least=1)
    learning_rate: float = _setting("Adam's rate for the weights", above=0.0)
    gate_learning_rate: float = _setting("Adam's rate for the gates", above=0.0)
    decay: str = _setting(
        "how the rates fall: to a tenth at each --decay_at, or linearly to 0 from the first on",
        choices=DECAYS,
    )
    decay_at: tuple[float, ...] = _setting(
        "shares of the steps at which the rates begin to fall", above=0.0, at_most=1.0
    )
    beta: float = _setting("factor of KL / N in the gates' loss", at_least=0.0)
    kl_warmup_epochs: int = _setting("epochs with beta = 0", at_least=0)
    kl_ramp_epochs: int = _setting("epochs over which beta then grows to its value", at_least=0)
    lambda_vs: float = _setting("factor of the vulnerability in the weights' loss", at_least=0.0)
    vulnerability_reduction: str = _setting(
        "over the features of a layer, in training", choices=REDUCTIONS
    )
    epsilon: float = _setting(
        "radius of the l-infinity ball, in pixel units of [0, 1]", above=0.0, at_most=1.0
    )
    step_size: float = _setting(
        "step of the training attack, in pixel units", above=0.0, at_most=1.0
    )
    attack_steps: int = _setting("gradient steps of the training attack", at_least=1)
    epsilon_warmup_epochs: int = _setting(
        "epochs over which the training attack's epsilon and step grow to their values", at_least=0
    )
    eval_step_size: float = _setting(
        "step of the evaluation attack, in pixel units", above=0.0, at_most=1.0
    )
    eval_attack_steps: int = _setting("gradient steps of the evaluation attack", at_least=1)
    adversarial_weight: float = _setting("w of J = (CE(x) + w CE(x~)) / (1 + w)", at_least=0.0)
    weight_decay: float = _setting("factor of sum ||v||^2 / 2 over the kernels", at_least=0.0)
    shrink: bool = _setting(
        "take features out of the training network for good once they stay pruned"
    )
    shrink_after: int = _setting(
        "with --shrink: epochs in a row that a feature is pruned before it leaves", at_least=1
    )
    seed: int = _setting(
        "of the initial weights, order, augmentation, noise", at_least=0, at_most=2**31 - 1
    )
    precision: str = _setting(
        "of the training step; auto is bfloat16 where the device has it fast",
        choices=("auto", *PRECISIONS),
    )
    base_epochs: int = _setting(
        "epochs of the standard run that a warm start trains first", at_least=1
    )
    base_run: str | None = _setting("run directory whose weights training starts from")
    train_examples: int | None = _setting(
        "train on only the first of the training split", at_least=1
    )
    steps_per_epoch: int | None = _setting("stop each epoch after this many steps", at_least=1)
    eval_examples: int | None = _setting("evaluate on only the first of each split", at_least=1)


# What holds for every dataset, unless its own row says otherwise. Published values
# (Madaan et al. 2020) except where a comment says why not.
COMMON: dict[str, Any] = {
    "method": "anpvs",
    "epochs": 200,
    "batch_size": 64,
    "learning_rate": 1e-3,
    "gate_learning_rate": 1e-2,
    "kl_warmup_epochs": 0,
    "kl_ramp_epochs": 0,
    "epsilon_warmup_epochs": 0,
    "decay": "steps",
    "vulnerability_reduction": "mean",
    "adversarial_weight": 2.0,
    "weight_decay": 1e-4,
    "shrink": False,
    "shrink_after": 2,
    "seed": 0,
    "precision": "auto",
    "base_epochs": None,
    "base_run": None,
    "train_examples": None,
    "steps_per_epoch": None,
    "eval_examples": None,
}

_CIFAR = {
    "network": "vgg16",
    "decay_at": (0.5, 0.8),
    "epsilon": 0.03,
    "step_size": 0.007,
    "attack_steps": 10,
    "eval_step_size": 0.007,
    "eval_attack_steps": 40,
}

BY_DATASET: dict[str, dict[str, Any]] = {
    # Not in the paper: a demonstration that ends in minutes on two CPU cores.
    "digits": {
        "network": "lenet5",
        "epochs": 26,
        "batch_size": 32,
        "learning_rate": 2e-3,
        "gate_learning_rate": 5e-2,
        "decay": "linear",
        "decay_at": (0.5,),
        "beta": 1.5,
        "kl_warmup_epochs": 4,
        "kl_ramp_epochs": 4,
        "lambda_vs": 10.0,
        "epsilon": 0.13,
        "epsilon_warmup_epochs": 4,
        "step_size": 0.04,
        "attack_steps": 5,
        "eval_step_size": 0.02,
        "eval_attack_steps": 20,
        "base_epochs": 15,
    },
    "mnist": {
        "network": "lenet5",
        "decay_at": (0.5, 0.7),
        "beta": 4.0,
        "lambda_vs": 1e-3,
        "epsilon": 0.3,
        "step_size": 0.01,
        "attack_steps": 20,
        "eval_step_size": 0.01,
        "eval_attack_steps": 40,
    },
    "cifar10": _CIFAR | {"beta": 2.0, "lambda_vs": 1e-4},
    "cifar100": _CIFAR | {"beta": 1.0, "lambda_vs": 0.1},
}

# Named departures from the published settings.
RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "published": {},
    "short": {
        "mnist": {
            "epochs": 16,
            "learning_rate": 2e-3,
            "gate_learning_rate": 5e-2,
            "decay": "linear",
            "decay_at": (0.45,),
            "beta": 10.0,
            "kl_warmup_epochs": 1,
            "kl_ramp_epochs": 1,
            "lambda_vs": 1e-2,
            "epsilon_warmup_epochs": 1,
            "step_size": 0.1,
            "attack_steps": 5,
            "base_epochs": 2,
        }
    },
}


def defaults(dataset: str, recipe: str = "published") -> dict[str, Any]:
    """The settings of a dataset before the user's own.

    Raises:
        UsageError: unknown dataset or recipe, or a recipe that the dataset lacks.
    """
    _check_choice("dataset", dataset, BY_DATASET)
    _check_choice("recipe", recipe, RECIPES)
    if recipe != "published" and dataset not in RECIPES[recipe]:
        raise UsageError(
            f"--recipe={recipe} exists for {', '.join(RECIPES[recipe])} only, not for {dataset}"
        )
    return COMMON | BY_DATASET[dataset] | RECIPES[recipe].get(dataset, {}) | {"dataset": dataset}


def resolve(overrides: Mapping[str, Any], recipe: str = "published") -> Settings:
    """Settings from a user's choices; what is None or absent takes its default.

    Raises:
        UsageError: a value that is unknown, not finite or out of range.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    values = defaults(given.get("dataset", "digits"), recipe) | given
    values["decay_at"] = _shares(values["decay_at"])
    if values["base_epochs"] is None:
        values["base_epochs"] = values["epochs"]
    if values["precision"] == "auto":
        values["precision"] = fast_precision()
    settings = Settings(**values)
    for field in dataclasses.fields(Settings):
        _check(field, getattr(settings, field.name))
    shares = list(settings.decay_at)
    if not shares or shares != sorted(set(shares)):
        raise UsageError(f"--decay_at must be one or more increasing shares; got {shares}")
    if settings.decay == "linear" and len(shares) > 1:
        raise UsageError(f"--decay=linear begins once: give --decay_at one share; got {shares}")
    return settings


def describe(field: dataclasses.Field) -> str:
    """The help of a setting: meaning, choices, default by dataset."""
    text = field.metadata["help"]
    if "choices" in field.metadata:
        text += f" ({', '.join(field.metadata['choices'])})"
    if field.name == "dataset":
        return f"{text}. Default: digits"
    values = {name: _show(field.name, defaults(name)[field.name]) for name in BY_DATASET}
    if len(set(values.values())) == 1:
        return f"{text}. Default: {values['digits']}"
    return f"{text}. Default: " + ", ".join(f"{name} {value}" for name, value in values.items())


# What an unset value stands for.
_UNSET = {
    "base_epochs": "as --epochs",
    "base_run": "none, or by method the standard run beside this one",
    "eval_examples": "1,000 for validation after an epoch, the whole test set at the end",
}


def _show(name: str, value: Any) -> str:
    if value is None:
        return _UNSET.get(name, "all")
    if isinstance(value, tuple):
        return ",".join(f"{v:g}" for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _shares(values) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in values)
    except ValueError:
        raise UsageError(f"--decay_at must be numbers between commas; got {values}") from None


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
        good = math.isfinite(number)
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
