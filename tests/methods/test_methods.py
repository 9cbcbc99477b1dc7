"""What distinguishes each method and option, against independent calculations."""

import dataclasses

import keras
import numpy as np
import pytest
import scipy.special
import tensorflow as tf

from anpvs_tf.attacks import pgd
from anpvs_tf.common import randomness
from anpvs_tf.common.errors import UsageError
from anpvs_tf.methods import losses
from anpvs_tf.methods.hyperparameters import Objective
from anpvs_tf.methods.optimizer import GroupedAdam
from anpvs_tf.methods.registry import METHODS
from anpvs_tf.methods.robust_classifier import RobustClassifier
from anpvs_tf.networks import architectures, bayesian
from anpvs_tf.runs import build, defaults, flag_help, resolution
from anpvs_tf.runs.directory import RunDirectory
from anpvs_tf.training import best_weights, trainer, warm_start

RNG = np.random.default_rng(0)
IMAGES = tf.constant(RNG.random((6, 16, 16, 1)), tf.float32)
LABELS = tf.constant([0, 1, 2, 3, 1, 0])
OBJECTIVE = Objective(
    epsilon=0.2, step_size=0.1, attack_steps=3, train_examples=50, lambda_vs=0.5, beta=2.0
)


def classifier_of(method, objective=OBJECTIVE, optimizer=None, **changes):
    row = dataclasses.replace(METHODS[method], **changes)
    network = architectures.lenet5((16, 16, 1), 4, row.gate, seed=1)
    classifier = RobustClassifier(network, row, objective, seed=5)
    classifier.compile(optimizer=optimizer or GroupedAdam(1e-3), jit_compile=False)
    classifier.optimizer.build(network.trainable_variables)
    return classifier


# ---- AT-BNN ----


def test_loss_of_at_bnn_by_hand():
    objective = dataclasses.replace(OBJECTIVE, kl_scale=0.25, adversarial_weight=2.0)
    network = bayesian.convert(architectures.lenet5((16, 16, 1), 4, seed=1), 0.5, -1.0)
    classifier = RobustClassifier(network, METHODS["at_bnn"], objective)
    logits = RNG.normal(size=(12, 4)).astype(np.float32)
    loss, gate_loss, terms = classifier.loss_terms({"logits": tf.constant(logits)}, LABELS)
    log_p = scipy.special.log_softmax(logits, axis=1)[np.arange(12), np.tile(LABELS, 2)]
    # Of every mean and rho: log(s / sigma) + (sigma^2 + mean^2) / 2 s^2 - 1/2, with s = 0.5.
    sigma, kl, decay = np.log1p(np.exp(-1.0)), 0.0, 0.0
    for layer in bayesian.layers_of(network):
        means = [v.numpy().astype(np.float64) for v in layer.trainable_variables[:2]]
        for mean in means:
            kl += (np.log(0.5 / sigma) + (sigma**2 + mean**2) / 0.5 - 0.5).sum()
        decay += 1e-4 * (means[0] ** 2).sum() / 2
    expected = -(log_p[:6].mean() + 2 * log_p[6:].mean()) / 3 + 0.25 * kl / 50 + decay
    assert float(terms["kl"]) == pytest.approx(kl, rel=1e-4)
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    assert gate_loss is None


# ---- TRADES ----


def test_prediction_shift_is_the_kl_divergence_of_the_softmaxes():
    clean, moved = RNG.normal(size=(2, 5, 7)) * 3
    p, q = scipy.special.softmax(clean, axis=1), scipy.special.softmax(moved, axis=1)
    expected = scipy.special.rel_entr(p, q).sum(axis=1).mean()
    assert float(losses.prediction_shift(clean, moved)) == pytest.approx(expected, rel=1e-5)
    extreme = losses.prediction_shift(tf.constant([[1e4, -1e4]]), tf.constant([[0.0, 50.0]]))
    assert float(extreme) == pytest.approx(50.0)


def test_loss_of_trades_by_hand():
    classifier = classifier_of("trades", dataclasses.replace(OBJECTIVE, trades_beta=3.0))
    logits = RNG.normal(size=(12, 4)).astype(np.float32)
    loss, gate_loss, terms = classifier.loss_terms({"logits": tf.constant(logits)}, LABELS)
    p, q = scipy.special.softmax(logits[:6], axis=1), scipy.special.softmax(logits[6:], axis=1)
    ce = -np.log(p[np.arange(6), LABELS]).mean()
    kernels = [w.numpy() for w in classifier.network.trainable_variables if len(w.shape) > 1]
    decay = 1e-4 * sum((k.astype(np.float64) ** 2).sum() for k in kernels) / 2
    expected = ce + 3.0 * scipy.special.rel_entr(p, q).sum(axis=1).mean() + decay
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert gate_loss is None
    assert "prediction_shift" in terms


