"""Every method through the same doors: trained, interrupted, continued, frozen, compacted."""

import itertools
import signal

import numpy as np
import pytest
import tensorflow as tf

from anpvs_tf.common import interruption
from anpvs_tf.common.errors import Interrupted
from anpvs_tf.methods.registry import METHODS
from anpvs_tf.pruning import compact
from anpvs_tf.pruning.frozen import FrozenNetwork
from anpvs_tf.runs import build, directory, resolution, settings
from anpvs_tf.runs.directory import RunDirectory
from anpvs_tf.runs.finished_run import open_run
from anpvs_tf.training import trainer

pytestmark = pytest.mark.usefixtures("tiny_lenet5")

# A few seconds each: enough to tell the methods from `standard`.
SHORT = {
    "dataset": "digits",
    "epochs": 3,
    "steps_per_epoch": 40,
    "batch_size": 32,
    "learning_rate": 0.005,
    "epsilon": 0.13,
    "step_size": 0.06,
    "attack_steps": 3,
    "epsilon_warmup_epochs": 0,
    "kl_warmup_epochs": 1,
    "kl_ramp_epochs": 1,
    "base_epochs": 2,
    "admm_epochs": 1,
    "lambda_vs": 1.0,
    "eval_attack_steps": 10,
}
# Two standard errors, at most, of the difference of two accuracies over the 359 test images.
MARGIN = 2 * (0.5 / 359) ** 0.5
# One for each thing that a checkpoint holds besides the network; the others go straight through.
INTERRUPTED = ("at_bnn", "admm", "pat", "anpvs_vib")


def short(method, **changes):
    given = {n: v for n, v in SHORT.items() if settings.used(METHODS[method], n)}
    return resolution.resolve(given | {"method": method} | changes)


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_lenet5):
    """Where the runs lie, with the standard run that others start from."""
    home = tmp_path_factory.mktemp("runs")
    chosen = short("standard", epochs=2)
    trainer.train(chosen, RunDirectory(home / directory.default_name(chosen)))
    return home


@pytest.mark.parametrize("method", [name for name in METHODS if name != "standard"])
def test_a_method_beats_standard_and_goes_through_every_door(home, method, monkeypatch):
    chosen = short(method)
    run = RunDirectory(home / directory.default_name(chosen))
    base = METHODS[method].base
    if base not in (None, "standard"):
        # Trained without interruption first; `train` would do the same.
        of_base = short(base)
        trainer.train(of_base, RunDirectory(home / directory.default_name(of_base)))

    if method in INTERRUPTED:  # Within the second epoch; then on from there.
        asked = itertools.count()
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr(interruption, "asked", lambda: signal.SIGTERM * (next(asked) in (40, 41)))
            trainer.train(chosen, run)
    (record,) = trainer.train(chosen, run)
    assert len(run.metrics()) == 3
    if METHODS[method].adversarial:
        (standard,) = RunDirectory(home / "digits-lenet5-standard-seed0").results()
        assert record["robust_accuracy"] > standard["robust_accuracy"] + MARGIN

    # The trained, the frozen and the compact network agree.
    network = open_run(run.path).network()
    images = tf.constant(np.random.default_rng(0).random((20, 28, 28, 1)), tf.float32)
    logits = network(images, training=False)["logits"].numpy()
    scale = np.abs(logits).max()
    np.testing.assert_allclose(FrozenNetwork(network)(images), logits, atol=1e-4 * scale)
    small = compact.freeze(network)
    np.testing.assert_allclose(small(images), logits, atol=1e-4 * scale)
    assert small.count_params() <= network.count_params()
    assert record["method"] == method


def test_pruning_without_an_adversary_does_not_make_robust(home):
    found = {}
    for method in ("bp", "at"):  # Trained by the test above, if it ran.
        chosen = short(method)
        run = RunDirectory(home / directory.default_name(chosen))
        (record,) = trainer.train(chosen, run)
        found[method] = record["robust_accuracy"]
    assert found["bp"] < found["at"] - MARGIN


@pytest.mark.parametrize("method", ["at_bnn", "admm", "trades_anpvs", "anpvs_vib"])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_step_in_mixed_precision(method, precision):
    chosen = short(method, precision=precision, awp=0.01, weight_average=0.5)
    network = build.build_network(chosen, settings.PRECISIONS[precision])
    pruning = build.weight_pruning(chosen, network) if method == "admm" else None
    objective = build.objective_of(chosen, 100, 10)
    classifier = trainer.RobustClassifier(network, METHODS[method], objective, pruning=pruning)
    classifier.compile(optimizer=build.make_optimizer(chosen, 10), jit_compile=False)
    classifier.optimizer.build(network.trainable_variables)
    images = tf.constant(np.random.default_rng(0).random((4, 28, 28, 1)), tf.float32)
    before = network.get_weights()
    for _ in range(2):
        terms = classifier.update((images, tf.constant([0, 1, 2, 3])))
    assert all(np.isfinite(float(value)) for value in terms.values())
    assert all(np.all(np.isfinite(w)) for w in classifier.deployed_weights())
    assert any(np.any(a != b) for a, b in zip(before, network.get_weights(), strict=True))
