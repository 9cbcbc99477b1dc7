"""What can be pruned in the networks of keras.applications, and what freezing them costs.

  python -m benchmarks.applications                     about 5 minutes on 2 cores
  python -m benchmarks.applications --networks=ResNet50,DenseNet121

From the root of the repository. A Markdown table goes to standard output. Random weights, 10
classes; each feature of a gate is shut with probability 0.5. Each network is frozen in a process
of its own, of which "peak" is the most memory that it held until then, TensorFlow's 0.5 GiB
included, and "freeze adds" what freezing raised that by (Linux only).
"""

import concurrent.futures
import multiprocessing
import os
import resource
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from anpvs_tf.common import program
from anpvs_tf.networks.gate import gates_of
from anpvs_tf.networks.gating import add_gates
from anpvs_tf.pruning import compact, efficiency
from benchmarks import timing

# {name: the side of its images}
NETWORKS = {
    "MobileNet": 32,
    "MobileNetV2": 32,
    "MobileNetV3Small": 32,
    "EfficientNetV2B0": 32,
    "VGG16": 32,
    "ResNet50": 64,
    "DenseNet121": 32,
    "InceptionV3": 75,
    "Xception": 71,
    "NASNetMobile": 32,
    "ConvNeXtTiny": 32,
}
COLUMNS = ("network", "gates", "features", "add, freeze (s)", "peak, freeze adds (MiB)")
COLUMNS += ("difference", "parameters left", "FLOPs left")


def row(name: str, coupled: bool) -> tuple[str, ...]:
    """A row of the table; run it in a process of its own."""
    shape = (NETWORKS[name], NETWORKS[name], 3)
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(
        weights=None, input_shape=shape, classes=10, classifier_activation=None
    )
    started = time.perf_counter()
    network = add_gates(model, coupled=coupled)
    added = time.perf_counter() - started
    rng = np.random.default_rng(0)
    for gate in gates_of(network):
        shut = rng.random(gate.features) < 0.5
        shut[0] = False
        gate.close(shut)
    before, started = _peak(), time.perf_counter()
    small = compact.freeze(network)
    frozen, peak = time.perf_counter() - started, _peak()
    costs = efficiency.costs(small, compact.freeze(network, prune=False))
    images = tf.constant(rng.random((2, *shape)), tf.float32)
    expected = _logits_and_gradient(network, images)
    found = _logits_and_gradient(small, images)
    difference = max(
        np.abs(f - e).max() / np.abs(e).max() for f, e in zip(found, expected, strict=True)
    )
    return (
        name + ", coupled" * coupled,
        str(len(gates_of(network))),
        f"{sum(gate.features for gate in gates_of(network)):,}",
        f"{added:.1f}, {frozen:.1f}",
        f"{peak:,.0f}, {peak - before:,.0f}",
        f"{difference:.1e}",
        *(
            f"{costs[what][0] / costs[what][1]:.0%} of {costs[what][1] / 1e6:.1f} M"
            for what in ("parameters", "flops")
        ),
    )


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _logits_and_gradient(model: keras.Model, images: tf.Tensor) -> tuple[np.ndarray, np.ndarray]:
    with tf.GradientTape() as tape:
        tape.watch(images)
        output = model(images, training=False)
        logits = output["logits"] if isinstance(output, dict) else output
        weighted = tf.reduce_sum(logits * tf.range(logits.shape[1], dtype=tf.float32))
    return logits.numpy(), tape.gradient(weighted, images).numpy()


def define(flags: program.Flags) -> None:
    flags.add("What to measure", tuple, "networks", list(NETWORKS), f"of {', '.join(NETWORKS)}")


def main(values: Any) -> None:
    timing.check_choices("networks", values.networks, NETWORKS)
    print(f"{timing.environment('applications')}\n")
    timing.print_rows([COLUMNS, ("---",) * len(COLUMNS)])
    context = multiprocessing.get_context("spawn")
    for name in values.networks:
        for coupled in (False, True):
            with concurrent.futures.ProcessPoolExecutor(1, context) as process:
                timing.print_rows([process.submit(row, name, coupled).result()])


if __name__ == "__main__":
    program.run(main, __doc__, define)
