"""How fast the attacks are, beside PyTorch's, and whether memory grows with the data.

  python -m benchmarks.attacks --run_dir=RUN        a finished LeNet run, MNIST or digits
  python -m benchmarks.attacks --run_dir=RUN --examples=20 --repeats=1 --queries=100      a try

From the root of the repository. `pip install -e '.[reference]'` brings PyTorch and the authors'
AutoAttack, `pip install foolbox` its PGD; rows of what is absent are left out. Two Markdown
tables go to standard output.

All attack the same images with the same weights, of the network as it is deployed, on the same
number of threads, and take turns, a whole attack each; ours as `bin/evaluate.py` runs it. Images
a second count every image, whether it breaks early or not. Seconds are medians; the speed is the
median over the rounds of the ratio within a round; compilation is not timed. The accuracies are
there to show that the same work was done.

Memory: how much a process grows, at its peak, while all of AutoAttack's components (shortened)
run over few and over many images in batches of the same size; Linux only.
"""

import concurrent.futures
import dataclasses
import multiprocessing
import os
import re
import statistics
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# PyTorch's threads wait asleep: on a busy machine, spinning made it several times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import tensorflow as tf

from anpvs_tf.attacks import registry
from anpvs_tf.attacks.settings import EVALUATION_BATCH, PGD_STEPS, AttackSettings, resolve
from anpvs_tf.common import program
from anpvs_tf.common.errors import UsageError
from anpvs_tf.data import loading, pipelines
from anpvs_tf.evaluation import attacked_model
from anpvs_tf.evaluation.attack_run import AttackRun
from anpvs_tf.evaluation.attacked_model import Subject
from anpvs_tf.runs.finished_run import open_run
from benchmarks import reference, timing
from benchmarks.agreement import COMPONENTS
from benchmarks.timing import Variant

OURS = "anpvs_tf"
MEMORY_EXAMPLES = (200, 2000)
MEMORY_BATCH = 100


class Timed:
    """An attack on all images, and the accuracy that its last call left."""

    def __init__(self, attack: reference.ReferenceAttack, subject: Subject, split: loading.Split):
        self.attack = attack
        self.subject = subject
        self.images = pipelines.to_float(split.images).numpy()
        self.labels = np.asarray(split.labels, np.int64)
        self.found = None

    def __call__(self) -> None:
        self.found = self.attack(self.images, self.labels)

    def accuracy(self) -> float:
        predicted = np.argmax(self.subject.logits(tf.constant(self.found)), axis=1)
        return float(np.mean(predicted == self.labels))


class Ours:
    """The same of our attack."""

    def __init__(self, run: AttackRun):
        self.run = run
        self.outcome = None

    def __call__(self) -> None:
        self.outcome = self.run.run()

    def accuracy(self) -> float:
        return float(np.mean(self.outcome.robust))


def attack_run(
    subject: Subject, split: loading.Split, attack: str, settings: AttackSettings, batch_size: int
) -> AttackRun:
    bare = dataclasses.replace(subject, outputs=None)  # Vulnerability is no part of an attack.
    return AttackRun(
        bare,
        split,
        registry.stages(attack, settings),
        epsilon=settings.epsilon,
        norm=settings.norm,
        seed=0,
        batch_size=batch_size,
    )


def variants(
    attack: str, subject: Subject, split: loading.Split, settings: AttackSettings, batch_size: int
) -> list[Variant]:
    """Ours, then what there is beside it.

    Args:
        attack: "pgd", a component of AutoAttack, or "autoattack".
    """
    made = [Variant((attack, OURS), Ours(attack_run(subject, split, attack, settings, batch_size)))]
    if not reference.installed("torch"):
        return made
    model = reference.torch_copy(subject.network)
    others: dict[str, reference.ReferenceAttack] = {}
    if attack == "pgd":
        resolved = resolve(attack, settings)
        own = {"epsilon": settings.epsilon, "batch_size": batch_size}
        own |= {"steps": resolved.steps, "step_size": resolved.step_size}
        others["PyTorch"] = reference.pgd(model, **own)
        if version := reference.installed("foolbox"):
            others[f"Foolbox {version}"] = reference.foolbox_pgd(model, **own)
    elif version := reference.installed(reference.PACKAGE):
        others[f"{reference.PACKAGE} {version}"] = reference.autoattack(
            model,
            None if attack == "autoattack" else attack,
            epsilon=settings.epsilon,
            norm=settings.norm,
            seed=0,
            batch_size=batch_size,
            queries=settings.queries,
            targets=settings.targets,
        )
    return made + [
        Variant((attack, name), Timed(other, subject, split)) for name, other in others.items()
    ]


COLUMNS = ("attack", "by", "seconds (range)", "images/s", "our speed / its", "accuracy left")


