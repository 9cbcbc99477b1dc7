"""From a user's choices to the settings of a run: defaults, then checks."""

import dataclasses
import math
import os
import pathlib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from anpvs_tf.attacks import radius
from anpvs_tf.attacks.settings import usual_step_size
from anpvs_tf.common.errors import UsageError
from anpvs_tf.data.sources import Source, check_name
from anpvs_tf.data.sources import describe as describe_source
from anpvs_tf.methods.registry import METHODS
from anpvs_tf.networks import keras_archive
from anpvs_tf.networks.names import NETWORKS, WITH_SUMS, check_images, is_file
from anpvs_tf.runs import checksums
from anpvs_tf.runs.defaults import BY_DATASET, BY_NORM, COMMON, RECIPES
from anpvs_tf.runs.settings import FIELDS, Settings, declared, kind_of, layer_betas, source_of, used

if typing.TYPE_CHECKING:
    from anpvs_tf.common.devices import Devices

# TensorFlow keeps counts as 32-bit numbers.
LARGEST = 2**31 - 1


def _like(source: Source) -> str:
    """Names the dataset whose defaults hold: its own, or the one that it is like."""
    if source.name in BY_DATASET:
        return source.name
    return "mnist" if source.image_shape[-1] == 1 else "cifar10"


def defaults(
    source: Source | str, recipe: str = "published", method: str | None = None
) -> dict[str, Any]:
    """Returns the settings of a dataset before the user's own.

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
    return values | {"method": method}


def resolve(
    overrides: Mapping[str, Any], recipe: str = "published", data_dir: str | None = None
) -> Settings:
    """Makes settings as `choose` does, with this machine's fast precision if none was chosen."""
    return with_precision(choose(overrides, recipe, data_dir))


def with_precision(settings: Settings, fast: str | None = None) -> Settings:
    """Replaces the precision "auto" by `fast`, by default the fast one of this machine."""
    if settings.precision == "auto":
        return dataclasses.replace(settings, precision=fast or fast_precision())
    return settings


