"""What the programs say of settings and methods when they are asked for help."""

import dataclasses
import textwrap
from typing import Any

from anpvs_tf.attacks import radius
from anpvs_tf.methods.registry import METHODS
from anpvs_tf.runs.defaults import BY_DATASET
from anpvs_tf.runs.resolve import defaults
from anpvs_tf.runs.settings import CHOSEN, FIELDS, used


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
    "target_sparsity": "none",
    "base_run": "none, or by method a run beside this one",
    "eval_examples": "1,000 for validation after an epoch, the whole test set at the end",
}


def _show(name: str, value: Any) -> str:
    if value is None:
        return _UNSET.get(name, "all")
    if isinstance(value, tuple):
        return ",".join(f"{v:g}" for v in value) or "none"
    if "pixels" in FIELDS[name].metadata:
        return radius.as_text(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