def test_crafting_of_trades_leaves_the_clean_image_and_moves_the_prediction_most():
    objective = dataclasses.replace(OBJECTIVE, attack_steps=10, step_size=0.05)
    trades, at = classifier_of("trades", objective), classifier_of("at", objective)
    seed = randomness.seed_of(3)
    shift = {}
    for name, classifier in (("trades", trades), ("at", at)):
        crafted = classifier.craft(IMAGES, LABELS, seed)
        assert float(tf.reduce_max(tf.abs(crafted - IMAGES))) <= 0.2 + 1e-6
        shift[name] = losses.prediction_shift(
            trades(IMAGES, training=False), trades(crafted, training=False)
        )
    assert float(shift["trades"]) > float(shift["at"])
    one_step = classifier_of(
        "trades", dataclasses.replace(OBJECTIVE, attack_steps=1, step_size=1e-9)
    ).craft(IMAGES, LABELS, seed)
    started = (one_step - IMAGES).numpy()
    inside = (IMAGES.numpy() > 0.01) & (IMAGES.numpy() < 0.99)
    # A normal start of deviation 0.001, within four standard errors of a deviation.
    n = inside.sum()
    assert started[inside].std() == pytest.approx(1e-3, rel=4 / np.sqrt(2 * n))


def test_anpvs_with_the_loss_of_trades_has_both():
    classifier = classifier_of("trades_anpvs")
    terms = {name: float(value) for name, value in classifier.update((IMAGES, LABELS)).items()}
    expected = terms["ce_clean"] + 6 * terms["prediction_shift"] + 0.5 * terms["vulnerability"]
    assert terms["loss"] == pytest.approx(expected + terms["weight_decay"], rel=1e-5)
    assert terms["kl"] > 0


# ---- Gates: frozen, and betas by layer ----


def test_pat_never_changes_its_mask_and_trains_its_weights():
    classifier = classifier_of("pat", optimizer=GroupedAdam(1e-2))
    gates = classifier.gates
    gates[0].a_raw.assign(np.where(np.arange(20) < 15, -10.0, 1.0))
    masks = [gate.mean_mask().numpy() for gate in gates]
    kernel = classifier.network.get_layer("conv2").kernel.numpy()
    assert classifier.begin_epoch(1)  # Crafting leaves out what is pruned.
    seen = []
    gates[0].sample_mask = lambda *_: seen.append(1)
    for _ in range(3):
        terms = classifier.update((IMAGES, LABELS))
    assert "kl" not in terms
    assert not seen
    for gate, mask in zip(gates, masks, strict=True):
        np.testing.assert_array_equal(gate.mean_mask(), mask)
    assert np.abs(classifier.network.get_layer("conv2").kernel - kernel).max() > 1e-3


def test_a_layer_takes_its_own_beta():
    plain = classifier_of("anp")
    own = classifier_of("anp", dataclasses.replace(OBJECTIVE, layer_beta={"conv1": 7.0}))
    kls = {gate.name: float(gate.kl()) for gate in plain.gates}
    expected = 2.0 * sum(kls.values()) + (7.0 - 2.0) * kls["conv1_gate"]
    assert float(own.weighted_kl()) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(UsageError, match="names layer 'conv9'; lenet5 has gates at conv1, conv2"):
        classifier_of("anp", dataclasses.replace(OBJECTIVE, layer_beta={"conv9": 7.0}))


# ---- Averages of weights ----


def test_the_average_of_weights_equals_its_closed_form():
    classifier = classifier_of("anpvs", optimizer=GroupedAdam(1e-2, average=0.7))
    history = []
    for _ in range(4):
        classifier.update((IMAGES, LABELS))
        history.append(classifier.network.get_weights())
    shares = [0.7**3, 0.3 * 0.7**2, 0.3 * 0.7, 0.3]
    for i, found in enumerate(classifier.deployed_weights()):
        expected = sum(s * w[i].astype(np.float64) for s, w in zip(shares, history, strict=True))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    assert any(v.name.startswith("gate_") for v in classifier.network.trainable_variables)


