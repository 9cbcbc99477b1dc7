"""Training on two devices and in two processes: devices are fixed when a process starts."""

import json
import socket
import types

import numpy as np
import processes
import pytest
import tensorflow as tf

from anpvs_tf.common import devices
from anpvs_tf.common.errors import UsageError, WorkerLost
from anpvs_tf.data import loading, pipelines
from anpvs_tf.networks import gating

# Five steps from the same start, for every kind of gate, with dropout, augmentation and batch
# normalisation; then an evaluation. Prints nothing, saves all weights and what was evaluated.
#
# A step amplifies rounding where it is not continuous: sign() of an l-infinity attack, Adam
# of gradients near 0. So the attack is l2 and Adam's epsilon large.
FIVE_STEPS = """
import dataclasses
import json
import pathlib
import sys
import time

from anpvs_tf.common import devices

name, cpus, kinds, path = sys.argv[1:]
# Compiled or not, crafting decides nothing.
used = devices.choose(name, int(cpus) or None, xla="off" if name == "default" else "on")

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context

from anpvs_tf.data import loading
from anpvs_tf.data import pipelines
from anpvs_tf.evaluation.evaluator import Evaluator, PgdAttack
from anpvs_tf.networks import architectures, gating
from anpvs_tf.methods.registry import METHODS
from anpvs_tf.methods.optimizer import GroupedAdam
from anpvs_tf.methods.hyperparameters import Objective
from anpvs_tf.methods.robust_classifier import RobustClassifier
from anpvs_tf.runs import resolution

layers = keras.layers
rng = np.random.default_rng(0)
split = loading.Split(rng.integers(0, 256, (64, 12, 12, 1), np.uint8), np.arange(64) % 4)
data = loading.Dataset("random", 4, split, split, split, augment=True)
objective = Objective(0.5, 0.2, 2, train_examples=64, norm="l2", lambda_vs=0.5)


def network_of(kind, synchronized):
    keras.utils.set_random_seed(3)
    image = keras.Input((12, 12, 1))
    x = layers.Conv2D(4, 3, name="conv")(image)
    x = layers.BatchNormalization(name="norm", synchronized=synchronized)(x)
    x = layers.Dropout(0.3, name="dropout")(layers.ReLU(name="relu")(x))
    x = layers.Flatten()(layers.MaxPooling2D(2)(x))
    return gating.add_gates(keras.Model(image, layers.Dense(4, name="logits")(x)), kind)


def train(used, kind, synchronized):
    method = next(m for m in METHODS.values() if m.vulnerability and m.gate == kind)
    with used.strategy.scope():
        network = network_of(kind, synchronized)
        crafting = {"compiled_crafting": used.xla}
        classifier = RobustClassifier(network, method, objective, seed=5, **crafting)
        classifier.compile(optimizer=GroupedAdam(1e-2, epsilon=1e-2), jit_compile=False)
        classifier.optimizer.build(network.trainable_variables)
    step = used.step(classifier.update)
    own = pipelines.train_batches(data, 16, 7, 2, worker=used.worker, workers=used.workers)
    batches = used.distribute(own, 16)
    for number in range(5):
        # Only the last worker wishes, and only after one step.
        terms, wishes = step(next(batches), [number == 2 and used.worker == used.workers - 1])
        assert wishes == [number == 2]
        assert all(map(np.isfinite, terms.values()))
    for variable in network.weights:
        first, *others = used.strategy.experimental_local_results(variable.value)
        for other in others:
            np.testing.assert_array_equal(first.numpy(), other.numpy(), variable.path)
    return {v.path: v.numpy() for v in network.weights}


def evaluate(used):
    images = np.random.default_rng(0).integers(0, 256, (50, 16, 16, 1), np.uint8)
    with used.strategy.scope():
        network = architectures.lenet5((16, 16, 1), 4, None, seed=1)
    seen = []
    result = Evaluator(network, PgdAttack(0.1, 0.05, 2), 8, devices=used)(
        loading.Split(images, np.arange(50) % 4), 3, lambda done, total: seen.append(done)
    )
    return json.dumps(dataclasses.asdict(result) | {"seen": seen})


weights = {}
for name in kinds.split(","):
    # "own": each device has batch statistics of its own.
    kind = None if name in ("None", "own") else name
    weights |= {f"{name}/{path}": w for path, w in train(used, kind, name != "own").items()}
precisions = []
for fast in ("bfloat16", "float32"):
    resolution.fast_precision = lambda: "bfloat16" if used.is_chief else fast
    precisions.append(resolution.fast_precision_of_all(used))
evaluation = evaluate(used)
# As a worker does that leaves (the trainer): the chief is slow with its checkpoint.
checkpoint = pathlib.Path(f"{path}-checkpoint")
if used.is_chief:
    time.sleep(0.5)
    checkpoint.write_text("")
used.of_chief(0)
np.savez(
    f"{path}-{used.worker}.npz",
    evaluation=evaluation,
    precisions=precisions,
    waited=checkpoint.exists(),
    silent_ms=getattr(context.context().coordination_service, "heartbeat_timeout_in_ms", 0),
    **weights,
)
"""


OTHERS = {"evaluation", "precisions", "waited", "silent_ms"}


def finish(process):
    output, errors = process.communicate(timeout=1200)
    assert process.returncode == 0, errors[-3000:]
    return output


