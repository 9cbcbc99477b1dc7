"""Radii as people write them."""

import pytest

from anpvs_tf.attacks import radius
from anpvs_tf.common.errors import UsageError


def test_numbers_and_fractions():
    assert radius.parse("8/255") == 8 / 255
    assert radius.parse(" 0.03") == 0.03
    assert radius.parse(0.3) == 0.3
    assert radius.parse_threat_model("Linf-8/255") == ("linf", 8 / 255)
    assert radius.parse_threat_model("l2-0.5") == ("l2", 0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8/0", "divides by zero"),
        ("8/255/3", "no number and no fraction"),
        ("", "no number"),
        ("nan", "not finite"),
        ("1e400", "not finite"),
    ],
)
def test_what_is_none_is_refused(text, message):
    with pytest.raises(UsageError, match=f"--epsilon: .*{message}"):
        radius.parse_flag("epsilon", text)


@pytest.mark.parametrize("text", ["8/255", "linf", "linf8/255", "l1-0.5", "linf-x"])
def test_what_is_no_threat_model_is_refused(text):
    with pytest.raises(UsageError, match="--threat_model"):
        radius.parse_threat_model(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [(8 / 255, "8/255"), (2.0 / 255, "2/255"), (0.2, "0.2"), (0.03, "0.03"), (1.0, "1"), (0, "0")],
)
def test_they_are_shown_as_they_are_written(value, text):
    assert radius.as_text(value) == text


@pytest.mark.parametrize(
    ("epsilon", "levels"), [(0.3, 76), (8 / 255, 8), (0.13, 33), (1.0, 255), (1 / 255, 1)]
)
def test_a_radius_is_lowered_to_whole_levels(epsilon, levels):
    assert radius.in_levels(epsilon) == levels / 255
    with pytest.raises(UsageError, match="at least 1/255"):
        radius.in_levels(0.0039)


def test_a_radius_in_levels_is_recognised():
    assert radius.meant(8.0) == ": did you mean 8/255?"
    assert radius.meant(0.5) == radius.meant(300.0) == ""
