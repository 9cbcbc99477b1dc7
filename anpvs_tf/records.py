"""What a run says of itself: epoch rows, result records, the lines on the screen."""

from collections.abc import Iterable
from typing import Any

import keras

from anpvs_tf import efficiency, runs
from anpvs_tf.checkpoints import Position
from anpvs_tf.errors import UsageError
from anpvs_tf.evaluation import Attack, Result
from anpvs_tf.progress import duration
from anpvs_tf.settings import Settings

WORST_CASE = "worst-case"


def epoch_row(
    epoch: int, step: int, terms: dict[str, float], result: Result, network: keras.Model
) -> dict[str, Any]:
    """The row of metrics.csv of an epoch, without its times."""
    counts = efficiency.active_features(network)
    return {
        "epoch": epoch,
        "step": step,
        **terms,
        "validation_clean_accuracy": result.clean_accuracy,
        "validation_robust_accuracy": result.robust_accuracy,
        "validation_vulnerability": result.vulnerability,
        **{f"active_{layer}": active for layer, (active, _) in counts.items()},
        "sparsity": efficiency.sparsity(counts),
    }


def epoch_timing(epoch: int, seconds: float, images: int) -> dict[str, Any]:
    """The row of timings.csv of an epoch: of its steps, without the validation."""
    return {
        "epoch": epoch,
        "seconds": round(seconds, 3),
        "images_per_second": round(images / seconds, 1),
    }


def check_columns(
    run: runs.RunDirectory, position: Position, terms: Iterable[str], network: keras.Model
) -> None:
    """Refuses to go on with tables that would get rows of two kinds.

    Args:
        position: where the run stands, as its checkpoint says.
        terms: the loss terms of a step now.

    Raises:
        UsageError: the version of the package that began the run has other columns.
    """
    sums = dict.fromkeys(terms, 0.0)
    row = epoch_row(0, 0, sums, Result(0, 0.0, 0.0, 0.0, {}), network)
    held = [(one, row) for one in position.rows]
    held += [(one, epoch_timing(0, 1.0, 0)) for one in position.timings]
    held += [(position.sums, sums)] if position.sums else []
    gone = sorted({name for old, new in held for name in old.keys() - new.keys()})
    added = sorted({name for old, new in held for name in new.keys() - old.keys()})
    differences = [f"without {name}" for name in gone] + [f"with {name}" for name in added]
    if differences:
        raise UsageError(
            f"{run.path} was begun by another version of anpvs_tf; this one writes metrics.csv "
            f"and timings.csv {', '.join(differences)}: go on with the version that began it, or "
            "train into another --run_dir"
        )


def epoch_summary(settings: Settings, row: dict[str, Any], timing: dict[str, Any]) -> str:
    """The line that stays on the screen after an epoch."""
    return (
        f"epoch {row['epoch']}/{settings.epochs}  loss {row['loss']:.3f}  "
        f"validation: clean {row['validation_clean_accuracy']:.1%}  "
        f"PGD {row['validation_robust_accuracy']:.1%}  "
        f"V {row['validation_vulnerability']:.4f}  sparsity {row['sparsity']:.1%}  "
        f"{duration(timing['seconds'])}  {timing['images_per_second']:.0f} images/s"
    )


def result_record(
    settings: Settings, attack: Attack, split: str, result: Result, network: keras.Model
) -> dict[str, Any]:
    """A record of results.json."""
    counts = efficiency.active_features(network)
    return {
        "dataset": settings.dataset,
        "split": split,
        "examples": result.examples,
        "method": settings.method,
        "network": settings.network,
        "seed": settings.seed,
        "threat_model": {"norm": attack.norm, "epsilon": attack.epsilon},
        "attack": {
            "name": attack.name,
            "steps": attack.steps,
            "step_size": attack.step_size,
            "restarts": attack.restarts,
        },
        "clean_accuracy": result.clean_accuracy,
        "robust_accuracy": result.robust_accuracy,
        "vulnerability": result.vulnerability,
        "layer_vulnerability": result.layer_vulnerability,
        "sparsity": efficiency.sparsity(counts),
        "weight_sparsity": efficiency.sparsity(efficiency.nonzero_weights(network)),
        "active_features": counts,
        "date": runs.now(),
        "versions": runs.versions(),
    }


