"""The lines that programs print: epoch summaries and result tables."""

from typing import Any

from anpvs_tf.attacks import radius
from anpvs_tf.common.progress import duration
from anpvs_tf.methods.registry import METHODS
from anpvs_tf.runs.records import attack_text, pruned
from anpvs_tf.runs.result_record import ResultRecord
from anpvs_tf.runs.settings import Settings


def plan(settings: Settings, images: int, start: str) -> str:
    """Describes a run before it begins, line by line.

    Args:
        images: of the training split.
        start: where its weights come from.
    """
    method = METHODS[settings.method]
    width = "" if settings.width == 1 else f" at width {settings.width:g}"
    steps = images // settings.batch_size
    if settings.steps_per_epoch and settings.steps_per_epoch < steps:
        images = settings.steps_per_epoch * settings.batch_size
    ball = f"{settings.norm} {radius.as_text(settings.epsilon)}"
    attack = "clean images alone"
    if method.adversarial:
        steps = f"PGD-{settings.attack_steps} of step {radius.as_text(settings.step_size)}"
        trained = settings.epsilon * settings.train_epsilon_scale
        attack = (
            f"{'N-FGSM' if settings.train_attack == 'n_fgsm' else steps}, "
            f"{settings.norm} {radius.as_text(trained)}"
        )
    lines = [
        ("network", f"{settings.network}{width}, seed {settings.seed}, {start}"),
        (
            "training",
            f"{settings.epochs} epochs of {images:,} images in batches of {settings.batch_size}, "
            f"{settings.optimizer}, rate {settings.learning_rate:g} ({settings.decay})",
        ),
        ("trained against", attack),
    ]
    if method.learned_gates and settings.target_sparsity is not None:
        target = f"{settings.target_sparsity:.1%} of {settings.target_of}"
        lines.append(("pruned to", f"{target} by {settings.target_at:.0%} of the training"))
    elif method.learned_gates:
        lines.append(("pruned by", f"KL with beta {settings.beta:g}"))
    if method.learned_gates and settings.freeze_gates_at < 1:
        lines.append(("gates held", f"from {settings.freeze_gates_at:.0%} of the training on"))
    if settings.freeze_below is not None:
        lines.append(("not trained", f"{settings.freeze_below} and all that it depends on"))
    lines.append(
        (
            "judged by",
            f"PGD-{settings.eval_attack_steps} of step {radius.as_text(settings.eval_step_size)}, "
            f"{ball}",
        )
    )
    head = f"{method.name} on {settings.dataset}: {method.summary}"
    return "\n".join([head, *(f"  {name:<18}{value}" for name, value in lines)])


def epoch_summary(settings: Settings, row: dict[str, Any], timing: dict[str, Any]) -> str:
    """Writes the line that stays on the screen after an epoch."""
    sparsity = f"sparsity {row['sparsity']:.1%}  " if METHODS[settings.method].prunes else ""
    return (
        f"epoch {row['epoch']}/{settings.epochs}  loss {row['loss']:.3f}  "
        f"validation: clean {row['validation_clean_accuracy']:.1%}  "
        f"PGD {row['validation_robust_accuracy']:.1%}  "
        f"V {row['validation_vulnerability']:.4f}  {sparsity}"
        f"{duration(timing['seconds'])}  {timing['images_per_second']:.0f} images/s"
    )


def target_summary(target: dict[str, Any]) -> str:
    """Says in a line whether --target_sparsity was reached."""
    text = f"{target['reached']:.1%} of {target['of']} pruned, {target['asked']:.1%} asked for"
    if target["met"]:
        return f"target met: {text}"
    if target["reached"] > target["asked"]:
        return f"target not met: {text}; a later --target_at prunes more slowly"
    return (
        f"target not met: {text}; more --epochs, a larger --gate_learning_rate, an earlier "
        "--target_at or a smaller --min_active let more be pruned"
    )


