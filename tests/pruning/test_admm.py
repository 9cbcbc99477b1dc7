"""ADMM pruning: projections, updates by hand, a problem with a known optimum, retraining."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from anpvs_tf.common.errors import UsageError
from anpvs_tf.methods.hyperparameters import Objective
from anpvs_tf.methods.optimizer import GroupedAdam
from anpvs_tf.methods.registry import METHODS
from anpvs_tf.methods.robust_classifier import RobustClassifier
from anpvs_tf.networks import architectures
from anpvs_tf.pruning import admm, names
from anpvs_tf.pruning.admm import WeightPruning

layers = keras.layers
RNG = np.random.default_rng(0)
IMAGES = tf.constant(RNG.random((8, 16, 16, 1), np.float32))
LABELS = tf.constant(np.arange(8) % 4)


def units_of(shape, structure):
    """Index lists of the units, each an array of flat indices."""
    flat = np.arange(np.prod(shape)).reshape(-1, shape[-1])
    if structure == "irregular":
        return [[i] for i in flat.ravel()]
    return list(flat if structure == "column" else flat.T)


@pytest.mark.parametrize("structure", names.STRUCTURES)
@pytest.mark.parametrize("shape", [(1, 3, 2, 4), (5, 3)])
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.8])
def test_projection_is_the_nearest_of_all_kernels_as_sparse(structure, shape, ratio):
    if structure == "irregular" and len(shape) == 4:
        shape = (1, 2, 2, 3)
    kernel = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    units = units_of(shape, structure)
    removed = round(ratio * len(units))
    losses = []
    for choice in itertools.combinations(units, removed):
        found = kernel.ravel().copy()
        found[np.concatenate([*choice, []]).astype(int)] = 0.0
        losses.append((np.sum((found - kernel.ravel()) ** 2), found))
    nearest = min(losses, key=lambda pair: pair[0])[1]
    mask = admm.kept(kernel, ratio, structure)
    np.testing.assert_array_equal((kernel * mask).ravel(), nearest)
    assert mask.ndim == len(shape)
    assert np.count_nonzero(~mask) == removed


def test_of_equal_units_the_first_go():
    kernel = np.full((40, 50), -0.1, np.float32)
    mask = admm.kept(kernel, 0.35, "irregular").ravel().tolist()
    assert mask == [False] * 700 + [True] * 1300
    assert admm.kept(kernel, 0.4, "filter").tolist() == [[False] * 20 + [True] * 30]


def pruning(network, ratio=0.5, structure="irregular", **schedule):
    schedule = {"admm_epochs": 2, "interval": 1, "rho": 0.1, "rho_growth": 2.0} | schedule
    return WeightPruning(network, ratio, structure, **schedule)


def linear_network(features, **dense):
    """x -> x W, with logits that pass it on."""
    x = keras.Input([features])
    y = layers.Dense(1, use_bias=False, name="w", **dense)(x)
    logits = layers.Dense(1, use_bias=False, kernel_initializer="ones", trainable=False)(y)
    return keras.Model(x, {"logits": logits})


def adam(network):
    optimizer = GroupedAdam(1e-2)
    optimizer.build(network.trainable_variables)
    return optimizer


def test_updates_by_hand():
    network = linear_network(4)
    kernel, optimizer = network.get_layer("w").kernel, adam(network)
    constraint = pruning(network, rho=0.5, interval=2, admm_epochs=5)

    def now(name):
        return constraint.state()[f"w_{name}"].numpy().ravel().tolist()

    kernel.assign([[4.0], [-3.0], [2.0], [1.0]])
    assert not constraint.begin_epoch(1, optimizer)
    assert (now("z"), now("u")) == ([4, -3, 0, 0], [0, 0, 0, 0])
    assert float(constraint.penalty()) == 0.5 / 2 * (4 + 1)
    # Not yet: the interval is two epochs.
    kernel.assign([[4.0], [-3.0], [3.5], [1.0]])
    constraint.begin_epoch(2, optimizer)
    assert now("z") == [4, -3, 0, 0]
    # W + U = (4, -3, 3.5, 1); Z keeps two; U + W - Z = (0, -3, 0, 1), halved as rho doubles.
    constraint.begin_epoch(3, optimizer)
    assert (now("z"), now("u")) == ([4, 0, 3.5, 0], [0, -1.5, 0, 0.5])
    assert float(constraint.rho) == 1.0
    # W - Z + U = (0, -4.5, 0, 1.5).
    assert float(constraint.penalty()) == 1.0 / 2 * (20.25 + 2.25)
    # W + U = (4, -4.5, 3.5, 1.5): the dual variable brings the second one back.
    constraint.begin_epoch(5, optimizer)
    assert (now("z"), now("u")) == ([4, -4.5, 0, 0], [0, 0, 1.75, 0.75])
    # The cut is by W alone.
    assert constraint.begin_epoch(6, optimizer)
    assert kernel.numpy().ravel().tolist() == [4, 0, 3.5, 0]
    assert now("mask") == [True, False, True, False]
    assert float(constraint.penalty()) == 0.0


def least_squares(seed):
    """(A, b) with six correlated columns."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(60, 2)) @ rng.normal(size=(2, 6)) + 0.5 * rng.normal(size=(60, 6))
    b = a @ rng.normal(size=6) + 0.5 * rng.normal(size=60)
    return a / np.sqrt(60), b / np.sqrt(60)


