"""Radii and steps of attacks as text: 8/255, linf-8/255."""

import math
from fractions import Fraction

from anpvs_tf.attacks.settings import NORMS
from anpvs_tf.common.errors import UsageError

LEVELS = 255


def parse(text: str | float) -> float:
    """Reads a number, or a fraction of two numbers, as a float.

    Raises:
        ValueError: it is neither, or not finite, or divides by zero; the message says which.
    """
    above, slash, below = str(text).partition("/")
    try:
        number, divisor = float(above), float(below) if slash else 1.0
    except ValueError:
        raise ValueError(f"{text!r} is no number and no fraction like 8/255") from None
    if divisor == 0:
        raise ValueError(f"{text!r} divides by zero")
    if not math.isfinite(number / divisor):
        raise ValueError(f"{text!r} is not finite")
    return number / divisor


def parse_flag(flag: str, text: str | float) -> float:
    """Reads the text of a program's flag as `parse` does.

    Raises:
        UsageError: as ValueError of `parse`.
    """
    try:
        return parse(text)
    except ValueError as error:
        raise UsageError(f"--{flag}: {error}") from None


def as_text(value: float) -> str:
    """Writes a radius as text: as a fraction like 8/255, or as a decimal.

    It is a fraction if the radius is whole levels of 255 and no short decimal.
    """
    levels = value * LEVELS
    whole = round(levels)
    if whole and abs(levels - whole) < 1e-6 and abs(value - round(value, 3)) > 1e-9:
        return f"{whole}/{LEVELS}"
    return f"{value:g}"


def in_levels(epsilon: float) -> float:
    """Returns the largest radius of whole levels of 255 that is not above `epsilon`.

    Images of 256 levels a pixel that lie in the linf ball of one lie in that of the other.

    Raises:
        UsageError: it is 0.
    """
    levels = math.floor(epsilon * LEVELS + 1e-6)
    if not levels:
        raise UsageError(
            f"--epsilons must be at least 1/{LEVELS}, one level of a pixel; got {epsilon:g}"
        )
    return levels / LEVELS


def meant(value: float) -> str:
    """Suggests x/255 for a radius x in (1, 255], too large for pixels in [0, 1]; else ""."""
    if not (math.isfinite(value) and 1 < value <= LEVELS):
        return ""
    levels = Fraction(value).limit_denominator(100)
    return f": did you mean {float(levels):g}/{LEVELS}?"


def parse_threat_model(text: str) -> tuple[str, float]:
    """Reads (norm, epsilon) from a name like linf-8/255 or l2-0.5.

    Raises:
        UsageError: another name.
    """
    norm, dash, radius = text.lower().partition("-")
    if norm not in NORMS or not dash:
        names = " or ".join(f"{one}-RADIUS" for one in NORMS)
        raise UsageError(f"--threat_model must be {names}, like linf-8/255; got {text!r}")
    return norm, parse_flag("threat_model", radius)
