"""What coupled pruning of a residual network saves: size, latency, crafting.

  python -m benchmarks.coupled                          about 5 minutes on 2 cores
  python -m benchmarks.coupled --networks=resnet20 --repeats=3

From the root of the repository. Two Markdown tables go to standard output.

Half of all features of every gate is pruned, at random, in ResNets with random weights: "alone",
gates inside the blocks and between the stages; "coupled", a gate for all that write to a residual
sum too (`add_gates(model, coupled=True)`). Latency is of batches of 64. Crafting is PGD with 10
steps on the gated network in evaluation, on the frozen one with nothing pruned, and on the frozen
one, 64 images; all take turns.
"""

import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from anpvs_tf.attacks.projected_gradient import pgd
from anpvs_tf.common import program, randomness
from anpvs_tf.networks import architectures
from anpvs_tf.networks.gate import gates_of
from anpvs_tf.networks.gating import add_gates
from anpvs_tf.pruning import compact, efficiency
from anpvs_tf.pruning.frozen import FrozenNetwork
from benchmarks import timing
from benchmarks.timing import Variant

NETWORKS = ("resnet18", "resnet20")
BATCH = 64
PRUNED = 0.5
SIZES = ("network", "gates", "xFLOPs", "MFLOPs", "parameters", "model.keras, kB", "latency, ms")
SIZES += ("speed-up", "peak MiB")
CRAFTING = ("network", "crafted on", "seconds (range)", "speed / gated", "multiply-adds left")


def gated(name: str, coupled: bool) -> keras.Model:
    """A network of random weights with random features pruned."""
    plain = architectures.NETWORKS[name]((32, 32, 3), 10)
    network = add_gates(
        keras.Model(plain.inputs, plain.output["logits"], name=name), coupled=coupled
    )
    rng = np.random.default_rng(0)
    for gate in gates_of(network):
        gate.close(rng.permutation(gate.features) < round(PRUNED * gate.features))
    return network


def file_bytes(model: keras.Model) -> int:
    """Bytes of the model's Keras file."""
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "model.keras"
        model.save(path)
        return path.stat().st_size


def sizes(name: str, repeats: int) -> list[tuple[str, ...]]:
    """Rows of the first table."""
    networks = {form: gated(name, form == "coupled") for form in ("alone", "coupled")}
    models = {"dense": compact.freeze(networks["alone"], prune=False)}
    models |= {form: compact.freeze(network) for form, network in networks.items()}
    measured = efficiency.measure(models, batch_sizes=(BATCH,), repeats=repeats)
    whole = efficiency.flops(models["dense"])
    rows = []
    for form, model in models.items():
        seconds = {key: found["latency"][BATCH] for key, found in measured.items()}
        flops = efficiency.flops(model)
        cells = [name, form, f"{whole / flops:.2f}", f"{flops / 1e6:.1f}"]
        cells += [f"{model.count_params():,}", f"{file_bytes(model) / 1e3:,.0f}"]
        cells += [f"{1e3 * seconds[form]:.1f}", f"{seconds['dense'] / seconds[form]:.2f}"]
        rows.append((*cells, f"{measured[form]['peak_memory'][BATCH] / 2**20:.1f}"))
    return rows


def crafting(name: str, repeats: int) -> list[tuple[str, ...]]:
    """Rows of the second table."""
    network = gated(name, coupled=True)
    rng = np.random.default_rng(0)
    images = tf.constant(rng.random((BATCH, 32, 32, 3)), tf.float32)
    labels = tf.constant(rng.integers(0, 10, BATCH))

    def attack(logits_of: Callable) -> Callable[[], object]:
        @tf.function(autograph=False)
        def run():
            settings = {"epsilon": 0.03, "step_size": 0.007, "steps": 10}
            found = pgd(logits_of(), images, labels, randomness.seed_of(0), **settings)
            return tf.reduce_sum(found)

        return lambda: float(run())

    def of(frozen: FrozenNetwork) -> Callable:
        def logits_of():
            weights = frozen.fold()  # Once, as training does.
            return lambda x: frozen.apply(weights, x)

        return logits_of

    dense, pruned = FrozenNetwork(network, prune=False), FrozenNetwork(network)
    measured = timing.measure(
        name,
        [
            Variant(("gated", "1"), attack(lambda: lambda x: network(x, training=False)["logits"])),
            Variant(("frozen, nothing pruned", "1"), attack(of(dense))),
            Variant(
                ("frozen", f"{pruned.multiplications / dense.multiplications:.2f}"),
                attack(of(pruned)),
            ),
        ],
        repeats,
    )
    base = measured[0][1]
    return [
        (name, v.cells[0], timing.seconds(times), timing.ratio(base, times), v.cells[1])
        for v, times in measured
    ]


MEASURED = "What to measure"


def define(flags: program.Flags) -> None:
    flags.add(MEASURED, tuple, "networks", list(NETWORKS), f"of {', '.join(NETWORKS)}")
    flags.add(MEASURED, int, "repeats", 9, "timed rounds", lower_bound=1)


def main(values: Any) -> None:
    timing.check_choices("networks", values.networks, NETWORKS)
    print(f"{timing.environment('coupled')}\n")
    timing.print_rows([SIZES, ("---",) * len(SIZES)])
    for name in values.networks:
        timing.print_rows(sizes(name, values.repeats))
    print()
    timing.print_rows([CRAFTING, ("---",) * len(CRAFTING)])
    for name in values.networks:
        timing.print_rows(crafting(name, values.repeats))


if __name__ == "__main__":
    program.run(main, __doc__, define)
