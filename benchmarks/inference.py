"""Latency, size and memory of a network: gated, folded, compact.

  python -m benchmarks.inference                   VGG-16, about 2 minutes on 2 cores
  python -m benchmarks.inference --run_dir=RUN     and the network of a finished run

From the root of the repository. A Markdown table goes to standard output.

gated: the training network in inference mode. folded: frozen, nothing pruned. compact: frozen
and pruned, as it is deployed. VGG-16 has random weights and 76.5 % of its gated features pruned:
"published" as the published network probably is, early layers almost whole (which makes the
published 2.4 xFLOPs), "uniform" with the same share in every layer.

The three take turns, a call each. Milliseconds are medians; speed-ups are ratios of medians.
"""

import os
import sys
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from anpvs_tf.common import program
from anpvs_tf.networks import architectures
from anpvs_tf.networks.gate import gates_of
from anpvs_tf.pruning import compact, efficiency
from anpvs_tf.runs.finished_run import open_run

VGG16_WIDTHS = (64, 64, 128, 128, 256, 256, 256, *[512] * 8)
# Features that stay: 1,232 of 5,248.
PATTERNS = {
    "published": (64, 64, 128, 128, 200, 120, 80, *[56] * 8),
    "uniform": tuple(round(0.235 * width) for width in VGG16_WIDTHS),
}


def vgg16(kept: tuple[int, ...]) -> keras.Model:
    """VGG-16 for CIFAR-10 with random features pruned."""
    network = architectures.vgg16((32, 32, 3), 10, gate="beta_bernoulli")
    rng = np.random.default_rng(0)
    for gate, count in zip(gates_of(network), kept, strict=True):
        gate.close(rng.permutation(gate.features) >= count)
    return network


def rows(name: str, network: keras.Model, repeats: int) -> list[str]:
    """A table row for each batch size."""
    folded, small = compact.freeze(network, prune=False), compact.freeze(network)
    costs = efficiency.costs(small, folded)
    sparsity = efficiency.sparsity(efficiency.active_features(network))
    print(f"{name} ...", file=sys.stderr, flush=True)
    found = efficiency.measure(
        {
            "gated": network,
            "folded": folded,
            "compact": small,
        },
        repeats=repeats,
    )
    lines = []
    for size in found["gated"]["latency"]:
        seconds = {form: values["latency"][size] for form, values in found.items()}
        speedups = [seconds[form] / seconds["compact"] for form in ("gated", "folded")]
        cells = [name, f"{sparsity:.1%}", f"{costs['flops_reduction']:.2f}", str(size)]
        cells += [f"{1e3 * value:.2f}" for value in seconds.values()]
        cells += [f"{speedup:.2f}" for speedup in speedups]
        cells += [" / ".join(f"{v['peak_memory'][size] / 2**20:.1f}" for v in found.values())]
        cells += [" / ".join(f"{v['saved_model_bytes'] / 2**20:.2f}" for v in found.values())]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


MEASURED = "What to measure"


def define(flags: program.Flags) -> None:
    flags.add(MEASURED, str, "run_dir", None, "a finished run of bin/train.py")
    flags.add(
        MEASURED,
        str,
        "patterns",
        list(PATTERNS),
        "of VGG-16's pruning",
        choices=tuple(PATTERNS),
        repeated=True,
    )
    flags.add(
        MEASURED, int, "repeats", 20, "timed calls of each form and batch size", lower_bound=1
    )


def main(values: Any) -> None:
    head = (
        "network",
        "sparsity",
        "xFLOPs",
        "batch",
        "gated ms",
        "folded ms",
        "compact ms",
        "speed-up on gated",
        "on folded",
        "peak MiB: gated / folded / compact",
        "SavedModel MiB",
    )
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    if values.run_dir:
        run = open_run(values.run_dir)
        lines += rows(run.settings.dataset, run.network(), values.repeats)
    for pattern in values.patterns:
        lines += rows(f"vgg16, {pattern}", vgg16(PATTERNS[pattern]), values.repeats)
    print("\n".join(lines))


if __name__ == "__main__":
    program.run(main, __doc__, define)