def merged(held: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`held` with `new` behind it; what `new` evaluates anew is replaced."""

    def identity(record):
        keys = ("model", "dataset", "split", "examples", "threat_model", "attack", "attack_seed")
        return {key: record.get(key) for key in keys}

    kept = list(held)
    for record in new:
        same = [other for other in kept if identity(other) == identity(record)]
        if same and "checks" not in record:
            # A repetition without checks does not take back what they found.
            found = {key: same[-1][key] for key in ("checks", "reliable") if key in same[-1]}
            record = found | record if record.get("reliable") is False else record | found
        kept = [other for other in kept if other not in same] + [record]
    return kept


def attack_text(attack: dict[str, Any]) -> str:
    """An attack of a record in words."""
    if attack["name"] == WORST_CASE:
        return "worst case of " + ", ".join(dict.fromkeys(one["name"] for one in attack["of"]))
    words = {
        "steps": "{} steps",
        "step_size": "of {:g}",
        "restarts": "{} start(s)",
        "draws": "{} draws",
        "targets": "{} targets",
        "queries": "{} queries",
        "noise_draws": "{} draws of noise",
        "gamma": "gamma {:g}",
    }
    parts = [
        words[name].format(value)
        for name, value in attack.items()
        if name in words and not (name == "draws" and value == 1)
    ]
    return f"{attack['name']} ({', '.join(parts)})" if parts else attack["name"]


def evaluation_table(records: list[dict[str, Any]]) -> str:
    """Records of bin/evaluate.py as lines: the figures, then every check."""
    lines, shown = [], []
    for record in records:
        threat = record["threat_model"]
        low, high = record["interval"]
        figure = f"{record['accuracy_under_attack']:.2%} ({low:.1%} to {high:.1%})"
        remark = ""
        if record["robust_accuracy"] is None:
            remark = "   not a robust accuracy: the model is stochastic, use --eot=20"
        elif record.get("reliable") is False:
            remark = "   UNRELIABLE: a check failed, or another attack found more"
        if "vulnerability" in record:
            figure += f"   V {record['vulnerability']:.4f}"
        head = f"{threat['norm']} {threat['epsilon']:g}  {attack_text(record['attack'])}"
        lines.append(f"  {head:<70}  {figure}{remark}")
        if "checks" in record and record["checks"] not in shown:
            shown.append(record["checks"])
    first = records[0]
    clean = f"{first['clean_accuracy']:.2%}"
    title = (
        f"{first['model']}: {first['examples']} test images of {first['dataset']}, clean {clean}"
    )
    lines.insert(0, title)
    for checks in shown:
        lines.append("checks")
        for check in checks:
            state = "ok    " if check["passed"] else "FAILED"
            failed = "" if check["passed"] else f"\n{'':<24}{check['meaning']}"
            lines.append(f"  {state} {check['name']:<15}{check['found']}{failed}")
    return "\n".join(lines)


def result_table(record: dict[str, Any]) -> str:
    """The record of a training run as the lines that end it."""
    attack, threat = record["attack"], record["threat_model"]
    features = "  ".join(
        f"{layer} {active}/{total}" for layer, (active, total) in record["active_features"].items()
    )
    lines = [
        ("clean accuracy", f"{record['clean_accuracy']:.2%}"),
        (
            f"{attack['name'].upper()}-{attack['steps']} accuracy",
            f"{record['robust_accuracy']:.2%}   {threat['norm']}, epsilon {threat['epsilon']:g}, "
            f"step {attack['step_size']:g}, {attack['restarts']} start",
        ),
        ("vulnerability", f"{record['vulnerability']:.4f}"),
        (
            "sparsity",
            f"{record['sparsity']:.2%} of features, {record['weight_sparsity']:.2%} of weights",
        ),
        ("active features", features or "all (no gates)"),
    ]
    lines += _efficiency_lines(record["efficiency"])
    spent = (duration(record["timing"][f"{what}_seconds"]) for what in ("training", "evaluation"))
    lines.append(("time", "training {}, test {}".format(*spent)))
    head = (
        f"{record['method']} on {record['dataset']} ({record['network']}, seed {record['seed']}), "
        f"{record['examples']} {record['split']} images"
    )
    return "\n".join([head, *(f"  {name:<18}{value}" for name, value in lines)])


def of_training(record: dict[str, Any]) -> bool:
    """Whether bin/train.py wrote this record; else bin/evaluate.py did."""
    return "efficiency" in record


def training_record(run: runs.RunDirectory) -> dict[str, Any]:
    """What bin/train.py wrote of a finished run.

    Raises:
        UsageError: it is not finished, or damaged.
    """
    for record in run.results():
        if of_training(record):
            return record
    raise UsageError(f"{run.path} has no results of a finished training")


def _efficiency_lines(saved: dict[str, Any]) -> list[tuple[str, str]]:
    compact, dense = saved["measured"]["compact"], saved["measured"]["dense"]
    after, before = saved["parameters"]
    lines = [
        ("FLOPs", f"1 / {saved['flops_reduction']:.2f} of the unpruned network's"),
        ("feature maps", f"{saved['feature_map_memory']:.1%} of the unpruned network's memory"),
        ("parameters", f"{after:,} of {before:,}"),
        ("SavedModel", f"{compact['saved_model_bytes']:,} of {dense['saved_model_bytes']:,} bytes"),
    ]
    for size in compact["latency"]:
        milliseconds = (1e3 * m["latency"][size] for m in (compact, dense))
        peak = (m["peak_memory"][size] / 2**20 for m in (compact, dense))
        lines.append(
            (
                f"batch of {size}",
                "{:.2f} of {:.2f} ms, ".format(*milliseconds)
                + "{:.2f} of {:.2f} MiB at the peak".format(*peak),
            )
        )
    return lines
