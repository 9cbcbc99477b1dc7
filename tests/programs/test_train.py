"""bin/train.py as a user runs it."""

import functools
import json
import os

import pytest
from calling import call

from anpvs_tf.common import devices
from anpvs_tf.common.errors import TrainingError, UsageError, WorkerLost
from anpvs_tf.runs import defaults, directory, resolution
from anpvs_tf.runs.directory import RunDirectory
from anpvs_tf.runs.finished_run import open_run
from anpvs_tf.training import trainer

TINY = {
    "dataset": "digits",
    "method": "anpvs",
    "epochs": 3,
    "base_epochs": 1,
    "steps_per_epoch": 3,
    "eval_examples": 40,
    "attack_steps": 2,
    "eval_attack_steps": 3,
}


pytestmark = pytest.mark.usefixtures("tiny_lenet5")
program = functools.partial(call, "train")


def resolved(**changes):
    return resolution.resolve(TINY | changes)


def test_a_worker_that_has_lost_another_does_not_wait_for_it(tmp_path, monkeypatch):
    def lost(*_):
        raise WorkerLost("another worker is gone")

    ended = []
    monkeypatch.setattr(trainer, "train", lost)
    monkeypatch.setattr(os, "_exit", ended.append)
    result = program("--dataset=digits", cwd=tmp_path)
    assert result.stderr == "error: another worker is gone\n" and result.stdout == ""
    assert ended == [138] == [result.returncode]


