"""How long a training step waits for its batch, and what reading costs the step.

  python -m benchmarks.input_wait --datasets=digits,mnist,cifar10
  python -m benchmarks.input_wait --datasets=folder:PATH --stream

From the root of the repository; a Markdown table goes to standard output. "waits" is the share of
the steps' time that goes by until the batch is there. "beside reading" is the time of a step,
waiting left out, over that of a step on a batch that is at hand, taken in turns: above 1 where
reading takes the processor from the step. "reading alone" is the pipeline without steps.
"""

import os
import statistics
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf

from anpvs_tf.common import program
from anpvs_tf.data import loading, pipelines
from anpvs_tf.methods.hyperparameters import Objective
from anpvs_tf.methods.registry import METHODS
from anpvs_tf.methods.robust_classifier import RobustClassifier
from anpvs_tf.runs import build, resolution, settings
from benchmarks import timing

# Steps between those with a batch at hand: so long the pipeline has a rest of one step.
TURN = 10


COLUMNS = (
    "data",
    "network, method, batch",
    "seconds a step (range)",
    "waits",
    "beside reading",
    "reading alone, images/s",
    "steps, images/s",
)


MEASURED = "What to measure"


def define(flags: program.Flags) -> None:
    flags.add(
        MEASURED, tuple, "datasets", ["digits", "mnist", "cifar10"], "as --dataset of bin/train.py"
    )
    flags.add(MEASURED, tuple, "methods", ["standard", "anpvs"], f"of {', '.join(METHODS)}")
    flags.add(MEASURED, int, "batch_size", None, "Default: the dataset's", lower_bound=1)
    flags.add(MEASURED, str, "network", None, "Default: the dataset's")
    flags.add(MEASURED, bool, "stream", False, "read from disk")
    flags.add(MEASURED, int, "steps", 100, "timed steps", lower_bound=2 * TURN)
    flags.add(MEASURED, str, "data_dir", None, "TFDS data directory")


def main(values: Any) -> None:
    print(f"{timing.environment('input_wait')}\n")
    timing.print_rows([COLUMNS, ("---",) * len(COLUMNS)])
    for dataset in values.datasets:
        for method in values.methods:
            timing.progress(f"{dataset} {method}")
            timing.print_rows([row(dataset, method, values)])


def row(dataset: str, method: str, values: Any) -> tuple[str, ...]:
    wanted = {"dataset": dataset, "method": method, "stream": values.stream}
    wanted |= {"batch_size": values.batch_size, "network": values.network}
    chosen = resolution.resolve(wanted, data_dir=values.data_dir)
    data = loading.load(chosen.source, values.data_dir, stream=chosen.stream, check=False)
    step = step_of(chosen, len(data.train))
    of_epoch = len(data.train) // chosen.batch_size
    epochs = 2 + 2 * values.steps // of_epoch
    batches = iter(pipelines.train_batches(data, chosen.batch_size, 0, epochs))

    held = next(batches)
    step(held)  # Compiles.
    waits, works, works_held = [], [], []
    for number in range(values.steps):
        if number % TURN == 0:
            works_held.append(seconds(lambda: step(held)))
        started = time.perf_counter()
        batch = next(batches)
        waits.append(time.perf_counter() - started)
        works.append(seconds(lambda batch=batch: step(batch)))
    reading = seconds(lambda: [next(batches) for _ in range(values.steps)])
    total = sum(waits) + sum(works)
    name = "folder" if dataset.startswith("folder:") else dataset
    return (
        f"{name}, {'streamed' if chosen.stream else 'in memory'}",
        f"{chosen.network}, {method}, {chosen.batch_size}",
        timing.seconds(works),
        f"{sum(waits) / total:.2%}",
        f"{statistics.median(works) / statistics.median(works_held):.2f}",
        f"{values.steps * chosen.batch_size / reading:,.0f}",
        f"{values.steps * chosen.batch_size / total:,.0f}",
    )


def step_of(chosen: settings.Settings, examples: int):
    """A compiled update of a run with these settings; returns when it is done."""
    network = build.build_network(chosen, settings.PRECISIONS[chosen.precision])
    objective = Objective(
        epsilon=chosen.epsilon,
        step_size=chosen.step_size,
        attack_steps=chosen.attack_steps,
        train_examples=examples,
        lambda_vs=chosen.lambda_vs,
        beta=chosen.beta,
    )
    classifier = RobustClassifier(network, METHODS[chosen.method], objective)
    classifier.compile(optimizer=build.make_optimizer(chosen, 1_000), jit_compile=False)
    classifier.optimizer.build(network.trainable_variables)
    update = tf.function(classifier.update, autograph=False)
    return lambda batch: float(update(batch)["loss"])


def seconds(run) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    program.run(main, __doc__, define)
