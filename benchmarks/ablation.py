"""What costs a pruned network its robustness, and what brings it: one change at a time, digits.

  python -m benchmarks.ablation --out=X                          every variant, seeds 0, 1 and 2
  python -m benchmarks.ablation --out=X --seeds=0 --only=base --only=gates-vib

From the root of the repository. Each variant is a run of bin/train.py, X/seed<SEED>/<VARIANT>,
which differs from `base` in the flags of `VARIANTS`; then bin/evaluate.py attacks its validation
images. No test image decides anything. Finished runs are not made again: a stopped command resumes.
A Markdown table goes to standard output, means over the seeds: accuracy under APGD-CE and targeted
APGD (100 steps, 9 targets), on which an image counts if neither breaks it, and how far it is from
`base`, image by image and seed by seed, with a 95 % interval that takes these pairs as independent.
"""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any, NamedTuple

import numpy as np

from anpvs_tf.common import program
from anpvs_tf.common.errors import TrainingError
from benchmarks import timing

BASE = {"method": "anpvs", "epochs": 26, "target_sparsity": 0.8, "lambda_vs": 30}
_DENSE = {"method": "at", "target_sparsity": None, "lambda_vs": None}
# What differs from `BASE`; None leaves a flag out. {NAME} is the run of that variant.
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "at": _DENSE,
    "at_vs": {"method": "at_vs", "target_sparsity": None},
    "at-as-cheap-as-base": _DENSE | {"match_cost_of": "{base}"},
    "at-as-cheap-as-vib": _DENSE | {"match_cost_of": "{gates-vib}"},
    "gates-vib": {"method": "anpvs_vib"},
    "vib-lambda-100": {"method": "anpvs_vib", "lambda_vs": 100},
    "vib-lambda-300": {"method": "anpvs_vib", "lambda_vs": 300},
    "lambda-0": {"method": "anp", "lambda_vs": None},
    "lambda-10": {"lambda_vs": 10},
    "lambda-100": {"lambda_vs": 100},
    "lambda-300": {"lambda_vs": 300},
    "trades": {"method": "trades_anpvs"},
    "adversarial_weight-9": {"adversarial_weight": 9},
    "attack-10-steps": {"attack_steps": 10, "step_size": 0.02},
    "min_active-0.2": {"min_active": 0.2},
    "gates-on-conv": {"gate_scope": "conv"},
    "gates-on-dense": {"gate_scope": "dense"},
    "pruned-early": {"target_at": 0.3},
    "pruned-late": {"target_at": 0.7},
    "gates-held": {"freeze_gates_at": 0.75},
    "gate-rate-0.02": {"gate_learning_rate": 0.02},
    "averaged-weights": {"weight_average": 0.99},
    "gate-rate-0.1": {"gate_learning_rate": 0.1},
    "awp": {"awp": 0.005},
    "from-scratch": {"base_epochs": 0},
    "twice-the-epochs": {"epochs": 52},
    "epochs-40": {"epochs": 40},
    "epochs-40-lambda-100": {"epochs": 40, "lambda_vs": 100},
    "vib-epochs-40-lambda-100": {"method": "anpvs_vib", "epochs": 40, "lambda_vs": 100},
    "at-epochs-40": _DENSE | {"epochs": 40},
    "at_vs-as-cheap-as-vib": {
        "method": "at_vs",
        "target_sparsity": None,
        "match_cost_of": "{gates-vib}",
    },
}
ATTACKS = ("apgd-ce", "apgd-t")
ATTACK = (f"--attack={','.join(ATTACKS)}", "--split=validation", "--check_examples=0")
HEAD = ("variant", "flags", "features pruned, %", "1 / FLOPs", "parameters, 1000", "clean, %")
HEAD += ("PGD-20, %", "APGD-CE and APGD-T, % (each seed)", "against base (95 %)")
CHOICE = "What to run"


class Figures(NamedTuple):
    """A run's figures on validation images; robust: bool [images], under both attacks."""

    pruned: float
    cheaper: float
    parameters: int
    clean: float
    pgd: float
    robust: np.ndarray


def flags_of(variant: str, directory: pathlib.Path) -> list[str]:
    """Lists the flags of bin/train.py for a variant, besides its seed and run directory."""
    runs = {name: str(directory / name) for name in VARIANTS}
    chosen = BASE | VARIANTS[variant]
    return [f"--{k}={str(v).format(**runs)}" for k, v in chosen.items() if v is not None]