@pytest.mark.parametrize("others", ["bfloat16", "float32"])
def test_the_precision_is_the_one_that_all_workers_have_fast(tmp_path, monkeypatch, others):
    chosen = []
    monkeypatch.setattr(resolution, "fast_precision", lambda: "bfloat16")
    monkeypatch.setattr(devices.Devices, "all_have", lambda _, it: it and others == "bfloat16")
    monkeypatch.setattr(trainer, "train", lambda settings, *_: chosen.append(settings) or [])
    program("--dataset=digits", cwd=tmp_path)
    assert [settings.precision for settings in chosen] == [others]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_lenet5):
    """A run by the program itself, with its warm start, in a fresh directory."""
    cwd = tmp_path_factory.mktemp("first")
    flags = [f"--{name}={value}" for name, value in TINY.items()]
    result = program(*flags, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return RunDirectory(cwd / "runs/digits-lenet5-anpvs-seed0"), result.stdout


def test_the_run_directory_keeps_its_contract(finished):
    run, output = finished
    names = {path.name for path in run.path.iterdir()}
    assert names == {
        "config.json",
        "metrics.csv",
        "timings.csv",
        "results.json",
        "SHA256SUMS",
        "checkpoints",
        "tensorboard",
    }
    config = json.loads(run.config_path.read_text())
    assert config["settings"]["epsilon"] == defaults.BY_DATASET["digits"]["epsilon"]
    assert config["versions"]["tensorflow"].startswith("2.")
    assert directory.RunDirectory(run.path).settings() == resolved()
    rows = run.metrics()
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    for column in ("ce_clean", "ce_adversarial", "vulnerability", "kl", "weight_decay", "loss"):
        assert float(rows[0][column]) > 0
    assert rows[0]["active_conv1"] == "20"
    assert any(run.tensorboard.iterdir())
    (record,) = json.loads(run.results_path.read_text())
    assert record["threat_model"] == {"norm": "linf", "epsilon": config["settings"]["epsilon"]}
    assert record["attack"] == {
        "name": "pgd",
        "steps": 3,
        "step_size": config["settings"]["eval_step_size"],
        "restarts": 1,
    }
    assert record["examples"] == 40
    assert 0 <= record["robust_accuracy"] <= record["clean_accuracy"] <= 1
    assert record["active_features"]["conv1"][1] == 20
    assert "PGD-3 accuracy" in output
    assert f"{record['clean_accuracy']:.2%}" in output
    base = RunDirectory(run.path.parent / "digits-lenet5-standard-seed0")
    assert base.results()[0]["method"] == "standard"


def test_the_same_seed_gives_the_same_metrics_and_an_interruption_changes_nothing(
    finished, tmp_path, monkeypatch
):
    run, _ = finished
    again = RunDirectory(tmp_path / "again")
    save = trainer.Checkpoints.save
    calls = []

    def interrupted(self):
        calls.append(save(self))
        if len(calls) == 3:  # the base's one epoch, then two of this run
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Checkpoints, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trainer.train(resolved(), again)
    assert len(again.metrics()) == 1  # The row of the second is in the checkpoint.
    assert not again.finished
    trainer.train(resolved(), again)
    assert again.metrics() == run.metrics()
    (first,), (second,) = run.results(), again.results()
    for key in ("clean_accuracy", "robust_accuracy", "vulnerability", "active_features"):
        assert first[key] == second[key]


def test_a_finished_run_is_not_trained_again(finished):
    run, _ = finished
    before = run.results_path.stat().st_mtime_ns
    flags = [f"--{name}={value}" for name, value in TINY.items()]
    result = program(*flags, cwd=run.path.parent.parent)
    assert result.returncode == 0
    assert "nothing was trained" in result.stdout
    assert "--overwrite" in result.stdout
    for what in ("evaluate.py --run_dir=", "report.py ", "export.py --run_dir="):
        (line,) = [line for line in result.stdout.splitlines() if f"/{what}" in line]
        assert "python " in line and run.path.name in line
    assert run.results_path.stat().st_mtime_ns == before


def test_saved_weights_are_the_evaluated_network(finished):
    run, _ = finished
    network = open_run(run.path).network()
    from anpvs_tf.data import loading
    from anpvs_tf.evaluation.evaluator import Evaluator, PgdAttack

    (record,) = run.results()
    held = run.settings()
    attack = PgdAttack(held.epsilon, held.eval_step_size, held.eval_attack_steps)
    test = loading.load("digits").test.take(40)
    result = Evaluator(network, attack, trainer.EVALUATION_BATCH)(test, held.seed)
    assert result.clean_accuracy == record["clean_accuracy"]
    assert result.vulnerability == pytest.approx(record["vulnerability"], rel=1e-4)


def test_misuse_from_the_command_line(tmp_path):
    for flags, message in (
        (["--dataset=svhn"], "unknown dataset 'svhn'; choose one of digits, mnist"),
        (["--epochs=many"], "flag --epochs=many"),
        (["stray"], "unexpected argument 'stray'"),
    ):
        result = program(*flags, cwd=tmp_path)
        assert result.returncode == 2
        (line,) = [x for x in result.stderr.splitlines() if x.startswith("error: ")]
        assert message in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "fgsm"}, "unknown method 'fgsm'; choose one of standard, bp, at"),
        ({"network": "alexnet"}, "unknown network 'alexnet'; choose one of lenet5, vgg16"),
        ({"epsilon": 1.5}, "--epsilon must be at most 1, the range of a pixel; got 1.5"),
        ({"epsilon": float("nan")}, "--epsilon must be a finite number"),
        ({"step_size": 0.0}, "--step_size must be a finite number and above 0"),
        ({"beta": -1.0}, "--beta must be a finite number and at least 0; got -1"),
        ({"lambda_vs": float("inf")}, "--lambda_vs must be a finite number and at least 0"),
        ({"epochs": 0}, "--epochs must be a finite number and at least 1; got 0"),
        ({"decay_at": (0.7, 0.5)}, "--decay_at must be one or more increasing shares"),
        ({"decay_at": ()}, "--decay_at must be one or more increasing shares"),
        ({"decay_at": (0.5, 0.7)}, "--decay=linear turns once"),
        ({"decay_at": ("half",)}, "--decay_at must be numbers"),
        ({"precision": "int8"}, "unknown precision 'int8'; choose one of auto, float32"),
    ],
)
def test_settings_out_of_range(change, message):
    with pytest.raises(UsageError) as error:
        resolved(**change)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": "vgg16"}, "network vgg16 needs images of 32 x 32 x 3; got (28, 28, 1)"),
        ({"batch_size": 2000}, "--batch_size=2000 is more than the 1295 training examples"),
        ({"base_run": "nowhere"}, "holds no readable config.json"),
    ],
)
def test_what_does_not_fit_leaves_nothing_behind(tmp_path, change, message):
    with pytest.raises(UsageError) as error:
        trainer.train(resolved(**change), RunDirectory(tmp_path / "run"))
    assert message in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_directory_without_the_dataset_leaves_nothing_behind(tmp_path):
    chosen = resolution.resolve({"dataset": "mnist", "method": "standard"})
    with pytest.raises(UsageError, match="mnist is not in"):
        trainer.train(chosen, RunDirectory(tmp_path / "run"), str(tmp_path), download=False)
    assert not list(tmp_path.iterdir())


