"""A network at chance is called so."""

import numpy as np
import pytest

from anpvs_tf.runs import chance, resolution

DIGITS = {"dataset": "digits", "precision": "float32"}


# Lower ends of Wilson's 95 % interval, by hand: 15 of 100 is 9.3 %, 16 of 100 is 10.1 %.
@pytest.mark.parametrize(("right", "above"), [(0, False), (15, False), (16, True), (100, True)])
def test_above_chance_is_above_by_its_interval(right, above):
    assert (chance.verdict(right / 100, 100, 0.1) is None) == above


def test_chance_is_the_best_constant_answer():
    assert chance.of_labels([0] * 90 + [1] * 10, 2) == 0.9
    assert chance.of_labels(np.arange(10), 10) == 0.1
    assert chance.of_labels([], 4) == 0.25  # Unknown labels: guessing.
    # Always the more frequent class of two: 90 % and no merit.
    found = chance.recorded({"clean_accuracy": 0.9, "examples": 1000}, 0.9)
    assert found["chance"] == 0.9 and "90.00% is not above chance" in found["at_chance"]


def test_the_likely_cause_is_named():
    assert "--input_range" in chance.verdict(0.1, 359, 0.1)
    usual = resolution.choose(DIGITS)
    assert "--learning_rate" in chance.verdict(0.1, 359, 0.1, usual)
    hasty = resolution.choose(DIGITS | {"epsilon_warmup_epochs": 0, "kl_warmup_epochs": 0})
    found = chance.verdict(0.1086, 359, 0.1, hasty)
    assert (
        "10.86%" in found and "--epsilon_warmup_epochs" in found and "--kl_warmup_epochs" in found
    )
    standard = resolution.choose(DIGITS | {"method": "standard"})
    assert "--kl_warmup_epochs" not in chance.verdict(0.1, 359, 0.1, standard)
