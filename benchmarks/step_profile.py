"""Where the time of an ANP-VS training step goes: its parts, each compiled by itself.

  python -m benchmarks.step_profile

From the root of the repository; a Markdown table goes to standard output. Nothing is pruned. The
parts do not add up to the step exactly: each is compiled without the others.
"""

import os
import statistics
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf

from anpvs_tf.common import program, randomness
from benchmarks import timing
from benchmarks.timing import Variant
from benchmarks.train_step import (
    PRECISIONS,
    WORKLOADS,
    batch_of,
    classifier_of,
    prune,
    step_of,
)

MATMUL_SIZE = 2048


MEASURED = "What to measure"


def define(flags: program.Flags) -> None:
    flags.add(MEASURED, tuple, "networks", list(WORKLOADS), f"of {', '.join(WORKLOADS)}")
    flags.add(MEASURED, tuple, "precisions", list(PRECISIONS), f"of {', '.join(PRECISIONS)}")
    flags.add(MEASURED, int, "repeats", None, "timed rounds. Default: by network", lower_bound=1)


def main(values: Any) -> None:
    timing.check_choices("networks", values.networks, WORKLOADS)
    timing.check_choices("precisions", values.precisions, PRECISIONS)
    tf.get_logger().setLevel("ERROR")  # It takes many parts for a function that is retraced.
    print(f"{timing.environment('step_profile')}\n")
    timing.print_rows([COLUMNS, ("---",) * len(COLUMNS)])
    for network in values.networks:
        repeats = values.repeats or WORKLOADS[network].repeats
        for precision in values.precisions:
            title = f"{network} {precision}"
            timing.print_rows(
                rows(title, timing.measure(title, parts(network, precision), repeats))
            )


def parts(network: str, precision: str) -> list[Variant]:
    """An ANP-VS step with nothing pruned, and its parts, each compiled by itself."""
    images, labels = batch_of(network)
    batch = tf.constant(images), tf.constant(labels)
    seed = randomness.seed_of(0)

    def update(method: str) -> Callable:
        # No steps of the attack: its random start and the whole of the update are left.
        return step_of(classifier_of(network, precision, method, attack_steps=0), batch)

    whole = classifier_of(network, precision, "anpvs")
    prune(whole, 0.0)
    macs = whole.crafting.frozen.multiplications * len(labels)
    attack_steps = whole.objective.attack_steps
    # A classifier of its own: what is applied here is no gradient.
    other = classifier_of(network, precision, "anpvs")
    variables = other.network.trainable_variables

    @tf.function(autograph=False)
    def craft():
        return tf.reduce_sum(whole.craft(*batch, seed))

    @tf.function(autograph=False)
    def fold():
        folded = whole.crafting.frozen.fold()
        return tf.add_n([tf.norm(tf.cast(w, tf.float32)) for s in folded for w in s])

    @tf.function(autograph=False)
    def forward():
        with randomness.scope(seed, 2):
            outputs = whole.network(tf.concat([batch[0]] * 2, axis=0), training=True)
        return tf.reduce_sum(outputs["logits"])

    @tf.function(autograph=False)
    def apply():
        other.optimizer.apply([tf.convert_to_tensor(v) for v in variables], variables)
        return other.optimizer.iterations

    square = tf.ones([MATMUL_SIZE] * 2, precision)

    @tf.function(autograph=False)
    def matmul():
        return tf.reduce_max(square @ square)

    update_macs = 3 * 2 * macs  # forward, two gradients; clean and adversarial
    return [
        Variant(("step", "craft and update"), step_of(whole, batch)),
        Variant(
            ("craft", f"PGD, {attack_steps} steps, frozen network"),
            lambda: float(craft()),
            2 * attack_steps * macs,
        ),
        Variant(("craft: fold", "weights of the frozen network, once"), lambda: float(fold())),
        Variant(("update", "forward, backward, Adam"), update("anpvs"), update_macs),
        Variant(("update without VS", "method anp"), update("anp"), update_macs),
        Variant(
            ("update without VS and gates", "method at, with its dropout"),
            update("at"),
            update_macs,
        ),
        Variant(("update: forward", "loss and gradients left out"), lambda: float(forward())),
        Variant(("update: Adam", "applied to any gradient"), lambda: float(apply())),
        Variant(
            ("matrix product", f"{MATMUL_SIZE} x {MATMUL_SIZE}, the machine's peak"),
            lambda: float(matmul()),
            MATMUL_SIZE**3,
        ),
    ]


COLUMNS = (
    "network, precision",
    "part",
    "what",
    "seconds (range)",
    "of the step",
    "Gmultiply-adds/s",
)


def rows(title: str, measured: list[tuple[Variant, list[float]]]) -> list[tuple[str, ...]]:
    """Rows of the table of parts; the first variant is the whole step."""
    whole = measured[0][1]
    lines = []
    for variant, times in measured:
        rate = ""
        if variant.multiplications:
            rate = f"{variant.multiplications / statistics.median(times) / 1e9:.0f}"
        lines.append(
            (title, *variant.cells, timing.seconds(times), timing.ratio(times, whole), rate)
        )
    return lines


if __name__ == "__main__":
    program.run(main, __doc__, define)