def test_batch_statistics_are_averaged_with_the_weights():
    network = keras.Sequential(
        [keras.Input((4,)), keras.layers.BatchNormalization(), keras.layers.Dense(2, name="logits")]
    )
    network = keras.Model(network.inputs, {"logits": network.outputs[0]})
    classifier = RobustClassifier(network, METHODS["standard"], OBJECTIVE)
    classifier.compile(optimizer=GroupedAdam(1e-2, average=0.7), jit_compile=False)
    classifier.optimizer.build(network.trainable_variables)
    history = []
    for _ in range(3):
        inputs = tf.constant(RNG.normal(2, 1, (8, 4)), tf.float32)
        classifier.update((inputs, tf.constant([0, 1] * 4)))
        history.append([w.numpy() for w in network.weights])
    shares = [0.7**2, 0.3 * 0.7, 0.3]
    for i, found in enumerate(classifier.deployed_weights()):
        expected = sum(s * w[i].astype(np.float64) for s, w in zip(shares, history, strict=True))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    assert len([n for n in classifier.state() if n.startswith("average_")]) == 2


# ---- Adversarial weight perturbation ----


def awp_classifier(awp, **changes):
    objective = dataclasses.replace(OBJECTIVE, awp=awp, attack_steps=1)
    return classifier_of("at", objective, optimizer=keras.optimizers.SGD(1.0), **changes)