def test_run_directories_that_cannot_be_used(finished, tmp_path):
    run, _ = finished
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(UsageError, match="is a file"):
        trainer.train(resolved(), RunDirectory(file))
    with pytest.raises(UsageError, match="cannot be written"):
        trainer.train(resolved(), RunDirectory(file / "below"))
    with pytest.raises(UsageError, match=r"other settings: beta=1.5 \(now 2.0\)"):
        trainer.train(resolved(beta=2.0), run)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty and holds no run"):
        trainer.train(resolved(), RunDirectory(tmp_path / "full"))


def test_overwrite_deletes_the_run_and_only_the_run_and_only_when_all_is_well(finished, tmp_path):
    base = RunDirectory(finished[0].path.parent / "digits-lenet5-standard-seed0")
    run = RunDirectory(tmp_path / "run")
    run.begin(resolved(beta=2.0), [])
    run.write_metrics([{"epoch": 1}], [])
    (run.path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="--batch_size"):
        trainer.train(resolved(batch_size=2000), run, overwrite=True)
    assert run.metrics() == [{"epoch": "1"}]
    chosen = resolved(base_run=str(base.path), epochs=1)
    trainer.train(chosen, run, overwrite=True)
    assert run.settings() == chosen
    assert len(run.metrics()) == 1
    assert (run.path / "thesis.txt").read_text() == "mine"


def test_bases_that_cannot_be_used(finished, tmp_path):
    run, _ = finished
    other = resolution.resolve(
        {"dataset": "cifar10", "method": "anp", "network": "vgg16", "base_run": str(run.path)}
    )
    with pytest.raises(UsageError, match="has network lenet5, this run needs vgg16"):
        trainer.warm_start.base_run(other, RunDirectory(tmp_path / "run"))
    beside = RunDirectory(run.path.parent / "new")
    with pytest.raises(UsageError, match=r"has epochs=1, this run asks for epochs=2; use it as"):
        trainer.warm_start.base_run(resolved(base_epochs=2), beside)
    # What a standard network does not use may differ.
    assert trainer.warm_start.base_run(resolved(beta=3.0, epsilon=0.2), beside) is not None
    own = RunDirectory(tmp_path / "digits-lenet5-standard-seed0")
    with pytest.raises(UsageError, match="is where the base run goes"):
        trainer.warm_start.base_run(resolved(), own)
    unfinished = RunDirectory(tmp_path / "unfinished")
    unfinished.begin(resolved(), [])
    with pytest.raises(UsageError, match="is not finished"):
        trainer.warm_start.base_run(
            resolved(base_run=str(unfinished.path)), RunDirectory(tmp_path / "run")
        )


