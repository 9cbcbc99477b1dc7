"""Times one training step: ANP-VS against AT, by precision and by share of features pruned.

  python -m benchmarks.train_step                       everything, about 20 minutes on 2 cores
  python -m benchmarks.train_step --networks=lenet5 --precisions=bfloat16 --pruned=0,0.5

From the root of the repository. A Markdown table goes to standard output, progress to standard
error; `> table.md` keeps the one and shows the other.

A step crafts with PGD (LeNet: batch 128, 20 steps; VGG-16: batch 64, 10 steps; the start is
random) and updates weights and gates once. "frozen" is crafted on the frozen network, as the
product does it; "unfrozen" on the training network in evaluation mode, as it was done before;
"frozen, shrunk" is "frozen" with a training network that lacks the pruned features (--shrink).
A share of pruned features is a random subset of that size of every gate's features, each gate's
drawn by itself: so a flattened feature may lose its gate, its channel, or both.

If PyTorch is installed, the same AT step runs there: same architecture, attack and update, fused
Adam, channels_last, autocast for bfloat16, eager.
"""

import dataclasses
import importlib.util
import os
import statistics
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from anpvs_tf.attacks.projected_gradient import pgd
from anpvs_tf.common import program
from anpvs_tf.common.errors import UsageError
from anpvs_tf.data import sources
from anpvs_tf.methods.hyperparameters import Objective
from anpvs_tf.methods.registry import METHODS
from anpvs_tf.methods.robust_classifier import RobustClassifier
from anpvs_tf.runs import build, resolution, settings
from anpvs_tf.training import shrinking
from benchmarks import timing
from benchmarks.timing import Variant

PRECISIONS = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Workload:
    """The images that a network is timed on; its attack is the published one of the dataset."""

    dataset: str
    batch_size: int
    repeats: int


WORKLOADS = {
    "lenet5": Workload("mnist", batch_size=128, repeats=15),
    "vgg16": Workload("cifar10", batch_size=64, repeats=3),
}