def test_weight_perturbation_has_its_norm_and_leaves_nothing_behind():
    classifier = awp_classifier(0.05)
    before = classifier.network.get_weights()
    both = tf.concat([IMAGES, IMAGES + 0.01], axis=0)
    shifts = classifier._perturbed_kernels(both, LABELS, (randomness.seed_of(1), 2))
    assert [v.path for v, _ in shifts] == [
        f"{name}/kernel" for name in ("conv1", "conv2", "dense1", "logits")
    ]
    for kernel, shift in shifts:
        ratio = np.linalg.norm(shift) / np.linalg.norm(kernel)
        assert ratio == pytest.approx(0.05, rel=1e-4)
    for a, b in zip(before, classifier.network.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_update_with_weight_perturbation_is_the_gradient_there_applied_here():
    classifier = awp_classifier(0.05)
    network = classifier.network
    seed = randomness.seed_of(5, 0, 0)
    crafted = classifier.craft(IMAGES, LABELS, randomness.fold(seed, "attack"))
    both = tf.concat([IMAGES, crafted], axis=0)
    scope = (randomness.fold(seed, "network"), 2)
    shifts = classifier._perturbed_kernels(both, LABELS, scope)
    before = [v.numpy() for v in network.trainable_variables]
    # By hand: write the perturbed kernels, take the gradient, write the old ones back.
    for kernel, shift in shifts:
        kernel.assign_add(shift)
    with tf.GradientTape() as tape, randomness.scope(*scope):
        loss, _, terms = classifier.loss_terms(network(both, training=True), LABELS)
        # Weight decay is that of the weights themselves.
        loss -= terms["weight_decay"]
    gradients = tape.gradient(loss, [v.value for v in network.trainable_variables])
    for variable, value in zip(network.trainable_variables, before, strict=True):
        variable.assign(value)
    terms = classifier.update((IMAGES, LABELS))
    expected = float(loss) + float(terms["weight_decay"])
    assert float(terms["loss"]) == pytest.approx(expected, rel=1e-6)
    for variable, value, gradient in zip(
        network.trainable_variables, before, gradients, strict=True
    ):
        gradient += 1e-4 * value if value.ndim > 1 else 0.0
        np.testing.assert_allclose(variable, value - gradient, rtol=1e-4, atol=1e-5)
    # The perturbation ascends: the loss is higher than without it.
    plain = awp_classifier(0.0).update((IMAGES, LABELS))
    assert float(terms["loss"]) > float(plain["loss"])


# ---- The best epoch ----


def test_the_best_epoch_is_kept_and_warm_ups_do_not_count():
    network = architectures.lenet5((16, 16, 1), 4)
    best = best_weights.Best(network, first_epoch=2)
    bias = network.get_layer("logits").bias
    for epoch, accuracy in enumerate([0.9, 0.5, 0.7, 0.7, 0.6], start=1):
        bias.assign([epoch] * 4)
        best.offer(epoch, accuracy)
    best.restore()
    assert int(best.epoch) == 4
    np.testing.assert_array_equal(bias, [4.0] * 4)


def test_the_first_epoch_that_counts():
    def first(**changes):
        return build.first_selectable_epoch(resolution.resolve({"dataset": "digits"} | changes))

    assert first(method="standard") == 1
    assert first(method="at", epsilon_warmup_epochs=3) == 4
    ramp = {"method": "anpvs", "beta": 1.5, "kl_warmup_epochs": 4, "kl_ramp_epochs": 5}
    assert first(**ramp) == 10
    assert first(**ramp, epochs=6) == 6


# ---- The table and the flags ----


def test_a_flag_that_the_method_does_not_use_is_refused_and_says_who_does():
    for method, name, value, users in (
        ("at", "beta", 2.0, "bp, pat, anp, anpvs"),
        ("standard", "awp", 0.01, "at, at_bnn"),
        ("anp", "lambda_vs", 1.0, "at_vs, anpvs"),
        ("anpvs", "trades_beta", 1.0, "trades, trades_anpvs"),
        ("trades", "adversarial_weight", 1.0, "at, at_bnn"),
        ("at", "base_epochs", 1, "bp, pretrained_at"),
    ):
        with pytest.raises(UsageError) as error:
            resolution.resolve({"method": method, name: value})
        assert f"--{name} is not used by --method={method}; methods" in str(error.value)
        assert users in str(error.value)
    # PAT does not learn gates, but its base run does.
    assert resolution.resolve({"method": "pat", "beta": 2.0}).beta == 2.0


def test_every_method_resolves_on_every_dataset_and_is_in_the_help():
    text = flag_help.describe_methods()
    for name, method in METHODS.items():
        assert f"{name}: {method.summary} ({method.source})" in text
        for dataset in defaults.BY_DATASET:
            assert resolution.resolve({"dataset": dataset, "method": name}).method == name


def test_a_target_takes_the_place_of_beta():
    wanted = {"dataset": "digits", "method": "anpvs", "target_sparsity": 0.5}
    with pytest.raises(UsageError, match="--target_sparsity steers beta"):
        resolution.resolve(wanted | {"beta": 1.0})
    fast = {"dataset": "cifar10", "method": "anpvs"}
    assert resolution.resolve(fast, "fast").target_sparsity == 0.5
    assert resolution.resolve(fast | {"beta": 1.0}, "fast").target_sparsity is None
    base = warm_start.base_settings(resolution.resolve(wanted | {"method": "pat"}))
    assert base.target_sparsity == 0.5 and base.method == "bp"
    steps = build.objective_of(resolution.resolve(wanted | {"epochs": 20}), 100, 10).target_steps
    assert steps == (40, 100, 150)
    assert build.first_selectable_epoch(resolution.resolve(wanted | {"epochs": 20})) == 16


def test_gates_are_frozen_at_a_share_of_the_steps():
    wanted = {"dataset": "cifar10", "method": "anpvs"}
    fast = resolution.resolve(wanted, "fast")
    assert build.objective_of(fast, 100, 10).freeze_gates_step == 240  # 80 % of 30 epochs.
    assert build.make_optimizer(fast, 300).gates_until == 240
    published = resolution.resolve(wanted)
    assert build.objective_of(published, 100, 10).freeze_gates_step is None
    assert build.make_optimizer(published, 300).gates_until is None
    with pytest.raises(UsageError, match=r"is to be reached; give 0\.6 or more, or an earlier --"):
        resolution.resolve(wanted | {"freeze_gates_at": 0.5}, "fast")
    with pytest.raises(UsageError, match=r"at=0\.8 would hold .*; give 0\.9 or more"):
        resolution.resolve(wanted | {"target_at": 0.9}, "fast")
    short = resolution.resolve(wanted | {"epochs": 1}, "fast")  # Its warm-up takes three.
    assert build.objective_of(short, 100, 10).target_steps == (30, 31, 31)
    # Held gates are pruned no more.
    assert build.objective_of(fast, 100, 10).target_steps == (30, 180, 240)
    early = resolution.resolve(wanted | {"freeze_gates_at": 0.7}, "fast")
    assert build.objective_of(early, 100, 10).target_steps == (30, 180, 210)
    # Without a target nothing has to be reached, and a method without gates has none to hold.
    assert resolution.resolve(wanted | {"freeze_gates_at": 0.2}).freeze_gates_at == 0.2


@pytest.mark.parametrize(("asked", "kept"), [(0.0, 0), (0.25, 13), (3.0, 3), (1000.0, 50)])
def test_a_floor_of_active_features(asked, kept):
    chosen = resolution.resolve({"dataset": "digits", "method": "anpvs", "min_active": asked})
    network = build.build_network(chosen, "float32")
    assert network.get_layer("conv2_gate").min_active == kept
    with pytest.raises(UsageError, match="whole number of features"):
        resolution.resolve({"dataset": "digits", "method": "anpvs", "min_active": 1.5})


def test_other_norms_have_their_own_threat_model():
    chosen = resolution.resolve({"dataset": "mnist", "method": "at", "norm": "l2"})
    assert (chosen.epsilon, chosen.attack_steps) == (2.0, 20)
    assert chosen.step_size == pytest.approx(0.25)
    given = resolution.resolve({"method": "at", "norm": "l2", "epsilon": 1.5, "step_size": 0.2})
    assert (given.epsilon, given.step_size) == (1.5, 0.2)
    classifier = classifier_of("at", dataclasses.replace(OBJECTIVE, norm="l2", epsilon=0.7))
    crafted = classifier.craft(IMAGES, LABELS, randomness.seed_of(1))
    lengths = np.linalg.norm(np.reshape(crafted - IMAGES, [6, -1]), axis=1)
    assert lengths.max() <= 0.7 + 1e-5
    assert np.abs(crafted - IMAGES).max() > 0.03


@pytest.mark.parametrize("text", ["conv1", "conv1=", "=2", "conv1=x", "conv1=-1", "conv1=inf"])
def test_betas_by_layer_that_cannot_be_read(text):
    with pytest.raises(UsageError, match="--layer_beta must be layer=factor"):
        resolution.resolve({"method": "anp", "layer_beta": [text]})


def test_a_beta_of_a_layer_that_is_not_there_is_refused_before_a_base_is_trained(tmp_path):
    with pytest.raises(UsageError, match="'conv1' twice"):
        resolution.resolve({"method": "anp", "layer_beta": ["conv1=1", "conv1=2"]})
    chosen = resolution.resolve({"method": "anp", "layer_beta": ["conv9=1"]})
    with pytest.raises(UsageError, match=r"'conv9'; .*conv1, conv2"):
        trainer.train(chosen, RunDirectory(tmp_path / "runs/run"))
    assert not list(tmp_path.glob("runs/*"))


def test_bases_of_bases(tmp_path):
    pat = resolution.resolve({"method": "pat", "epochs": 5, "base_epochs": 2, "beta": 3.0})
    bp = warm_start.base_settings(pat)
    assert (bp.method, bp.epochs, bp.base_epochs, bp.beta) == ("bp", 5, 2, 3.0)
    assert bp == resolution.resolve({"method": "bp", "epochs": 5, "base_epochs": 2, "beta": 3.0})
    standard = warm_start.base_settings(bp)
    assert (standard.method, standard.epochs) == ("standard", 2)
    # A base without the gates that PAT freezes.
    run = RunDirectory(tmp_path / "at")
    run.begin(resolution.resolve({"method": "at"}), [])
    chosen = resolution.resolve({"method": "pat", "base_run": str(run.path)})
    with pytest.raises(UsageError, match="gate kind None, this run needs beta_bernoulli"):
        warm_start.base_run(chosen, RunDirectory(tmp_path / "run"))


def test_a_base_of_no_epochs_is_none(tmp_path):
    run = RunDirectory(tmp_path / "run")
    chosen = {"dataset": "digits", "base_epochs": 0}
    for method in ("anpvs", "bp", "trades_anpvs"):
        assert warm_start.base_run(resolution.resolve(chosen | {"method": method}), run) is None
    bp = warm_start.base_run(resolution.resolve(chosen | {"method": "pat"}), run)
    assert bp.path.name == "digits-lenet5-bp-seed0"
    with pytest.raises(UsageError, match=r"pretrained_at begins with a trained network"):
        warm_start.base_run(resolution.resolve(chosen | {"method": "pretrained_at"}), run)


def test_the_head_is_new_where_the_classes_differ():
    source = architectures.lenet5((16, 16, 1), 4, seed=1)
    target = architectures.lenet5((16, 16, 1), 7, seed=2)
    head = target.get_layer("logits").kernel.numpy()
    warm_start.copy_weights(source, target)
    np.testing.assert_array_equal(target.get_layer("logits").kernel, head)
    for name in ("conv1", "conv2", "dense1"):
        np.testing.assert_array_equal(
            target.get_layer(name).kernel, source.get_layer(name).kernel, name
        )


def test_pgd_starts_where_it_is_told():
    start = tf.clip_by_value(IMAGES + 0.5, 0.0, 1.0)
    found = pgd(
        lambda x: tf.reduce_sum(x, axis=[1, 2]) @ tf.zeros([1, 4]),
        IMAGES,
        LABELS,
        randomness.seed_of(0),
        epsilon=0.1,
        step_size=0.05,
        steps=2,
        start=start,
    )
    np.testing.assert_allclose(found, tf.minimum(IMAGES + 0.1, 1.0), atol=1e-6)