def choose(
    overrides: Mapping[str, Any], recipe: str = "published", data_dir: str | None = None
) -> Settings:
    """Makes settings from a user's choices; a setting that is None or absent takes its default.

    Without an image folder or a dataset of TFDS to look at, it imports no TensorFlow.

    Args:
        data_dir: where TFDS keeps its data, from which the facts of a dataset are read; no data
            are read if the choices have `classes`, as a run's own settings do.

    Raises:
        UsageError: a value that is unknown, not finite or out of range, or one that the
            method does not use.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    # First the checks that need neither the data nor TensorFlow.
    given = {name: checked(name, value) for name, value in given.items()}
    given = of_network(given)
    _check_choice("recipe", recipe, RECIPES)
    check_name(given.get("dataset", "digits"))
    check_used(given.get("method", COMMON["method"]), given)
    if "target_sparsity" in given and given.keys() & {"beta", "layer_beta"}:
        raise UsageError(
            "--target_sparsity steers beta: give it, or --beta and --layer_beta, not both"
        )
    if "classes" in given:
        source = source_of(given)
    else:
        found = (given.get(name) for name in ("image_size", "channels"))
        source = describe_source(given.get("dataset", "digits"), *found, data_dir)
    values = defaults(source, recipe, given.get("method"))
    if "beta" in given or "layer_beta" in given:
        values["target_sparsity"] = None
    values |= given
    if is_file(values["network"]):
        if values["pretrained"] is None:
            values["pretrained"] = True
        if values["pretrained"] and "base_epochs" not in given:
            values["base_epochs"] = 0  # The file is the trained network that others train first.
    check_of_network(values["network"], given)
    if values["norm"] in BY_NORM:
        values |= _of_norm(values, given) | given
    if values["base_epochs"] is None:
        values["base_epochs"] = values["epochs"]
    return validated(values)


def validated(values: Mapping[str, Any]) -> Settings:
    """Makes settings from a value for each.

    Raises:
        UsageError: a name that is unknown or missing, a value of another kind or out of range.
    """
    names = [field.name for field in dataclasses.fields(Settings)]
    if unknown := sorted(set(values) - set(names)):
        raise UsageError(f"unknown setting {', '.join(map(repr, unknown))}")
    if missing := sorted(set(names) - set(values)):
        raise UsageError(f"missing setting {', '.join(missing)}")
    settings = Settings(**{name: checked(name, value) for name, value in values.items()})
    check_name(settings.dataset)
    shares = list(settings.decay_at)
    if not shares or shares != sorted(set(shares)):
        raise UsageError(f"--decay_at must be one or more increasing shares; got {shares}")
    if settings.decay != "steps" and len(shares) > 1:
        raise UsageError(
            f"--decay={settings.decay} turns once: give --decay_at one share; got {shares}"
        )
    for name in ("epsilon", "step_size", "eval_step_size"):
        if settings.norm == "linf" and (value := getattr(settings, name)) > 1:
            raise UsageError(
                f"--{name} must be at most 1, the range of a pixel; got {value:g}"
                f"{radius.meant(value)}"
            )
    trained = settings.train_epsilon_scale * settings.epsilon
    if settings.norm == "linf" and trained > 1:
        raise UsageError(
            "--train_epsilon_scale times --epsilon must be at most 1, the range of a pixel; got "
            f"{settings.train_epsilon_scale:g} x {settings.epsilon:g} = {trained:g}"
        )
    if METHODS[settings.method].weight_pruning and settings.admm_epochs >= settings.epochs:
        raise UsageError(
            f"--admm_epochs must leave epochs of --epochs={settings.epochs} to retrain; got "
            f"{settings.admm_epochs}"
        )
    if settings.min_active >= 1 and settings.min_active != round(settings.min_active):
        raise UsageError(
            "--min_active must be a whole number of features, or a share below 1; got "
            f"{settings.min_active:g}"
        )
    steered = settings.target_sparsity is not None and METHODS[settings.method].learned_gates
    if steered and settings.freeze_gates_at < settings.target_at:
        raise UsageError(
            f"--freeze_gates_at={settings.freeze_gates_at:g} would hold the gates before the "
            f"target is to be reached; give {settings.target_at:g} or more, or an earlier "
            "--target_at"
        )
    if settings.coupled and settings.network in set(NETWORKS) - set(WITH_SUMS):
        raise UsageError(
            f"--coupled is for networks with residual sums: {', '.join(WITH_SUMS)} or a file; "
            f"{settings.network} has none"
        )
    layer_betas(settings)
    check_images(settings.network, settings.source.image_shape)
    return settings


def checked(name: str, value: Any) -> Any:
    """Checks the value of one setting and returns it in the form in which `Settings` has it.

    Raises:
        UsageError: no setting of this name, a value of another kind or out of range.
    """
    if name not in FIELDS:
        raise UsageError(f"unknown setting {name!r}")
    if name == "image_size":
        value = parsed_size(value)
    elif name == "decay_at":
        value = _shares(value)
    elif name == "input_range" and value is not None:
        value = black_and_white(value)
    elif name == "network" and isinstance(value, str):
        if is_file(value):
            return value
        if value not in NETWORKS:
            raise UsageError(
                f"unknown network {value!r}; choose one of {', '.join(NETWORKS)}, or a Keras model "
                "file of yours, FILE.keras"
            )
    elif isinstance(value, list) and kind_of(FIELDS[name]) is tuple:
        value = tuple(value)
    _check_kind(FIELDS[name], value)
    _check(FIELDS[name], value)
    return value


def check_used(method: str, given: Iterable[str]) -> None:
    """Raises UsageError if the method does not use a setting that was given."""
    for name in given:
        if not used(METHODS[method], name):
            users = [row.name for row in METHODS.values() if used(row, name)]
            raise UsageError(
                f"--{name} is not used by --method={method}; methods that use it: "
                f"{', '.join(users)}"
            )


def check_of_network(network: str, given: Mapping[str, Any]) -> None:
    """Raises UsageError if a setting was given that such a network does not use."""
    if is_file(network):
        if given.get("width", 1.0) != 1.0:
            raise UsageError(f"--width is for {', '.join(NETWORKS)}; {network} has its own")
        return
    for name in ("pretrained", "input_range"):
        if given.get(name) is not None:
            raise UsageError(
                f"--{name} is for a Keras model file, --network=FILE.keras; {network} is none"
            )


def of_network(given: Mapping[str, Any]) -> dict[str, Any]:
    """Puts the name and the version of a network's file in the place of its path.

    Choices that have the version already, as a run's own settings do, stay as they are.

    Raises:
        UsageError: a file that is no network (`keras_archive.check`).
    """
    network = given.get("network")
    if network is None or given.get("network_version") is not None:
        return dict(given)
    if not is_file(network):
        return {**given, "network_version": None}
    keras_archive.check(network)
    return {**given, "network": pathlib.Path(network).name, "network_version": version_of(network)}


def version_of(file: str | os.PathLike) -> str:
    """Computes what tells a network's file from others: the first half of its SHA-256."""
    return checksums.digest(pathlib.Path(file).read_bytes())[:32]


