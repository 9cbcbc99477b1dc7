"""Sweeps: what is swept, and what is maximised."""

import keras_tuner
import pytest

from anpvs_tf.common.errors import UsageError
from anpvs_tf.runs import resolution
from anpvs_tf.runs.directory import RunDirectory
from anpvs_tf.runs.finished_run import FinishedRun
from anpvs_tf.tuning import score, space, sweep
from anpvs_tf.tuning.sweep import Definition, Sweep

BETA = {"beta": "0.5:16:log"}


def declared(swept, seeds=range(200)):
    hyperparameters = keras_tuner.HyperParameters()
    swept.declare("x", hyperparameters)
    (one,) = hyperparameters.space
    return [swept.value(one.random_sample(seed)) for seed in seeds]


def test_a_range_is_drawn_on_its_scale():
    parsed = space.parse({"beta": "0.01:100:log", "lambda_vs": "0:10", "epochs": "2:9:log"}).swept
    drawn = declared(parsed["beta"])
    assert min(drawn) >= 0.01 and max(drawn) <= 100
    assert 0.4 < sum(value < 1 for value in drawn) / 200 < 0.6
    drawn = declared(parsed["lambda_vs"])
    assert 0.4 < sum(value < 5 for value in drawn) / 200 < 0.6
    assert all(float(f"{value:.3e}") == value for value in drawn)
    drawn = declared(parsed["epochs"])
    assert set(map(type, drawn)) == {int} and set(drawn) <= set(range(2, 10))


def test_steps_and_choices_are_values_of_the_setting():
    parsed = space.parse(
        {
            "beta": "0.5:8:log:5",
            "epochs": "2:4:9",
            "decay_at": "0.5,0.8|0.6",
            "shrink": "true|false",
            "network": "lenet5|vgg16",
            "seed": "3|1",
            "augment": "False",
        }
    )
    ends = {name: swept.ends for name, swept in parsed.swept.items()}
    assert ends["beta"] == (0.5, 1, 2, 4, 8)
    assert ends["epochs"] == (2, 3, 4)
    assert ends["decay_at"] == (("0.5", "0.8"), ("0.6",))
    assert ends["shrink"] == (True, False)
    assert ends["seed"] == (3, 1)
    assert parsed.constants == {"augment": False}
    for name, swept in parsed.swept.items():
        assert set(declared(swept)) == set(swept.ends), name
    values = parsed.values(
        {"beta": 2.0, "epochs": 3, "seed": 1}
        | dict.fromkeys(["tuner/x"], 5)
        | {"decay_at": "0.6", "shrink": "false", "network": "vgg16"}
    )
    assert resolution.resolve(values | {"dataset": "cifar10"}).decay_at == (0.6,)
    assert values["shrink"] is False and "tuner/x" not in values