def two_workers(program, *arguments):
    """Starts a program in two processes on loopback."""
    with (
        socket.create_server(("localhost", 0)) as one,
        socket.create_server(("localhost", 0)) as two,
    ):
        ports = [held.getsockname()[1] for held in (one, two)]
    cluster = {"worker": [f"localhost:{port}" for port in ports]}
    configs = [{"cluster": cluster, "task": {"type": "worker", "index": i}} for i in range(2)]
    return [
        processes.Program("-c", program, *arguments, TF_CONFIG=json.dumps(config))
        for config in configs
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Weights after five steps on one device, on two, in two processes; and an evaluation."""
    path = tmp_path_factory.mktemp("strategies")
    kinds = ",".join(["None", *gating.GATE_KINDS])
    runs = [
        processes.Program("-c", FIVE_STEPS, "default", 0, kinds, path / "one"),
        processes.Program("-c", FIVE_STEPS, "auto", 2, f"{kinds},own", path / "two"),
        *two_workers(FIVE_STEPS, "auto", 0, "beta_bernoulli", path / "workers"),
    ]
    for process in runs:
        finish(process)
    names = ("one-0", "two-0", "workers-0", "workers-1")
    return {name: dict(np.load(path / f"{name}.npz")) for name in names}


@pytest.mark.parametrize("other", ["two-0", "workers-0", "workers-1"])
def test_devices_compute_the_update_of_one(trained, other):
    kinds = {name.split("/")[0] for name in trained["one-0"]}
    assert {"None", "beta_bernoulli"} <= kinds
    shared = trained[other].keys() & trained["one-0"].keys() - OTHERS
    assert len(shared) > 5
    for name in shared:
        values = trained["one-0"][name]
        np.testing.assert_allclose(trained[other][name], values, rtol=1e-5, atol=2e-6, err_msg=name)


def test_statistics_of_parts_are_others_and_the_replicas_agree_on_them(trained):
    # That they agree, the program has checked.
    whole, synchronized = (
        trained[name]["None/norm/moving_variance"] for name in ("one-0", "two-0")
    )
    parts = trained["two-0"]["own/norm/moving_variance"]
    assert np.abs(whole - parts).max() > 10 * np.abs(whole - synchronized).max()
    np.testing.assert_allclose(whole, parts, rtol=0.2)


def test_workers_take_the_precision_that_all_have_fast(trained):
    # The chief always has bfloat16 fast, the other worker at first.
    for name in ("workers-0", "workers-1"):
        assert trained[name]["precisions"].tolist() == ["bfloat16", "float32"]
    assert trained["one-0"]["precisions"].tolist() == ["bfloat16", "bfloat16"]


def test_workers_notice_within_a_minute_that_one_is_silent(trained):
    # That they then end is tried in tests/faults/partition.py.
    assert trained["workers-1"]["silent_ms"] == 1000 * devices.SILENT_SECONDS <= 30_000


def test_a_worker_that_leaves_waits_for_the_chief(trained):
    # When it does is tested with the trainer (test_resume.py).
    assert trained["workers-1"]["waited"]


def test_evaluation_counts_every_image_once_and_gives_the_same_bits(trained):
    # Seven batches, the last one small: of two devices or workers, one is left over.
    evaluations = {name: json.loads(str(held["evaluation"])) for name, held in trained.items()}
    seen = {name: found.pop("seen") for name, found in evaluations.items()}
    assert seen.pop("one-0") == [8, 16, 24, 32, 40, 48, 50]
    assert len(seen) == 3 and all(counts == [16, 32, 48, 50] for counts in seen.values())
    one = evaluations["one-0"]
    assert one["examples"] == 50
    assert all(found == one for found in evaluations.values())


def test_devices_that_cannot_share_a_batch(tmp_path):
    given = ("--method=standard", "--logical_cpus=3")
    process = processes.call("bin/train.py", *given, cwd=tmp_path)
    assert process.returncode == 2
    message = "--batch_size=32 cannot be shared equally by 3 devices"
    assert message in process.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("choice", "config", "message"),
    [
        ({"logical_cpus": 0}, None, "--logical_cpus must be at least 1; got 0"),
        ({}, "{", "TF_CONFIG must be like"),
        ({"name": "multi_worker"}, None, "TF_CONFIG must be like"),
    ],
)
def test_devices_that_do_not_exist(monkeypatch, choice, config, message):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if config:
        monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(UsageError, match=message):
        devices.choose(**choice)


@pytest.mark.parametrize("kind", ["Unavailable", "Aborted", "Cancelled", "DeadlineExceeded"])
def test_a_worker_that_is_lost_between_two_steps_is_no_damaged_data(kind):
    def batches(_):
        yield "first"
        raise getattr(tf.errors, f"{kind}Error")(None, None, "Connection reset by peer")

    strategy = types.SimpleNamespace(
        num_replicas_in_sync=2, distribute_datasets_from_function=batches
    )
    found = devices.Devices(strategy, 0, 2).distribute(tf.data.Dataset.range(4), 2)
    found = pipelines.readable(found, loading.load("digits").train)
    assert next(found) == "first"
    with pytest.raises(WorkerLost, match=r"another worker is gone .*Connection reset"):
        next(found)