def best_loss(a, b, support):
    w = np.linalg.lstsq(a[:, support], b, rcond=None)[0]
    return np.sum((a[:, support] @ w - b) ** 2) / 2


def test_approaches_the_sparse_optimum_of_least_squares():
    """Two of six columns; the largest weights of the dense solution are often the wrong two."""
    network = linear_network(6)
    kernel, optimizer = network.get_layer("w").kernel, adam(network)
    naive, found = [], []
    for seed in range(8):
        a, b = least_squares(seed)
        best = min(best_loss(a, b, list(s)) for s in itertools.combinations(range(6), 2))
        w = np.linalg.lstsq(a, b, rcond=None)[0]
        naive.append(best_loss(a, b, np.argsort(np.abs(w))[-2:]) - best)
        constraint = pruning(network, 4 / 6, rho=0.1, rho_growth=1.1, admm_epochs=50)
        for epoch in range(1, 51):
            kernel.assign(w[:, np.newaxis])
            constraint.begin_epoch(epoch, optimizer)
            # The W-step in closed form: (A'A + rho I) W = A'b + rho (Z - U).
            rho = float(constraint.rho)
            z, u = (constraint.state()[f"w_{k}"].numpy()[:, 0] for k in "zu")
            w = np.linalg.solve(a.T @ a + rho * np.eye(6), a.T @ b + rho * (z - u))
        kernel.assign(w[:, np.newaxis])
        with tf.GradientTape() as tape:
            fit = tf.linalg.matvec(a.astype(np.float32), kernel[:, 0]) - b.astype(np.float32)
            total = tf.nn.l2_loss(fit) + constraint.penalty()
        np.testing.assert_allclose(tape.gradient(total, kernel), 0.0, atol=1e-4)
        constraint.begin_epoch(51, optimizer)
        cut = kernel.numpy()[:, 0]
        assert np.count_nonzero(cut) == 2
        # Little is lost by the cut itself.
        assert np.linalg.norm(cut - w) < 0.05 * np.linalg.norm(w)
        found.append(best_loss(a, b, np.flatnonzero(cut)) - best)
    assert np.mean(found) < 0.2 * np.mean(naive)
    exact = np.isclose(found, 0.0)
    assert np.count_nonzero(exact) >= 5 > np.count_nonzero(np.isclose(naive, 0.0))


def classifier_of(structure, ratio, network=None, optimizer=None, awp=0.0, **schedule):
    network = network or architectures.lenet5((16, 16, 1), 4, seed=1)
    objective = Objective(epsilon=0.2, step_size=0.1, attack_steps=2, train_examples=100, awp=awp)
    constraint = pruning(network, ratio, structure, **schedule)
    classifier = RobustClassifier(network, METHODS["admm"], objective, seed=5, pruning=constraint)
    classifier.compile(optimizer=optimizer or GroupedAdam(1e-2), jit_compile=False)
    classifier.optimizer.build(network.trainable_variables)
    return classifier


def train(classifier, epochs, steps=2):
    """Terms of the last step."""
    update = None
    for epoch in epochs:
        if classifier.begin_epoch(epoch) or update is None:
            update = tf.function(classifier.update, autograph=False)
        for _ in range(steps):
            terms = update((IMAGES, LABELS))
    return {name: float(value) for name, value in terms.items()}