def test_a_run_has_one_owner_at_a_time(finished, tmp_path):
    base = RunDirectory(finished[0].path.parent / "digits-lenet5-standard-seed0")
    run = RunDirectory(tmp_path / "run")
    with run.owned(), pytest.raises(UsageError, match="another process works in"):
        trainer.train(resolved(base_run=str(base.path)), RunDirectory(tmp_path / "run"))
    with run.owned():  # Let go, it can be taken again.
        pass
    assert not any(run.path.iterdir())


def test_weights_that_are_not_finite_are_not_saved(finished, tmp_path, monkeypatch):
    base = RunDirectory(finished[0].path.parent / "digits-lenet5-standard-seed0")
    run = RunDirectory(tmp_path / "run")
    step = trainer.RobustClassifier.update

    def spoiled(self, data):
        terms = step(self, data)
        poison = trainer.tf.where(self.optimizer.iterations > 5, float("nan"), 0.0)
        bias = self.network.get_layer("conv1").bias
        bias.assign(bias + poison)  # After the losses of the second epoch's last step.
        return terms

    monkeypatch.setattr(trainer.RobustClassifier, "update", spoiled)
    with pytest.raises(TrainingError, match=r"conv1/bias became nan in epoch 2.*ckpt-1"):
        trainer.train(resolved(base_run=str(base.path)), run)
    assert not (run.checkpoints / "ckpt-2.index").exists()


def test_a_loss_that_is_not_finite_stops_and_names_the_checkpoint(finished, tmp_path, monkeypatch):
    base = RunDirectory(finished[0].path.parent / "digits-lenet5-standard-seed0")
    run = RunDirectory(tmp_path / "run")
    step = trainer.RobustClassifier.update
    calls = []

    def spoiled(self, data):
        terms = step(self, data)
        calls.append(1)  # once a trace: the first epoch is traced whole
        poison = trainer.tf.where(self.optimizer.iterations > 4, float("nan"), 0.0)
        return terms | {"ce_adversarial": terms["ce_adversarial"] + poison}

    monkeypatch.setattr(trainer.RobustClassifier, "update", spoiled)
    with pytest.raises(TrainingError) as error:
        trainer.train(resolved(base_run=str(base.path)), run)
    assert "ce_adversarial became nan in epoch 2, step 2" in str(error.value)
    assert str(run.checkpoints / "ckpt-1") in str(error.value)
    assert len(run.metrics()) == 1


# The average begins where the first update ends: gates that fall slowly leave it behind.
@pytest.mark.parametrize(("average", "gate_learning_rate"), [(0.0, 5.0), (0.999, 0.5)])
def test_collapsed_gates_stop_the_run(finished, tmp_path, average, gate_learning_rate):
    base = RunDirectory(finished[0].path.parent / "digits-lenet5-standard-seed0")
    chosen = resolved(
        base_run=str(base.path),
        beta=1e6,
        gate_learning_rate=gate_learning_rate,
        kl_warmup_epochs=0,
        kl_ramp_epochs=0,
        epochs=20,
        weight_average=average,
    )
    with pytest.raises(TrainingError, match=r"gates collapsed in epoch \d+.*--kl_warmup_epochs"):
        trainer.train(chosen, RunDirectory(tmp_path / "run"))


def test_published_defaults():
    by_dataset = {n: resolution.resolve({"dataset": n}) for n in defaults.BY_DATASET}
    mnist, cifar = by_dataset["mnist"], by_dataset["cifar100"]
    assert (mnist.epsilon, mnist.step_size, mnist.attack_steps) == (0.3, 0.01, 20)
    assert (mnist.beta, mnist.lambda_vs, mnist.epochs, mnist.batch_size) == (4.0, 1e-3, 200, 64)
    assert (cifar.epsilon, cifar.step_size, cifar.attack_steps) == (0.03, 0.007, 10)
    assert (cifar.beta, cifar.lambda_vs, cifar.decay_at) == (1.0, 0.1, (0.5, 0.8))
    assert by_dataset["cifar10"].beta == 2.0
    assert all(s.eval_attack_steps == 40 for n, s in by_dataset.items() if n != "digits")