def _of_norm(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, float]:
    """Computes the defaults of a threat model that is not the dataset's."""
    epsilon = given.get("epsilon", BY_NORM[values["norm"]][_like(source_of(values))])
    return {
        "epsilon": epsilon,
        "step_size": usual_step_size(epsilon, values["attack_steps"]),
        "eval_step_size": usual_step_size(epsilon, values["eval_attack_steps"]),
    }


def _shares(values) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise UsageError(f"--decay_at must be numbers between commas; got {values}") from None


def black_and_white(values) -> tuple[float, float]:
    """Reads (black, white) of --input_range.

    Raises:
        UsageError: other than two numbers, the lower one first.
    """
    try:
        low, high = map(float, values)
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not -1e6 < low < high < 1e6:
        raise UsageError(
            "--input_range must be two numbers, the lower one first, such as 0,255; got "
            f"{','.join(map(str, values)) if isinstance(values, list | tuple) else values}"
        )
    return low, high


def _check_kind(field: dataclasses.Field, value: Any) -> None:
    kind = kind_of(field)
    good = isinstance(value, kind) or (value is None and isinstance(field.type, types.UnionType))
    if kind is float:
        good |= isinstance(value, int)  # An integer is a number too,
    if isinstance(value, bool):
        good = kind is bool  # but True is no number.
    if good and isinstance(value, tuple):
        item = typing.get_args(declared(field))[0]
        good = all(isinstance(one, item) for one in value)
    if not good:
        raise UsageError(f"--{field.name} must be of kind {kind.__name__}; got {value!r}")


def parsed_size(values) -> tuple[int, int]:
    """Parses --image_size as (height, width).

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
        good = abs(number) < math.inf  # Every integer compares; not every one fits a float.
        if "at_least" in limits:
            good &= number >= limits["at_least"]
            bounds.append(f"at least {limits['at_least']:g}")
        if "above" in limits:
            good &= number > limits["above"]
            bounds.append(f"above {limits['above']:g}")
        if "at_most" in limits:
            good &= number <= limits["at_most"]
            bounds.append(f"at most {limits['at_most']:g}")
        if isinstance(number, int) and number > LARGEST:
            good = False
            bounds.append(f"at most {LARGEST:,}")
        if not good:
            wanted = " and ".join(["a finite number", *bounds])
            raise UsageError(f"--{field.name} must be {wanted}; got {number}")


def fast_precision() -> str:
    """Chooses bfloat16 if all devices multiply it faster than float32, else float32."""
    import tensorflow as tf  # Here: the checks of settings must not wait for it.

    if gpus := tf.config.list_physical_devices("GPU"):
        details = map(tf.config.experimental.get_device_details, gpus)
        capable = all(one.get("compute_capability", (0, 0)) >= (8, 0) for one in details)
        return "bfloat16" if capable else "float32"
    try:
        with open("/proc/cpuinfo") as cpuinfo:
            return "bfloat16" if " amx_bf16" in cpuinfo.read() else "float32"
    except OSError:
        return "float32"


def fast_precision_of_all(devices: "Devices") -> str:
    """Chooses, on every worker, bfloat16 if all have it fast, else float32; waits for all."""
    return "bfloat16" if devices.all_have(fast_precision() == "bfloat16") else "float32"
