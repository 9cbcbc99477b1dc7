"""Times one training step: ANP-VS against AT, by precision and by share of features pruned.

  python -m benchmarks.train_step                       everything, about 20 minutes on 2 cores
  python -m benchmarks.train_step --networks=lenet5 --precisions=bfloat16 --pruned=0,0.5
  python -m benchmarks.train_step --profile             where the time of an ANP-VS step goes

From the root of the repository. A Markdown table goes to standard output, progress to standard
error; `> table.md` keeps the one and shows the other.

A step crafts with PGD (LeNet: batch 128, 20 steps; VGG-16: batch 64, 10 steps; the start is
random) and updates weights and gates once. "frozen" is crafted on the frozen network, as the
product does it; "unfrozen" on the training network in evaluation mode, as it was done before.
A share of pruned features is a random subset of that size of every gate's features, each gate's
drawn by itself: so a flattened feature may lose its gate, its channel, or both.

If PyTorch is installed, the same AT step runs there: same architecture, attack and update, fused
Adam, channels_last, autocast for bfloat16, eager.

Variants take turns, a step each (A B C A B C ...), so that whatever else the machine does hits all
alike. Seconds are medians; ratios are medians over the rounds of the ratio within a round.
"""

import dataclasses
import datetime
import functools
import importlib.metadata
import importlib.util
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# PyTorch's threads wait asleep: on a busy machine, spinning made its step 7 times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import tensorflow as tf
from absl import flags

from anpvs_tf import loop, noise, programs, runs, settings
from anpvs_tf.attacks import pgd
from anpvs_tf.datasets import SOURCES
from anpvs_tf.errors import UsageError
from anpvs_tf.methods import METHODS
from anpvs_tf.networks import CIFAR_STATISTICS
from anpvs_tf.training import Objective, RobustClassifier

PRECISIONS = ("float32", "bfloat16")
# Raw gate parameters whose E[pi] is 4.5e-5, below the threshold, and 0.83.
SHUT, OPEN = -10.0, 5.0
MATMUL_SIZE = 2048


@dataclasses.dataclass(frozen=True)
class Workload:
    """What a network is timed on; its attack is the published one of the dataset."""

    dataset: str
    batch_size: int
    repeats: int


WORKLOADS = {
    "lenet5": Workload("mnist", batch_size=128, repeats=15),
    "vgg16": Workload("cifar10", batch_size=64, repeats=3),
}


@dataclasses.dataclass
class Variant:
    """Something to time, and how it is named in the table.

    `run` returns once the work is done. `multiplications` counts its multiply-adds in
    convolutions and dense layers, where that is of interest.
    """

    cells: tuple[str, ...]
    run: Callable[[], object]
    multiplications: int = 0