@pytest.mark.parametrize(
    ("texts", "more", "message"),
    [
        ({"beta": "4:1"}, {}, "empty"),
        ({"beta": "2:2"}, {}, "empty"),
        ({"beta": "0:1:log"}, {}, "log range"),
        ({"beta": "a:b"}, {}, "--beta must be of kind float; got 'a'"),
        ({"beta": "nan:2"}, {}, "kind float"),
        ({"beta": "1:inf"}, {}, "kind float"),
        ({"beta": "1:2:cubic"}, {}, "low:high"),
        ({"beta": "1:2:1"}, {}, "at least 2 steps"),
        ({"beta": "1|"}, {}, "kind float"),
        ({"epochs": "1.5:4"}, {}, "kind int"),
        ({"shrink": "true|maybe"}, {}, "kind bool"),
        ({"seed": "0|0"}, {}, "twice"),
        ({"beta": "1"}, {}, "nothing is swept"),
        ({}, {}, "nothing is swept"),
        ({"beta": "-1:2"}, {}, "at least 0"),
        ({"network": "lenet5|alexnet"}, {}, "alexnet"),
        ({"method": "at", "beta": "1:2"}, {}, "--beta is not used by --method=at"),
        ({"method": "anpvs|at", "beta": "1:2"}, {}, "--beta is not used by --method=at"),
        (BETA, {"tuner": "magic"}, "unknown --tuner"),
        (BETA, {"tuner": "grid"}, "needs steps"),
        (BETA, {"tuner": "hyperband", "trials": 3}, "not used"),
        ({"epochs": "2:9"}, {"tuner": "hyperband"}, "varies --epochs"),
        (BETA, {"trials": 0}, "at least 1"),
        (BETA, {"objective": "speed"}, "unknown --objective"),
        (BETA, {"objective": "robust@speed>=1"}, "unknown --objective"),
        (BETA, {"objective": "robust@sparsity"}, "unknown --objective"),
        (BETA, {"objective": "robust@sparsity>=much"}, "must be a number"),
        (
            {"method": "at", "learning_rate": "1e-3:1e-2:log"},
            {"objective": "robust@sparsity>=0.5"},
            "--method=at prunes nothing",
        ),
        ({"eval_attack_steps": "1:20"}, {}, "--eval_attack_steps decides how a trial is measured"),
        ({"epsilon": "0.1|0.2"}, {}, "--epsilon decides how a trial is measured"),
    ],
)
def test_what_cannot_be_swept_is_said_and_nothing_is_written(texts, more, message, tmp_path):
    with pytest.raises(UsageError, match=message) as caught:
        Sweep(tmp_path / "s", Definition(texts, **more)).check()
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


# ---- What is maximised ----


def figures(clean=0.9, robust=0.6, sparsity=0.8, vulnerability=0.02):
    return dict(clean=clean, robust=robust, sparsity=sparsity, vulnerability=vulnerability)


def test_scores_by_hand():
    assert score.parse("robust").score(figures()) == 0.6
    assert score.parse("pareto").score(figures()) == pytest.approx((0.9 + 0.6 + 0.8) / 3)
    limited = score.parse("robust@sparsity>=0.75")
    assert limited.score(figures()) == 0.6
    assert limited.score(figures(sparsity=0.75, robust=0.0)) == 0.0
    assert limited.score(figures(sparsity=0.5, robust=0.9)) == pytest.approx(-0.25)
    assert limited.score(figures(sparsity=0.7, robust=0.1)) == pytest.approx(-0.05)
    upper = score.parse("clean@vulnerability<=0.01")
    assert upper.score(figures()) == pytest.approx(-0.01)
    assert upper.score(figures(vulnerability=0.01)) == 0.9


def test_a_score_is_that_of_the_epoch_that_was_kept(tmp_path):
    row = {"validation_clean_accuracy": 0.5, "validation_vulnerability": 0.1, "sparsity": 0.2}
    rows = [row | {"epoch": e, "validation_robust_accuracy": e / 10} for e in (1, 2, 3)]
    # The test set says otherwise.
    trained = {"robust_accuracy": 1.0, "efficiency": {}, "epoch": 2}
    run = FinishedRun(RunDirectory(tmp_path), resolution.resolve({}), [], trained, [], rows)
    assert score.validation_figures(run) == figures(0.5, 0.2, 0.2, 0.1)


def test_a_shorter_trial_is_the_same_recipe():
    whole = resolution.resolve({"epochs": 26})
    short = sweep.shortened(whole, 9)
    changed = {
        name: (value, getattr(short, name))
        for name, value in vars(whole).items()
        if value != getattr(short, name)
    }
    warm = {f"{name}_epochs": (4, 1) for name in ("kl_warmup", "kl_ramp", "epsilon_warmup")}
    assert changed == warm | {"epochs": (26, 9), "admm_epochs": (21, 7)}
    pruned = resolution.resolve({"method": "admm", "epochs": 26})
    assert sweep.shortened(pruned, 2).admm_epochs == 1