@pytest.mark.parametrize(
    ("structure", "ratio", "precision"),
    [("irregular", 0.8, "float32"), ("column", 0.7, "float32"), ("filter", 0.5, "float16")],
)
def test_sparsity_is_exact_and_stays(structure, ratio, precision):
    network = optimizer = None
    if precision == "float16":
        network = architectures.lenet5((16, 16, 1), 4, seed=1, dtype="mixed_float16")
        optimizer = keras.optimizers.LossScaleOptimizer(GroupedAdam(1e-2))
    classifier = classifier_of(structure, ratio, network, optimizer)
    network, masks = classifier.network, classifier.pruning.masks
    terms = train(classifier, [1, 2])
    assert terms["pruning_penalty"] > 0
    assert terms["loss"] > terms["pruning_penalty"]
    kernels = [network.get_layer(name).kernel for name in ("conv1", "conv2", "dense1")]
    assert all(np.all(np.asarray(kernel) != 0) for kernel in kernels)
    for epochs in ([3], [4, 5]):
        before = [kernel.numpy() for kernel in kernels]
        assert train(classifier, epochs)["pruning_penalty"] == 0.0
        for kernel, old in zip(kernels, before, strict=True):
            flat = kernel.numpy().ravel()
            units = [np.any(flat[list(unit)] != 0) for unit in units_of(kernel.shape, structure)]
            assert units.count(False) == round(ratio * len(units))
            # What is left goes on moving.
            assert np.mean(flat[flat != 0] != old.ravel()[flat != 0]) > 0.5
    assert np.all(network.get_layer("logits").kernel.numpy() != 0)
    if structure == "filter":
        outputs = network(IMAGES)
        for name, features in (("conv1", 20), ("conv2", 50), ("dense1", 500)):
            dead = np.all(outputs[name].numpy().reshape(-1, features) == 0, axis=0)
            assert np.all(dead[~masks[name].numpy().ravel()])


def test_pruned_filters_are_zero_behind_batch_normalisation():
    images = keras.Input((16, 16, 1))
    x = layers.Conv2D(6, 3, name="conv")(images)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.5, name="bn")(x))
    latent = x
    x = layers.Dense(4, name="logits")(layers.GlobalAveragePooling2D()(x))
    network = keras.Model(images, {"logits": x, "latent": latent})
    network.get_layer("bn").beta.assign(np.full(6, 0.3))
    classifier = classifier_of("filter", 0.5, network)
    train(classifier, [1, 2, 3, 4])
    features = network(IMAGES)["latent"].numpy().reshape(-1, 6)
    mask = classifier.pruning.masks["conv"].numpy().ravel()
    assert mask.sum() == 3
    np.testing.assert_array_equal(np.any(features != 0, axis=0), mask)


@pytest.mark.parametrize("saved_after", [2, 4])
def test_a_resumed_run_equals_an_uninterrupted_one(saved_after, tmp_path):
    """Saved before and after the cut, which comes with epoch 4."""

    def fresh():
        classifier = classifier_of("column", 0.5, admm_epochs=3, interval=2)
        return classifier, tf.train.Checkpoint(
            network=classifier.network,
            optimizer=classifier.optimizer,
            state=tf.train.Checkpoint(**classifier.state()),
        )

    whole, checkpoint = fresh()
    train(whole, range(1, saved_after + 1))
    path = checkpoint.write(str(tmp_path / "checkpoint"))
    train(whole, range(saved_after + 1, 7))

    resumed, checkpoint = fresh()
    checkpoint.read(path).assert_existing_objects_matched()
    resumed.crafting.restore()
    train(resumed, range(saved_after + 1, 7))
    for a, b in zip(whole.network.weights, resumed.network.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), a.path)
    for name, value in whole.state().items():
        np.testing.assert_array_equal(value.numpy(), resumed.state()[name].numpy(), name)


def test_weights_that_were_cut_are_not_perturbed():
    classifier = classifier_of("irregular", 0.5, awp=0.1)
    train(classifier, [3], steps=1)
    pairs = tf.concat([IMAGES, IMAGES], 0)
    shifts = classifier._perturbed_kernels(pairs, LABELS, ([0, 1], 2, 0, 1))
    for kernel, shift in shifts:
        norm = 0.1 * np.linalg.norm(kernel.numpy())
        assert np.linalg.norm(shift) == pytest.approx(norm, rel=1e-4)
        assert not np.any(shift.numpy()[kernel.numpy() == 0])


def test_a_network_of_which_no_kernel_is_trained_is_refused():
    network = architectures.lenet5((16, 16, 1), 4)
    for layer in network.layers[:-1]:
        layer.trainable = False
    with pytest.raises(UsageError, match="lenet5 has no kernel to prune"):
        pruning(network, 0.5)


def test_a_layer_that_would_lose_everything_is_named():
    with pytest.raises(UsageError, match=r"0\.99 of the 20 units of layer 'conv1' leaves none"):
        pruning(architectures.lenet5((16, 16, 1), 4), 0.99, "filter")