class UnfrozenClassifier(RobustClassifier):
    """Crafts the old way: every PGD step runs the gated training network."""

    def craft(self, images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return pgd(
            lambda x: self.network(x, training=False)["logits"],
            images,
            labels,
            seed,
            epsilon=self.objective.epsilon,
            step_size=self.objective.step_size,
            steps=self.objective.attack_steps,
        )


MEASURED = "What to measure"


def define(flags: program.Flags) -> None:
    defaults = ", ".join(f"{name} {load.repeats}" for name, load in WORKLOADS.items())
    flags.add(MEASURED, tuple, "networks", list(WORKLOADS), f"of {', '.join(WORKLOADS)}")
    flags.add(MEASURED, tuple, "precisions", list(PRECISIONS), f"of {', '.join(PRECISIONS)}")
    flags.add(
        MEASURED, tuple, "pruned", ["0", "0.25", "0.5", "0.75", "0.9"], "shares of the features"
    )
    flags.add(MEASURED, int, "repeats", None, f"timed rounds. Default: {defaults}", lower_bound=1)


def main(values: Any) -> None:
    timing.check_choices("networks", values.networks, WORKLOADS)
    timing.check_choices("precisions", values.precisions, PRECISIONS)
    try:
        shares = [float(share) for share in values.pruned]
    except ValueError:
        raise UsageError(f"--pruned must be numbers between commas; got {values.pruned}") from None
    if not all(0 <= share < 1 for share in shares):
        raise UsageError(f"--pruned must lie in [0, 1); got {values.pruned}")

    tf.get_logger().setLevel("ERROR")  # It takes many variants for a function that is retraced.
    print(f"{timing.environment('train_step')}\n")
    timing.print_rows([COLUMNS, ("---",) * len(COLUMNS)])
    for network in values.networks:
        repeats = values.repeats or WORKLOADS[network].repeats
        for precision in values.precisions:
            title = f"{network} {precision}"
            measured = timing.measure(title, steps(network, precision, shares), repeats)
            timing.print_rows(rows(network, title, measured))


# ---- The steps ----


def classifier_of(
    network: str,
    precision: str,
    method: str,
    kind: type[RobustClassifier] = RobustClassifier,
    attack_steps: int | None = None,
) -> RobustClassifier:
    """A classifier, ready to train as `trainer.train` makes it, at the published settings."""
    chosen = _settings(network, precision, method)
    objective = Objective(
        epsilon=chosen.epsilon,
        step_size=chosen.step_size,
        attack_steps=chosen.attack_steps if attack_steps is None else attack_steps,
        train_examples=50_000,
        adversarial_weight=chosen.adversarial_weight,
        weight_decay=chosen.weight_decay,
        lambda_vs=chosen.lambda_vs,
        beta=chosen.beta,
    )
    model = build.build_network(chosen, settings.PRECISIONS[precision])
    classifier = kind(model, METHODS[method], objective)
    return _compiled(classifier, chosen)


def _settings(network: str, precision: str, method: str) -> settings.Settings:
    load = WORKLOADS[network]
    return resolution.resolve(
        {
            "dataset": load.dataset,
            "network": network,
            "method": method,
            "batch_size": load.batch_size,
            "precision": precision,
        }
    )


def _compiled(classifier: RobustClassifier, chosen: settings.Settings) -> RobustClassifier:
    optimizer = build.make_optimizer(chosen, total_steps=1_000)
    classifier.compile(optimizer=optimizer, jit_compile=False)
    optimizer.build(classifier.network.trainable_variables)
    return classifier


def prune(classifier: RobustClassifier, share: float) -> None:
    """Closes a random `share` of every gate's features, and refreezes."""
    generator = np.random.default_rng(0)
    for gate in classifier.gates:
        gate.close(generator.permutation(gate.features) < round(share * gate.features))
    classifier.crafting.refreeze()


def shrunk(network: str, precision: str, share: float) -> RobustClassifier:
    """ANP-VS with a training network that lacks the features that `prune` shuts."""
    classifier = classifier_of(network, precision, "anpvs")
    prune(classifier, share)
    shut = {gate.name: np.asarray(gate.mean_mask()) == 0 for gate in classifier.gates}
    small = shrinking.shrink(classifier.network, shut)
    made = RobustClassifier(
        small.network, classifier.method, classifier.objective, shares=small.shares
    )
    made.crafting.refreeze()
    return _compiled(made, _settings(network, precision, "anpvs"))


def batch_of(network: str) -> tuple[np.ndarray, np.ndarray]:
    """A batch of random images and labels: the time of a step does not depend on them."""
    load = WORKLOADS[network]
    source = sources.SOURCES[load.dataset]
    generator = np.random.default_rng(0)
    images = generator.random((load.batch_size, *source.image_shape), np.float32)
    return images, generator.integers(source.classes, size=load.batch_size)


def step_of(classifier: RobustClassifier, batch: tuple[tf.Tensor, tf.Tensor]) -> Callable:
    """The compiled training step on a batch; reading the loss waits for its end."""
    train_step = tf.function(classifier.train_step, autograph=False)
    return lambda: float(train_step(batch)["loss"])


def steps(network: str, precision: str, shares: list[float]) -> list[Variant]:
    """AT, ANP-VS at each share pruned, and AT in PyTorch: all steps of one table."""
    images, labels = batch_of(network)
    batch = tf.constant(images), tf.constant(labels)
    kinds = {"frozen": RobustClassifier, "unfrozen": UnfrozenClassifier}
    variants = []
    for crafting, kind in kinds.items():
        classifier = classifier_of(network, precision, "at", kind)
        variants.append(Variant(("at", crafting, ""), step_of(classifier, batch)))
    for share in shares:
        for crafting, kind in kinds.items():
            classifier = classifier_of(network, precision, "anpvs", kind)
            prune(classifier, share)
            cells = ("anpvs", crafting, f"{share:.0%}")
            variants.append(Variant(cells, step_of(classifier, batch)))
        if share:
            classifier = shrunk(network, precision, share)
            cells = ("anpvs", "frozen, shrunk", f"{share:.0%}")
            variants.append(Variant(cells, step_of(classifier, batch)))
    if importlib.util.find_spec("torch"):
        objective = classifier_of(network, precision, "at").objective
        from benchmarks.torch_peer import torch_step

        step = torch_step(network, precision, objective, images, labels)
        variants.append(Variant(("at in PyTorch", "unfrozen", ""), step))
    return variants


COLUMNS = (
    "network, precision",
    "method",
    "crafted on",
    "pruned",
    "seconds a step (range)",
    "images/s",
    "time / AT",
    "speed / PyTorch AT",
)


def rows(
    network: str, title: str, measured: list[tuple[Variant, list[float]]]
) -> list[tuple[str, ...]]:
    """Rows of the table of steps; the first variant is AT, the last may be PyTorch's."""
    at = measured[0][1]
    variant, times = measured[-1]
    torch_times = times if "PyTorch" in variant.cells[0] else None
    lines = []
    for variant, times in measured:
        images = WORKLOADS[network].batch_size / statistics.median(times)
        speed = timing.ratio(torch_times, times) if torch_times else ""
        cells = (timing.seconds(times), f"{images:.1f}", timing.ratio(times, at), speed)
        lines.append((title, *variant.cells, *cells))
    return lines


if __name__ == "__main__":
    program.run(main, __doc__, define)