class UnfrozenClassifier(RobustClassifier):
    """Crafts the old way: every PGD step runs the gated training network."""

    def craft(self, images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return pgd.python_function(
            lambda x: self.network(x, training=False)["logits"],
            images,
            labels,
            seed,
            epsilon=self.objective.epsilon,
            step_size=self.objective.step_size,
            steps=self.objective.attack_steps,
        )


def define_flags() -> None:
    flags.DEFINE_list("networks", list(WORKLOADS), f"of {', '.join(WORKLOADS)}")
    flags.DEFINE_list("precisions", list(PRECISIONS), f"of {', '.join(PRECISIONS)}")
    flags.DEFINE_list("pruned", ["0", "0.25", "0.5", "0.75", "0.9"], "shares of the features")
    defaults = ", ".join(f"{name} {load.repeats}" for name, load in WORKLOADS.items())
    flags.DEFINE_integer("repeats", None, f"timed rounds. Default: {defaults}", lower_bound=1)
    flags.DEFINE_bool("profile", False, "time the parts of an ANP-VS step instead")


def main() -> None:
    values = flags.FLAGS
    _check_choices("networks", values.networks, WORKLOADS)
    _check_choices("precisions", values.precisions, PRECISIONS)
    try:
        shares = [float(share) for share in values.pruned]
    except ValueError:
        raise UsageError(f"--pruned must be numbers between commas; got {values.pruned}") from None
    if not all(0 <= share < 1 for share in shares):
        raise UsageError(f"--pruned must lie in [0, 1); got {values.pruned}")

    tf.get_logger().setLevel("ERROR")  # It takes many variants for a function that is retraced.
    columns = PROFILE_COLUMNS if values.profile else STEP_COLUMNS
    print(f"{environment()}\n")
    print_rows([columns, ("---",) * len(columns)])
    for network in values.networks:
        repeats = values.repeats or WORKLOADS[network].repeats
        for precision in values.precisions:
            title = f"{network} {precision}"
            if values.profile:
                measured = measure(title, parts(network, precision), repeats)
                print_rows(profile_rows(title, measured))
            else:
                measured = measure(title, steps(network, precision, shares), repeats)
                print_rows(step_rows(network, title, measured))


def _check_choices(flag: str, chosen: list[str], choices) -> None:
    for name in chosen:
        if name not in choices:
            raise UsageError(f"unknown --{flag} {name!r}; choose of {', '.join(choices)}")


# ---- The steps ----


def classifier_of(
    network: str,
    precision: str,
    method: str,
    kind: type[RobustClassifier] = RobustClassifier,
    attack_steps: int | None = None,
) -> RobustClassifier:
    """A classifier, ready to train as `loop.train` makes it, at the published settings."""
    load = WORKLOADS[network]
    chosen = settings.resolve(
        {
            "dataset": load.dataset,
            "network": network,
            "method": method,
            "batch_size": load.batch_size,
            "precision": precision,
        }
    )
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
    model = runs.build_network(chosen, settings.PRECISIONS[precision])
    classifier = kind(model, METHODS[method], objective)
    optimizer = loop.make_optimizer(chosen, total_steps=1_000)
    classifier.compile(optimizer=optimizer, jit_compile=False)
    optimizer.build(model.trainable_variables)
    return classifier


def prune(classifier: RobustClassifier, share: float) -> None:
    """Shuts a random `share` of every gate's features, opens the rest, and refreezes."""
    generator = np.random.default_rng(0)
    for gate in classifier.gates:
        features = gate.a_raw.shape[0]
        raw = np.full(features, OPEN, np.float32)
        raw[generator.permutation(features)[: round(share * features)]] = SHUT
        gate.a_raw.assign(raw)
    classifier.refreeze()


def batch_of(network: str) -> tuple[np.ndarray, np.ndarray]:
    """A batch of random images and labels: the time of a step does not depend on them."""
    load = WORKLOADS[network]
    source = SOURCES[load.dataset]
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
    if importlib.util.find_spec("torch"):
        objective = classifier_of(network, precision, "at").objective
        step = torch_step(network, precision, objective, images, labels)
        variants.append(Variant(("at in PyTorch", "unfrozen", ""), step))
    return variants


def torch_step(
    network: str,
    precision: str,
    objective: Objective,
    images: np.ndarray,
    labels: np.ndarray,
) -> Callable[[], float]:
    """The AT step in PyTorch, as a PyTorch user would make it fast on a CPU."""
    import torch
    from torch.nn import functional

    torch.set_num_threads(os.cpu_count())
    torch.manual_seed(0)
    model = torch_network(network).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(
        model.parameters(), lr=1e-3, weight_decay=objective.weight_decay, fused=True
    )
    clean = torch.from_numpy(images).permute(0, 3, 1, 2)
    clean = clean.contiguous(memory_format=torch.channels_last)
    truth = torch.from_numpy(labels)
    # One context for all PGD steps: autocast keeps the cast weights until it is left.
    autocast = functools.partial(
        torch.autocast, "cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"
    )
    low = torch.clamp(clean - objective.epsilon, min=0.0)
    high = torch.clamp(clean + objective.epsilon, max=1.0)

    def craft():
        model.eval()
        start = torch.empty_like(clean).uniform_(-objective.epsilon, objective.epsilon)
        x = torch.clamp(clean + start, 0.0, 1.0)
        with autocast():
            for _ in range(objective.attack_steps):
                x.requires_grad_()
                loss = functional.cross_entropy(model(x).float(), truth, reduction="sum")
                (gradient,) = torch.autograd.grad(loss, x)
                x = (x.detach() + objective.step_size * gradient.sign()).clamp(low, high)
        return x

    def step() -> float:
        adversarial = craft()
        model.train()
        optimizer.zero_grad()
        with autocast():
            logits = model(torch.cat([clean, adversarial])).float()
        clean_loss = functional.cross_entropy(logits[: len(truth)], truth)
        adversarial_loss = functional.cross_entropy(logits[len(truth) :], truth)
        w = objective.adversarial_weight
        loss = (clean_loss + w * adversarial_loss) / (1 + w)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def torch_network(network: str):
    """The ungated network of `anpvs_tf.networks`, as a `torch.nn.Module`."""
    import torch
    from torch import nn

    class Standardise(nn.Module):
        def __init__(self):
            super().__init__()
            mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in CIFAR_STATISTICS)
            self.register_buffer("mean", mean)
            self.register_buffer("deviation", deviation)

        def forward(self, x):
            return (x - self.mean) / self.deviation

    if network == "lenet5":
        return nn.Sequential(
            *(nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10)),
        )
    modules, channels = [Standardise()], 3
    for block, widths in enumerate(((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)):
        for i, width in enumerate(widths):
            modules += [nn.Conv2d(channels, width, 3, padding=1, bias=False)]
            modules += [nn.BatchNorm2d(width), nn.ReLU()]
            if i < len(widths) - 1:
                modules += [nn.Dropout(0.4 if block else 0.3)]
            channels = width
        modules += [nn.MaxPool2d(2)]
    modules += [nn.Flatten(), nn.Dropout(0.5), nn.Linear(512, 512, bias=False)]
    modules += [nn.BatchNorm1d(512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, 10)]
    return nn.Sequential(*modules)


# ---- The parts of a step ----


def parts(network: str, precision: str) -> list[Variant]:
    """An ANP-VS step with nothing pruned, and its parts, each compiled by itself."""
    images, labels = batch_of(network)
    batch = tf.constant(images), tf.constant(labels)
    seed = noise.seed_of(0)

    def update(method: str) -> Callable:
        # No steps of the attack: its random start and the whole of the update are left.
        return step_of(classifier_of(network, precision, method, attack_steps=0), batch)

    whole = classifier_of(network, precision, "anpvs")
    prune(whole, 0.0)
    macs = whole.frozen.multiplications * len(labels)
    attack_steps = whole.objective.attack_steps
    # A classifier of its own: what is applied here is no gradient.
    other = classifier_of(network, precision, "anpvs")
    variables = other.network.trainable_variables

    @tf.function(autograph=False)
    def craft():
        return tf.reduce_sum(whole.craft(*batch, seed))

    @tf.function(autograph=False)
    def fold():
        return tf.add_n([tf.norm(tf.cast(w, tf.float32)) for s in whole.frozen.fold() for w in s])

    @tf.function(autograph=False)
    def forward():
        with noise.scope(seed, 2):
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


# ---- Measuring and showing ----


def measure(title: str, variants: list[Variant], repeats: int) -> list[tuple[Variant, list[float]]]:
    """Seconds of each variant in each round; the first call, which compiles, is not timed."""
    for number, variant in enumerate(variants, start=1):
        _progress(f"{title}: compiling {number}/{len(variants)} {_name(variant)}")
        variant.run()
    seconds = [[] for _ in variants]
    for repeat in range(1, repeats + 1):
        for variant, times in zip(variants, seconds, strict=True):
            started = time.perf_counter()
            variant.run()
            times.append(time.perf_counter() - started)
            _progress(f"{title}: round {repeat}/{repeats} {_name(variant)} {times[-1]:.3f} s")
    return list(zip(variants, seconds, strict=True))


def _name(variant: Variant) -> str:
    return " ".join(filter(None, variant.cells))


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _ratio(numerator: list[float], denominator: list[float]) -> str:
    pairs = zip(numerator, denominator, strict=True)
    return f"{statistics.median(n / d for n, d in pairs):.2f}"


STEP_COLUMNS = (
    "network, precision",
    "method",
    "crafted on",
    "pruned",
    "seconds a step (range)",
    "images/s",
    "time / AT",
    "speed / PyTorch AT",
)


def step_rows(
    network: str, title: str, measured: list[tuple[Variant, list[float]]]
) -> list[tuple[str, ...]]:
    """Rows of the table of steps; the first variant is AT, the last may be PyTorch's."""
    at = measured[0][1]
    variant, times = measured[-1]
    torch_times = times if "PyTorch" in variant.cells[0] else None
    rows = []
    for variant, times in measured:
        images = WORKLOADS[network].batch_size / statistics.median(times)
        speed = _ratio(torch_times, times) if torch_times else ""
        cells = (_seconds(times), f"{images:.1f}", _ratio(times, at), speed)
        rows.append((title, *variant.cells, *cells))
    return rows


PROFILE_COLUMNS = (
    "network, precision",
    "part",
    "what",
    "seconds (range)",
    "of the step",
    "Gmultiply-adds/s",
)


def profile_rows(title: str, measured: list[tuple[Variant, list[float]]]) -> list[tuple[str, ...]]:
    """Rows of the table of parts; the first variant is the whole step."""
    whole = measured[0][1]
    rows = []
    for variant, times in measured:
        rate = ""
        if variant.multiplications:
            rate = f"{variant.multiplications / statistics.median(times) / 1e9:.0f}"
        rows.append((title, *variant.cells, _seconds(times), _ratio(times, whole), rate))
    return rows


def _seconds(times: list[float]) -> str:
    return f"{statistics.median(times):.3f} ({min(times):.3f}-{max(times):.3f})"


def print_rows(rows: list[tuple[str, ...]]) -> None:
    """Prints rows of the Markdown table as soon as they are known."""
    for cells in rows:
        print(f"| {' | '.join(cells)} |", flush=True)


def environment() -> str:
    """One line: processor, cores, load, versions, date, command."""
    packages = [
        f"{name} {importlib.metadata.version(name)}"
        for name in ("tensorflow", "keras", "torch")
        if importlib.util.find_spec(name)
    ]
    return "; ".join(
        [
            f"{processor()}, {os.cpu_count()} cores",
            f"load {os.getloadavg()[0]:.1f} at the start",
            f"Python {platform.python_version()}, {', '.join(packages)}",
            datetime.date.today().isoformat(),
            f"`python -m benchmarks.train_step {' '.join(sys.argv[1:])}`".replace(" `", "`"),
        ]
    )


def processor() -> str:
    """The processor's model name."""
    try:
        with open("/proc/cpuinfo") as cpuinfo:
            names = [line.partition(":")[2] for line in cpuinfo if line.startswith("model name")]
    except OSError:
        names = []
    return names[0].strip() if names else platform.processor()


if __name__ == "__main__":
    define_flags()
    programs.run(main)
