"""Catastrophic overfitting is noticed, ends a run, and its last good epoch is kept."""

import dataclasses

import pytest

from anpvs_tf.common.errors import TrainingError
from anpvs_tf.evaluation.evaluator import Evaluator
from anpvs_tf.runs import resolution
from anpvs_tf.runs.directory import RunDirectory
from anpvs_tf.runs.finished_run import open_run
from anpvs_tf.training import overfitting, trainer

TINY = {"dataset": "digits", "method": "at", "epochs": 4, "steps_per_epoch": 2, "width": 0.2}
TINY |= {"eval_examples": 20, "eval_attack_steps": 1, "train_attack": "n_fgsm", "batch_size": 16}


def rows(*epochs):
    return [
        {"validation_robust_accuracy": robust, "train_accuracy": trained}
        for robust, trained in epochs
    ]


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        ([(0.40, 0.3), (0.05, 0.5)], True),
        ([(0.40, 0.3), (0.38, 0.31), (0.05, 0.5)], True),
        ([(0.40, 0.3), (0.25, 0.5)], False),  # Less robust, but no collapse.
        ([(0.40, 0.5), (0.05, 0.3)], False),  # Training got worse too: another trouble.
        ([(0.20, 0.2), (0.08, 0.3)], False),  # Within the noise near chance.
        ([(0.05, 0.5)], False),
    ],
)
def test_it_is_robustness_that_falls_while_training_goes_up(epochs, expected):
    settings = resolution.resolve(TINY)
    assert overfitting.noticed(settings, rows(*epochs)) == expected
    careful = {"train_attack": "pgd", "attack_steps": 10}
    assert not overfitting.noticed(resolution.resolve(TINY | careful), rows(*epochs))
    clean = resolution.resolve(TINY | {"method": "standard", "train_attack": None})
    assert not overfitting.noticed(clean, rows(*epochs))


def test_a_run_ends_with_its_best_epoch(tmp_path, monkeypatch, capsys):
    figures = iter([0.3, 0.6, 0.1, 0.25])
    seen = []

    def evaluated(self, *arguments):
        result = original(self, *arguments)
        robust = next(figures)
        seen.append([w.numpy() for w in self.network.weights])
        return dataclasses.replace(result, robust_accuracy=robust)

    original = Evaluator.__call__
    monkeypatch.setattr(Evaluator, "__call__", evaluated)
    terms = trainer.Position.means
    monkeypatch.setattr(
        trainer.Position, "means", lambda self: terms(self) | {"train_accuracy": float(self.epoch)}
    )
    run = RunDirectory(tmp_path / "run")
    chosen = resolution.resolve(TINY | {"epsilon_warmup_epochs": 0})
    trainer.train(chosen, run)
    (record,) = run.results()
    assert record["stopped"] == {"reason": "catastrophic overfitting", "epoch": 3}
    assert record["epoch"] == 2 and len(run.metrics()) == 3
    for kept, best in zip(open_run(run.path).network().weights, seen[1], strict=True):
        assert (kept.numpy() == best).all()
    errors = capsys.readouterr().err
    assert "catastrophic overfitting in epoch 3" in errors and "epoch 2 is kept" in errors


def test_without_a_good_epoch_the_run_stops(tmp_path):
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(TrainingError, match=r"no epoch before .* prevent it"):
        overfitting.check_good_epoch(3, 0, run)