def call(name: str, flags: list[str], directory: pathlib.Path) -> None:
    """Runs a program of bin/ with its output in a log file.

    Raises:
        TrainingError: it failed.
    """
    program_file = pathlib.Path(__file__).resolve().parent.parent / "bin" / f"{name}.py"
    path = directory / f"{name}.log"
    with open(path, "w") as log:
        command = [sys.executable, str(program_file), *flags]
        code = subprocess.run(command, stdout=log, stderr=log, env=os.environ).returncode
    if code:
        raise TrainingError(f"bin/{name}.py ended with {code}; {path} says why")


def make(variant: str, seed: int, directory: pathlib.Path) -> None:
    """Trains and attacks a variant, unless that was done."""
    run = directory / variant
    logs = directory / "logs" / variant
    logs.mkdir(parents=True, exist_ok=True)
    if not (run / "results.json").exists():
        flags = [*flags_of(variant, directory), f"--seed={seed}", f"--run_dir={run}"]
        call("train", flags, logs)
    if len(_attacked(run)) < len(ATTACKS):
        call("evaluate", [f"--run_dir={run}", *ATTACK], logs)


def _attacked(run: pathlib.Path) -> list[dict[str, Any]]:
    """Lists the records of the two attacks that are done."""
    held = json.loads((run / "results.json").read_text())
    return [r for r in held if r["split"] == "validation" and r["attack"]["name"] in ATTACKS]


def figures(run: pathlib.Path) -> Figures:
    """Reads the figures of a run that `make` made."""
    trained = json.loads((run / "results.json").read_text())[0]
    robust, clean = [], []
    for record in _attacked(run):
        with np.load(run / record["per_example"], allow_pickle=False) as file:
            clean.append(file["clean_predictions"] == file["labels"])
            robust.append(clean[-1] & (file["broken_by"] < 0))
    last = (run / "metrics.csv").read_text().splitlines()
    row = dict(zip(last[0].split(","), last[-1].split(","), strict=True))
    return Figures(
        trained["sparsity"],
        trained["efficiency"]["flops_reduction"],
        trained["efficiency"]["parameters"][0],
        float(np.mean(clean[0])),
        float(row["validation_robust_accuracy"]),
        np.logical_and.reduce(robust),
    )


def difference(found: np.ndarray, base: np.ndarray) -> str:
    """Writes the mean difference of paired outcomes in points, and half of its 95 % interval."""
    pairs = found.astype(float) - base
    half = 1.96 * np.std(pairs, ddof=1) / np.sqrt(pairs.size)
    return f"{100 * np.mean(pairs):+.1f} ± {100 * half:.1f}"


def row(variant: str, of_seeds: list[Figures], of_base: list[Figures] | None) -> tuple[str, ...]:
    """Makes a row of the table."""
    changes = VARIANTS[variant] or BASE
    shown = (f"`--{k}={v}`" for k, v in changes.items() if v is not None)
    mean = {
        name: float(np.mean([getattr(one, name) for one in of_seeds]))
        for name in Figures._fields[:-1]
    }
    robust = np.concatenate([one.robust for one in of_seeds])
    each = ", ".join(f"{100 * np.mean(one.robust):.1f}" for one in of_seeds)
    against = ""
    if of_base is not None and variant != "base":
        against = difference(robust, np.concatenate([one.robust for one in of_base]))
    return (
        variant,
        " ".join(shown),
        f"{100 * mean['pruned']:.1f}",
        f"{mean['cheaper']:.1f}",
        f"{mean['parameters'] / 1e3:.1f}",
        f"{100 * mean['clean']:.1f}",
        f"{100 * mean['pgd']:.1f}",
        f"{100 * np.mean(robust):.1f} ({each})",
        against,
    )


def define(flags: program.Flags) -> None:
    flags.add(CHOICE, str, "out", None, "directory of the runs", required=True)
    flags.add(CHOICE, tuple, "seeds", ["0", "1", "2"], "of the runs")
    flags.add(CHOICE, str, "only", [], "a variant; may be given several times", repeated=True)


def main(values: Any) -> None:
    chosen = values.only or list(VARIANTS)
    timing.check_choices("only", chosen, tuple(VARIANTS))
    root, found = pathlib.Path(values.out).absolute(), {}
    for seed in map(int, values.seeds):
        for variant in sorted(chosen, key=lambda name: "as-cheap-as" in name):
            timing.progress(f"seed {seed}: {variant}")
            make(variant, seed, root / f"seed{seed}")
    print(f"{timing.environment('ablation')}\n")
    timing.print_rows([HEAD, ("---",) * len(HEAD)])
    for variant in chosen:
        found[variant] = [figures(root / f"seed{seed}" / variant) for seed in values.seeds]
        timing.print_rows([row(variant, found[variant], found.get("base"))])


if __name__ == "__main__":
    program.run(main, __doc__, define)
