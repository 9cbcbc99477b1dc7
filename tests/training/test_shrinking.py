"""The smaller training network against the whole one."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from gate_states import KINDS, set_certain
from small_networks import NETWORKS, logits_and_gradient, randomise

from anpvs_tf.methods.hyperparameters import Objective
from anpvs_tf.methods.optimizer import GroupedAdam
from anpvs_tf.methods.registry import METHODS
from anpvs_tf.methods.robust_classifier import RobustClassifier
from anpvs_tf.networks import architectures
from anpvs_tf.networks.gate import gates_of
from anpvs_tf.networks.gating import GATE_KINDS
from anpvs_tf.runs import build, resolution
from anpvs_tf.runs.directory import RunDirectory
from anpvs_tf.runs.finished_run import open_run
from anpvs_tf.training import shrinking, trainer

layers = keras.layers


def with_latents(network):
    """The network with a dict of outputs: the logits and what every gate makes."""
    if isinstance(network.output, dict):
        return network
    latents = {gate.name: gate.output for gate in gates_of(network)}
    return keras.Model(network.inputs, {"logits": network.outputs[0], **latents})


def plain(kind="beta_bernoulli"):
    """Batch normalisation, pooling, flatten, gates; no dropout, whose draws have a shape."""
    gate = GATE_KINDS[kind]
    images = x = keras.Input((8, 8, 3))
    for i, filters in enumerate((6, 9)):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"conv{i}")(x)
        x = layers.ReLU()(layers.BatchNormalization(name=f"bn{i}")(x))
        x = gate(name=f"gate{i}")(x)
        x = layers.MaxPooling2D()(x)
    x = gate(name="flatten_gate")(layers.Flatten()(x))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Dense(20, use_bias=False)(x)))
    x = gate(name="dense_gate")(x)
    return with_latents(keras.Model(images, layers.Dense(4, name="logits")(x)))


def pruned(network):
    return {gate.name: np.asarray(gate.mean_mask()) == 0 for gate in gates_of(network)}


@pytest.mark.parametrize(
    ("name", "share", "kind"),
    [
        *((name, share, KINDS[0]) for name in NETWORKS for share in (0.3, 0.9)),
        ("vgg16", 0.6, KINDS[0]),
        ("resnet18", 0.6, KINDS[0]),
        *((name, 0.6, kind) for name in NETWORKS for kind in KINDS[1:]),
    ],
)
def test_computes_what_the_whole_network_computes(name, share, kind):
    rng = np.random.default_rng(3)
    if name in NETWORKS:
        network = with_latents(NETWORKS[name](kind))
    else:
        network = architectures.NETWORKS[name]((32, 32, 3), 10, kind)
    randomise(network, share, rng)
    shrunk = shrinking.shrink(network, pruned(network))
    # The gates of `residual` sit where a sum or a normalisation needs every channel.
    before, after = network.count_params(), shrunk.network.count_params()
    assert after == before if name == "residual" else after < (1 - share / 3) * before
    images = tf.constant(rng.random((3, *network.inputs[0].shape[1:])), tf.float32)
    found, expected = (
        logits_and_gradient(lambda x, n=n: n(x, training=False), images)
        for n in (shrunk.network, network)
    )
    for f, e in zip(found, expected, strict=True):
        assert np.abs(f - e).max() <= 1e-5 * np.abs(e).max()
    for gate in gates_of(network):
        # As `Removal` does: what nobody needs leaves too, though its gate was open.
        gate.close(~np.isin(np.arange(gate.features), shrunk.gates[gate.name]))
    full, small = network(images, training=False), shrunk.network(images, training=False)
    for key, value in small.items():
        assert value.shape[-1] == round(shrunk.shares[key] * full[key].shape[-1])
    # What left a latent layer was 0, so the sums over its features agree.
    gated = [gate.name for gate in gates_of(network) if gate.name in full]
    for key in gated:
        np.testing.assert_allclose(
            tf.reduce_sum(small[key], -1), tf.reduce_sum(full[key], -1), rtol=1e-3, atol=1e-4
        )


def test_widths_of_lenet_by_hand():
    network = architectures.lenet5((28, 28, 1), 10, "beta_bernoulli")
    removed = {}
    for gate, kept in zip(gates_of(network), (5, 10, 800, 40), strict=True):
        removed[gate.name] = np.arange(gate.features) >= kept
    # Of the flattened map only every other channel; a channel goes when all its places go.
    removed["flatten_gate"] = np.arange(800) % 50 % 2 == 1
    removed["flatten_gate"][0] = True
    small = shrinking.shrink(network, removed).network
    shapes = [tuple(v.shape) for v in small.trainable_variables if v.ndim > 1]
    assert shapes == [(5, 5, 1, 5), (5, 5, 5, 5), (80, 40), (40, 10)]


def test_a_gate_keeps_its_most_probable_feature():
    network = architectures.lenet5((28, 28, 1), 10, "beta_bernoulli")
    gate = network.get_layer("dense1_gate")
    gate.a_raw.assign(np.where(np.arange(500) == 77, 1.0, -1.0))
    removed = {g.name: np.zeros(g.features, bool) for g in gates_of(network)}
    removed["dense1_gate"][:] = True
    np.testing.assert_array_equal(shrinking.shrink(network, removed).gates["dense1_gate"], [77])


def classifier_of(network, shares=None):
    objective = Objective(
        epsilon=0.2, step_size=0.1, attack_steps=2, train_examples=100, lambda_vs=0.7
    )
    made = RobustClassifier(network, METHODS["anpvs"], objective, 5, shares)
    made.compile(optimizer=GroupedAdam(1e-3, 0.0), jit_compile=False)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_is_the_whole_networks_update(kind):
    rng = np.random.default_rng(0)
    network = plain(kind)
    randomise(network, 0.0, rng)
    for gate in gates_of(network):
        shut = rng.random(gate.features) < 0.5
        shut[0] = False
        set_certain(gate, ~shut)
    whole = classifier_of(network)
    whole.optimizer.build(network.trainable_variables)
    batch = tf.constant(rng.random((8, 8, 8, 3)), tf.float32), tf.constant(np.arange(8) % 4)
    whole.train_step(batch)  # So that the moments are not zero.
    removal = shrinking.Removal(network)
    removal.observe(removal.network)
    assert removal.advance(1)
    small, pairs = shrinking.working_copy(whole, removal, classifier_of)
    assert small.network.count_params() < 0.5 * network.count_params()
    assert int(small.optimizer.iterations) == 1
    for _ in range(2):
        expected, found = whole.train_step(batch), small.train_step(batch)
    # The whole network's means go over one step more.
    for name in ("ce_clean", "ce_adversarial", "vulnerability"):
        assert np.isfinite(float(expected[name])) and float(found[name]) > 0
    for pair in pairs:
        wanted = np.asarray(pair.full)
        if pair.places is not None:
            wanted = wanted[np.ix_(*pair.places)]
        if wanted.dtype == bool:
            continue
        np.testing.assert_allclose(
            np.asarray(pair.small), wanted, rtol=1e-4, atol=2e-5, err_msg=str(pair.full.name)
        )


def test_storing_changes_what_is_there_and_nothing_else():
    network = plain()
    rng = np.random.default_rng(1)
    randomise(network, 0.5, rng)
    shrunk = shrinking.shrink(network, pruned(network))
    before = [w.numpy() for w in network.weights]
    for pair in shrunk.pairs:
        pair.store()
    for weight, held in zip(network.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), held)
    for pair in shrunk.pairs:
        pair.small.assign(np.asarray(pair.small) + 1)
        pair.store()
    for pair in shrunk.pairs:
        np.testing.assert_array_equal(
            np.asarray(pair.full)[np.ix_(*pair.places)], np.asarray(pair.small)
        )
    changed = sum(
        np.count_nonzero(w.numpy() != b) for w, b in zip(network.weights, before, strict=True)
    )
    assert changed == shrunk.network.count_params()


def test_features_leave_after_so_many_epochs_in_a_row():
    network = architectures.lenet5((28, 28, 1), 10, "beta_bernoulli")
    removal = shrinking.Removal(network)
    gate = network.get_layer("conv2_gate")

    def shut(features):
        gate.a_raw.assign(np.where(np.isin(np.arange(50), features), -10.0, 1.0))
        removal.observe(removal.network)

    shut(range(30))
    assert not removal.advance(2)
    shut(range(10, 40))  # 0 to 9 are open again.
    assert removal.advance(2)
    np.testing.assert_array_equal(
        removal.shrunk().gates["conv2_gate"], [*range(10), *range(30, 50)]
    )
    # What only they made is gone and counted as pruned.
    flattened = np.asarray(network.get_layer("flatten_gate").mean_mask()) == 0
    np.testing.assert_array_equal(flattened, np.isin(np.arange(800) % 50, range(10, 30)))
    shut(range(10, 31))
    shut(range(10, 31))  # One channel more would not pay.
    assert not removal.advance(2)
    assert len(removal.shrunk().gates["conv2_gate"]) == 30


def half_closed(monkeypatch):
    """Networks of runs begin with the second half of every gate closed."""
    unchanged = build.build_network

    def built(*given):
        network = unchanged(*given)
        for gate in gates_of(network):
            gate.close(np.arange(gate.features) >= gate.features // 2)
        return network

    monkeypatch.setattr(build, "build_network", built)


def test_a_run_shrinks_and_an_interruption_changes_nothing(tmp_path, monkeypatch, tiny_lenet5):
    half_closed(monkeypatch)
    chosen = resolution.resolve(
        {
            "dataset": "digits",
            "epochs": 3,
            "base_epochs": 1,
            "steps_per_epoch": 3,
            "eval_examples": 40,
            "attack_steps": 2,
            "eval_attack_steps": 3,
            "gate_learning_rate": 1e-3,
            "shrink": True,
            "shrink_after": 1,
        }
    )
    sizes = []
    step = trainer.RobustClassifier.update

    def watched(self, data):
        sizes.append(self.network.count_params())
        return step(self, data)

    monkeypatch.setattr(trainer.RobustClassifier, "update", watched)
    run, again = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "again")
    trainer.train(chosen, run)
    assert sizes[-1] < 0.6 * sizes[0]
    (record,) = run.results()
    assert 0.45 < record["sparsity"] < 0.55
    assert record["active_features"]["conv1"] == [10, 20]
    # What is saved is the whole network: what stayed was trained, what left was not.
    network = open_run(run.path).network()
    start = open_run(tmp_path / "digits-lenet5-standard-seed0").network()
    moved = network.get_layer("conv1").kernel.numpy() != start.get_layer("conv1").kernel.numpy()
    assert moved[..., :10].all()

    save = trainer.Checkpoints.save

    def interrupted(self):
        save(self)
        if self.position.epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Checkpoints, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trainer.train(chosen, again)
    trainer.train(chosen, again)
    assert run.metrics() == again.metrics()
    for one, other in zip(network.weights, open_run(again.path).network().weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())
