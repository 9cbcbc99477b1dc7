"""The help of the programs on settings and methods."""

import dataclasses
import textwrap
from typing import Any

from anpvs_tf.attacks import radius
from anpvs_tf.methods.registry import METHODS
from anpvs_tf.runs.defaults import BY_DATASET
from anpvs_tf.runs.resolution import defaults
from anpvs_tf.runs.settings import CHOSEN, FIELDS, as_text, kind_of, used

THREAT_MODEL = "--norm and --epsilon by name, like linf-8/255"
WHAT, HOW_LONG, EXPERTS = "What to train", "How long, and where", "For experts"
# The settings that most users choose; each other one is shown with those of its trait.
_OFTEN = {
    WHAT: ("dataset", "method", "network", "width", "norm", "epsilon", "seed", "base_run"),
    HOW_LONG: ("epochs", "base_epochs", "batch_size", "train_examples", "eval_examples"),
    "Own network (FILE.keras), fine-tuning": ("pretrained", "input_range", "freeze_below"),
    "Own images (folder:PATH, tfds:NAME)": ("image_size", "channels", "augment", "stream"),
}
_TRAITS = {
    "gate": "Gates",
    "learned_gates": "Learned gates",
    "vulnerability": "Vulnerability suppression",
    "adversarial": "Attack of training",
    "weighted_cross_entropy": "Loss of adversarial training",
    "trades": "Loss of TRADES",
    "bayesian": "Bayesian weights",
    "weight_pruning": "Weight pruning by ADMM",
    "base": "Warm start",
}


def groups() -> dict[str, list[dataclasses.Field]]:
    """Groups the settings that a user chooses, as the help shows them."""
    found = {title: [CHOSEN[n] for n in names if n in CHOSEN] for title, names in _OFTEN.items()}
    often = {field.name for fields in found.values() for field in fields}
    for trait, title in _TRAITS.items():
        own = [f for n, f in CHOSEN.items() if f.metadata["used_by"] == trait and n not in often]
        if own:
            found[f"{title} ({_methods(own[0])})"] = own
    shown = {field.name for fields in found.values() for field in fields}
    found[EXPERTS] = [field for name, field in CHOSEN.items() if name not in shown]
    return found


def _methods(field: dataclasses.Field) -> str:
    """Names the methods that use a setting, in words."""
    users = [method.name for method in METHODS.values() if used(method, field.name)]
    others = [name for name in METHODS if name not in users]
    if len(others) < len(users):
        return f"every --method but {', '.join(others)}"
    return f"--method={'|'.join(users)}"


def describe(field: dataclasses.Field) -> str:
    """Writes the help of a setting: meaning, choices, default by dataset."""
    text = field.metadata["help"]
    if "choices" in field.metadata:
        text += f" ({', '.join(field.metadata['choices'])})"
    if field.name == "dataset":
        return f"{text}. Default: digits"
    values = {name: _show(field.name, defaults(name)[field.name]) for name in BY_DATASET}
    if kind_of(field) is bool:
        values = {
            name: {"True": "on", "False": "off"}.get(value, value) for name, value in values.items()
        }
    if len(set(values.values())) == 1:
        return f"{text}. Default: {values['digits']}"
    return f"{text}. Default: " + ", ".join(f"{name} {value}" for name, value in values.items())


def describe_methods(dataset: str = "digits", recipe: str = "published") -> str:
    """Writes the table of methods: what each does, its source, its own flags with their defaults.

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


# The meaning of an unset value.
_UNSET = {
    "base_epochs": "as --epochs",
    "target_sparsity": "none",
    "pretrained": "on",
    "input_range": "by the file",
    "freeze_below": "all are trained",
    "base_run": "none, or by method a run beside this one",
    "eval_examples": "1,000 for validation after an epoch, the whole test set at the end",
}


def _show(name: str, value: Any) -> str:
    if value is None:
        return _UNSET.get(name, "all")
    if "pixels" in FIELDS[name].metadata:
        return radius.as_text(value)
    return as_text(value) or "none"
