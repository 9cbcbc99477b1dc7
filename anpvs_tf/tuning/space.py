"""The space of a sweep: constants, ranges and choices, as the flags say them."""

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from anpvs_tf.attacks import radius
from anpvs_tf.common.errors import UsageError
from anpvs_tf.runs import settings

if TYPE_CHECKING:
    import keras_tuner

HELP = (
    "A number may be a range, low:high[:log|:linear][:steps]; any setting may be choices, 'a|b|c'"
)
SCALES = ("log", "linear")
# Significant digits of a sampled number, few enough that tables show all of it.
DIGITS = 4
_BOOLEANS = {"true": True, "false": False}


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    scale: str
    whole: bool

    @property
    def ends(self) -> tuple:
        return self.low, self.high

    def declare(self, name: str, hyperparameters: "keras_tuner.HyperParameters") -> None:
        declare = hyperparameters.Int if self.whole else hyperparameters.Float
        declare(name, self.low, self.high, sampling=self.scale)

    def value(self, sampled: float) -> float:
        """Returns the setting's value for the one that keras-tuner drew."""
        if self.whole:
            return int(sampled)
        return min(max(_rounded(sampled), self.low), self.high)


@dataclasses.dataclass(frozen=True)
class Choices:
    """One of several values.

    Attributes:
        texts: the values as a flag takes them.
        numbers: whether they have an order.
    """

    texts: tuple[str, ...]
    values: tuple[Any, ...]
    numbers: bool

    @property
    def ends(self) -> tuple:
        return self.values

    def declare(self, name: str, hyperparameters: "keras_tuner.HyperParameters") -> None:
        hyperparameters.Choice(name, list(self.values if self.numbers else self.texts))

    def value(self, sampled: Any) -> Any:
        """Returns the setting's value for the one that keras-tuner drew."""
        return sampled if self.numbers else self.values[self.texts.index(sampled)]


Swept = Range | Choices


@dataclasses.dataclass(frozen=True)
class Space:
    """Settings by name: those that stay, and those that are swept."""

    constants: dict[str, Any]
    swept: dict[str, Swept]

    def values(self, sampled: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the settings of a trial; leaves out entries of `sampled` that are no settings."""
        drawn = {name: swept.value(sampled[name]) for name, swept in self.swept.items()}
        return self.constants | drawn

    def corners(self) -> list[dict[str, Any]]:
        """Lists settings that reach both ends of each range, and each choice, once."""
        first = {name: swept.ends[0] for name, swept in self.swept.items()}
        found = [self.constants | first]
        for name, swept in self.swept.items():
            found += [found[0] | {name: end} for end in swept.ends[1:]]
        return found


def parse(texts: Mapping[str, str]) -> Space:
    """Reads the space that flags describe.

    Raises:
        UsageError: a text is no value, range or choices of its setting, or nothing is swept.
    """
    found = {name: _parse(name, text) for name, text in texts.items()}
    swept = {name: value for name, value in found.items() if isinstance(value, Swept)}
    if not swept:
        raise UsageError(
            "nothing is swept: give a setting a range (--beta=0.5:16:log) or choices "
            "(--network='lenet5|vgg16')"
        )
    constants = {name: value for name, value in found.items() if name not in swept}
    return Space(constants, swept)


def _parse(name: str, text: str) -> Any:
    kind = settings.kind_of(settings.FIELDS[name])
    numeric = kind in (int, float)
    if "|" in text:
        texts = tuple(part.strip() for part in text.split("|"))
        values = tuple(_value(name, part) for part in texts)
        if len(set(values)) < len(values):
            raise UsageError(f"--{name} has a choice twice; got {text!r}")
        return Choices(texts, values, numeric)
    return _range(name, text, kind) if numeric and ":" in text else _value(name, text)


def _range(name: str, text: str, kind: type) -> Swept:
    low, high, *rest = text.split(":")
    low, high = _value(name, low), _value(name, high)
    scale = rest.pop(0) if rest and rest[0] in SCALES else "linear"
    steps = rest.pop(0) if rest and rest[0].isdecimal() else None
    if rest:
        raise UsageError(f"--{name} must be low:high[:log|:linear][:steps]; got {text!r}")
    if not low < high:
        raise UsageError(f"--{name}: the range {text!r} is empty; the low end comes first")
    if scale == "log" and low <= 0:
        raise UsageError(f"--{name}: a log range begins above 0; got {text!r}")
    if steps is None:
        return Range(low, high, scale, kind is int)
    if int(steps) < 2:
        raise UsageError(f"--{name}: a range has at least 2 steps; got {text!r}")
    between = (np.geomspace if scale == "log" else np.linspace)(low, high, int(steps))
    inner = [round(v) if kind is int else _rounded(v) for v in between[1:-1].tolist()]
    values = tuple(dict.fromkeys([low, *inner, high]))
    return Choices(tuple(map(str, values)), values, True)


def _value(name: str, text: str) -> Any:
    """Reads a setting's value from the text of its flag."""
    kind = settings.kind_of(settings.FIELDS[name])
    try:
        if kind is bool:
            return _BOOLEANS[text.lower()]
        if kind is tuple:
            return tuple(part.strip() for part in text.split(",")) if text else ()
        if "pixels" in settings.FIELDS[name].metadata:
            return radius.parse_flag(name, text)
        value = kind(text)
    except (ValueError, LookupError):
        raise UsageError(f"--{name} must be of kind {kind.__name__}; got {text!r}") from None
    if not text or (kind is float and not math.isfinite(value)):
        raise UsageError(f"--{name} must be of kind {kind.__name__}; got {text!r}")
    return value


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