def rows(measured: list[tuple[Variant, list[float]]], examples: int) -> list[tuple[str, ...]]:
    """Rows of the table of speed; the first variant is ours."""
    ours = measured[0][1]
    return [
        (
            *variant.cells,
            timing.seconds(times),
            f"{examples / statistics.median(times):.2f}",
            timing.ratio(times, ours) if times is not ours else "",
            f"{variant.run.accuracy():.1%}",
        )
        for variant, times in measured
    ]


# ---- Memory ----


def memory(run_dir: str, examples: int, threads: int) -> tuple[float, float]:
    """MiB of this process before AutoAttack on `examples` images, and at its peak."""
    tf.get_logger().setLevel("ERROR")  # It takes many stages for a function that is retraced.
    set_threads(threads)
    subject = attacked_model.of_run(open_run(run_dir))
    test = loading.load_evaluated(subject.source)
    again = np.resize(np.arange(len(test)), examples)  # Small test sets more than once.
    split = loading.Split(test.images[again], test.labels[again])
    settings = AttackSettings(
        subject.settings.epsilon, classes=subject.classes, steps=10, targets=2, queries=100
    )
    run = attack_run(subject, split, "autoattack", settings, MEMORY_BATCH)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # The peak of loading is forgotten.
    before = _resident("VmRSS")
    run.run()
    return before, _resident("VmHWM")


def _resident(field: str) -> float:
    """MiB of this process's memory: "VmRSS" now, "VmHWM" at the highest so far."""
    with open("/proc/self/status") as status:
        kibibytes = re.search(rf"^{field}:\s+(\d+) kB", status.read(), re.MULTILINE).group(1)
    return int(kibibytes) / 1024


def memory_rows(run_dir: str, threads: int) -> list[tuple[str, ...]]:
    """A row for each number of images, each measured in a process of its own."""
    lines = []
    for examples in MEMORY_EXAMPLES:
        timing.progress(f"memory: {examples} images ...")
        fresh = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=fresh) as process:
            before, peak = process.submit(memory, run_dir, examples, threads).result()
        found = (before, peak, peak - before)
        lines.append((str(examples), str(MEMORY_BATCH), *(f"{value:.0f}" for value in found)))
    return lines


# ---- The program ----


def set_threads(threads: int) -> None:
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    if reference.installed("torch"):
        import torch

        torch.set_num_threads(threads)


MEASURED = "What to measure"


def define(flags: program.Flags) -> None:
    attacks = ("pgd", *COMPONENTS, "autoattack")
    flags.add(MEASURED, str, "run_dir", None, "a finished LeNet run of bin/train.py")
    flags.add(MEASURED, int, "examples", 200, "of the test set, from its start", lower_bound=1)
    flags.add(MEASURED, int, "repeats", 3, "timed rounds", lower_bound=1)
    flags.add(
        MEASURED, int, "batch_size", EVALUATION_BATCH, "images attacked at a time", lower_bound=1
    )
    flags.add(MEASURED, int, "queries", AttackSettings.queries, "of Square", lower_bound=1)
    flags.add(MEASURED, int, "threads", os.cpu_count(), "of TensorFlow and PyTorch", lower_bound=1)
    flags.add(
        MEASURED,
        str,
        "attacks",
        list(attacks),
        "which; repeat the flag",
        choices=attacks,
        repeated=True,
    )
    flags.add(MEASURED, bool, "memory", True, "measure memory too")


def main(values: Any) -> None:
    if not values.run_dir:
        raise UsageError("--run_dir is needed: a finished run of bin/train.py")
    set_threads(values.threads)
    subject = attacked_model.of_run(open_run(values.run_dir))
    split = loading.load_evaluated(subject.source).take(values.examples)
    settings = AttackSettings(
        subject.settings.epsilon, classes=subject.classes, queries=values.queries
    )
    print(
        f"{timing.environment('attacks')}\n\n{len(split)} test images of {subject.dataset}, linf "
        f"{settings.epsilon:g}, batches of {values.batch_size}, {values.threads} threads, "
        f"PGD {PGD_STEPS} steps, Square {values.queries} queries\n"
    )
    for package in ("torch", reference.PACKAGE, "foolbox"):
        if not reference.installed(package):
            print(f"{package} is not installed: its rows are left out.\n")
    timing.print_rows([COLUMNS, ("---",) * len(COLUMNS)])
    for attack in values.attacks:
        chosen = settings
        if attack == "pgd":
            chosen = dataclasses.replace(settings, steps=PGD_STEPS)
        made = variants(attack, subject, split, chosen, values.batch_size)
        timing.print_rows(rows(timing.measure(attack, made, values.repeats), len(split)))
    if values.memory and not os.path.exists("/proc/self/clear_refs"):
        print("\nMemory is not measured: no /proc on this system.")
    elif values.memory:
        head = ("images", "in batches of", "MiB before", "MiB at the peak", "growth")
        print()
        timing.print_rows([head, ("---",) * len(head)])
        timing.print_rows(memory_rows(values.run_dir, values.threads))


if __name__ == "__main__":
    program.run(main, __doc__, define)