def evaluation_table(records: list[ResultRecord]) -> str:
    """Writes records of bin/evaluate.py as lines: the accuracies, then every check."""
    lines, shown = [], []
    for record in records:
        threat = record["threat_model"]
        low, high = record["interval"]
        figure = f"{record['accuracy_under_attack']:.2%} ({low:.1%} to {high:.1%})"
        remark = ""
        if record["robust_accuracy"] is None:
            remark = "   not a robust accuracy: the model is stochastic, use --eot=20"
        elif record.get("reliable") is False:
            remark = "   UNRELIABLE: " + "; ".join(record.get("unreliable_because", ["see checks"]))
        if "vulnerability" in record:
            figure += f"   V {record['vulnerability']:.4f}"
        head = (
            f"{threat['norm']} {radius.as_text(threat['epsilon'])}  {attack_text(record['attack'])}"
        )
        lines.append(f"  {head:<70}  {figure}{remark}")
        if "checks" in record and record["checks"] not in shown:
            shown.append(record["checks"])
    first = records[0]
    clean = f"{first['clean_accuracy']:.2%}"
    title = (
        f"{first['model']}: {first['examples']} {first['split']} images of "
        f"{first['dataset']}, clean {clean}"
    )
    lines.insert(0, title)
    if "at_chance" in first:
        lines.insert(1, f"  AT CHANCE: {first['at_chance']}")
    for checks in shown:
        lines.append("checks")
        for check in checks:
            state = "ok    " if check["passed"] else "FAILED"
            failed = "" if check["passed"] else f"\n{'':<24}{check['meaning']}"
            lines.append(f"  {state} {check['name']:<15}{check['found']}{failed}")
    return "\n".join(lines)


def result_table(record: ResultRecord) -> str:
    """Writes the record of a training run as the lines that end it."""
    attack, threat = record["attack"], record["threat_model"]
    features = "  ".join(
        f"{layer} {active}/{total}" for layer, (active, total) in record["active_features"].items()
    )
    lines = [
        ("clean accuracy", f"{record['clean_accuracy']:.2%}"),
        (
            f"{attack['name'].upper()}-{attack['steps']} accuracy",
            f"{record['robust_accuracy']:.2%}   {threat['norm']}, "
            f"epsilon {radius.as_text(threat['epsilon'])}, "
            f"step {radius.as_text(attack['step_size'])}, {attack['restarts']} start",
        ),
        ("vulnerability", f"{record['vulnerability']:.4f}"),
    ]
    shares = pruned(record)
    if shares or METHODS[record["method"]].prunes:
        lines.append(("sparsity", ", ".join(shares) or "nothing is pruned"))
    if shares:
        lines.append(("active features", features))
    lines += _efficiency_lines(record["efficiency"])
    spent = (duration(record["timing"][f"{what}_seconds"]) for what in ("training", "evaluation"))
    lines.append(("time", "training {}, test {}".format(*spent)))
    head = (
        f"{record['method']} on {record['dataset']} ({record['network']}, seed {record['seed']}), "
        f"{record['examples']} {record['split']} images"
    )
    if "at_chance" in record:
        lines.insert(0, ("AT CHANCE", record["at_chance"]))
    return "\n".join([head, *(f"  {name:<18}{value}" for name, value in lines)])


def _efficiency_lines(saved: dict[str, Any]) -> list[tuple[str, str]]:
    """Lists the costs of the deployed network, beside the unpruned one's where they are less."""
    compact, dense = saved["measured"]["compact"], saved["measured"]["dense"]
    flops, maps = f"{saved['flops_reduction']:.2f}", f"{saved['feature_map_memory']:.1%}"
    lines = []
    if flops != "1.00":
        lines.append(("FLOPs", f"1 / {flops} of the unpruned network's"))
    if maps != "100.0%":
        lines.append(("feature maps", f"{maps} of the unpruned network's memory"))
    size = _of("{:,}", compact["saved_model_bytes"], dense["saved_model_bytes"])
    lines += [("parameters", _of("{:,}", *saved["parameters"])), ("SavedModel", f"{size} bytes")]
    for size in compact["latency"]:
        milliseconds = (1e3 * m["latency"][size] for m in (compact, dense))
        peak = (m["peak_memory"][size] / 2**20 for m in (compact, dense))
        text = f"{_of('{:.2f}', *milliseconds)} ms, {_of('{:.2f}', *peak)} MiB at the peak"
        lines.append((f"batch of {size}", text))
    return lines


def _of(form: str, after: float, before: float) -> str:
    """Writes "5 of 10" for both numbers; the first alone if they are the same within a percent."""
    texts = [form.format(value) for value in (after, before)]
    return " of ".join(texts) if abs(after - before) > 0.01 * before else texts[0]
