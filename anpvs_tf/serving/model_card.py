"""The model card: what a user of an exported model has to know."""

from typing import Any

import keras

from anpvs_tf.attacks import radius
from anpvs_tf.pruning import efficiency
from anpvs_tf.runs import directory, records
from anpvs_tf.serving.verification import Report


def _doubt(record: dict[str, Any]) -> str:
    """Why a figure is not to be relied on, after it; nothing if it is."""
    if record.get("reliable", True):
        return ""
    return f" (unreliable: {'; '.join(record.get('unreliable_because', ['see its checks']))})"


def text(
    run: directory.RunDirectory, frozen: keras.Model, format: str, version: int, report: Report
) -> str:
    """A model card in Markdown.

    Args:
        run: the finished run.
        frozen: the exported network.
        format, version: as in `exporting.export`.
        report: the check of the export against the training network.
    """
    settings, results = run.settings(), run.results()
    height, width, channels = frozen.inputs[0].shape[1:]
    first = results[0]
    others = " Raw uint8 pixels and PNG or JPEG files go to the other signatures."
    threat = first["threat_model"]
    found = [
        f"| {records.attack_text(r['attack'])} "
        f"| {r['threat_model']['norm']} {radius.as_text(r['threat_model']['epsilon'])} "
        f"| {r['examples']} | {r['clean_accuracy']:.2%} | {r['robust_accuracy']:.2%}"
        f"{_doubt(r)} |"
        for r in results
        # An ensemble of posterior draws is not what is exported.
        if r["robust_accuracy"] is not None and "posterior_draws" not in r
    ]
    checked = [
        f"| {name} | {a.accuracy:.2%} | {a.equal_classes} of {report.examples} "
        f"| {a.difference:.1e} |"
        for name, a in report.exported.items()
    ]
    lines = [
        f"# {settings.network} for {settings.dataset}, trained by {settings.method}",
        "",
        f"Version {version}, {format}, made {directory.now()}.",
        "",
        "## Use",
        "",
        f"Classifies images of {height} x {width} pixels and {channels} channel(s), float32 in "
        f"[0, 1], into {frozen.output.shape[-1]} classes. Outputs: `logits`, `probabilities`, "
        f"`classes`, batch first.{others if format == 'saved_model' else ''}",
        "",
        "## Data",
        "",
        f"`{settings.dataset}`; the training split without the validation examples"
        + (f", the first {settings.train_examples} of it" if settings.train_examples else "")
        + ". The test set took no part in training.",
        "",
        "## Method",
        "",
        f"`{settings.method}`, {settings.epochs} epochs, batch {settings.batch_size}, seed "
        f"{settings.seed} (Madaan, Shin, Hwang: Adversarial Neural Pruning with Latent "
        "Vulnerability Suppression, ICML 2020). Batch normalisation and gates are folded into "
        "the kernels; pruned features are gone from the weights.",
        f"Sparsity of the gated features {first['sparsity']:.1%}; "
        f"{frozen.count_params():,} parameters; {efficiency.flops(frozen):,} FLOPs an image.",
        "",
        "## Threat model",
        "",
        f"An adversary who knows the model and may change each pixel: {threat['norm']} ball of "
        f"radius {radius.as_text(threat['epsilon'])} in pixel units of [0, 1].",
        "",
        "## Measured",
        "",
        f"On the {first['split']} set:",
        "",
        "| attack | threat model | images | clean accuracy | robust accuracy |",
        "|---|---|---|---|---|",
        *found,
        "",
        f"The export against the training network (accuracy {report.accuracy:.2%} on "
        f"{report.examples} test images):",
        "",
        "| signature or file | accuracy | equal classes | largest difference of a logit |",
        "|---|---|---|---|",
        *checked,
        "",
        "The difference is relative to the largest logit.",
        "",
        "## Limits",
        "",
        "- Robust accuracy is what the attacks above left; a stronger attack can leave less. "
        "Unreliable: a self-check failed, or another attack above found more.",
        "- Nothing is claimed about other norms, larger radii, or changes such as rotation, blur "
        "and compression.",
        "- The probabilities are not calibrated, and an image of no class gets one all the same.",
        "- Images of another size are refused, not resized.",
        "",
        "## Versions",
        "",
        ", ".join(f"{name} {number}" for name, number in directory.versions().items()),
        "",
    ]
    return "\n".join(lines)
