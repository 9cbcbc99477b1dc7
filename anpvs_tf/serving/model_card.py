"""The model card: the facts that a user of an exported model has to know."""

import re
from typing import Any

import keras
from markupsafe import Markup

from anpvs_tf.attacks import radius
from anpvs_tf.common import templates
from anpvs_tf.pruning import efficiency
from anpvs_tf.runs import directory, records
from anpvs_tf.runs.finished_run import FinishedRun
from anpvs_tf.runs.result_record import ResultRecord
from anpvs_tf.serving.verification import Report

# Names of Hugging Face: the library that loads a format; datasets that have the same name there.
LIBRARIES = {"keras": "keras", "onnx": "onnx"}
PUBLIC_DATASETS = ("mnist", "cifar10", "cifar100")


def text(
    run: FinishedRun,
    frozen: keras.Model,
    format: str,
    version: int,
    report: Report,
    license: str | None = None,
    hub: str | None = None,
    calibrated: int = 0,
) -> str:
    """Renders a model card in Markdown, by `templates/model_card.md`.

    It begins with the metadata in YAML that Hugging Face reads.

    Args:
        frozen: the exported network.
        format, version: as in `exporting.export`.
        report: the check of the export against the training network.
        license: of the network, as Hugging Face calls it; None to say nothing of it.
        hub: the repository USER/NAME of the Hugging Face Hub that the card is for; None for the
            card of the version itself.
        calibrated: the training images that an int8 file was calibrated on.
    """
    first = run.trained
    height, width, channels = frozen.inputs[0].shape[1:]
    settings = run.settings
    of_export = [record for record in run.records if _is_of_the_export(record)]
    held: dict[str, Any] = {
        "settings": settings,
        "name": f"{settings.dataset}-{settings.network}-{settings.method}",
        "library": LIBRARIES.get(format),
        "license": license,
        "public_dataset": settings.dataset in PUBLIC_DATASETS,
        "metrics": _metrics(of_export),
        "version": version,
        "format": format,
        "calibrated": calibrated,
        "file": f"hf://{hub}" if hub else "model.keras",
        "date": directory.now(),
        "height": height,
        "width": width,
        "channels": channels,
        "classes": frozen.output.shape[-1],
        "pruned": records.pruned(first),
        "parameters": frozen.count_params(),
        "flops": efficiency.flops(frozen),
        "norm": first["threat_model"]["norm"],
        "radius": radius.as_text(first["threat_model"]["epsilon"]),
        "split": first["split"],
        "measured": [_measured(record) for record in of_export],
        "accuracy": f"{report.accuracy:.2%}",
        "examples": report.examples,
        "checked": [
            (
                name,
                f"{found.accuracy:.2%}",
                f"{found.equal_classes} of {report.examples}",
                f"{found.difference:.1e}",
                "" if found.size is None else f"{found.size:,}",
            )
            for name, found in report.exported.items()
        ],
        "unchecked": report.unchecked,
        "versions": directory.versions(),
    }
    environment = templates.environment("anpvs_tf.serving")
    environment.filters["code"] = code
    return environment.get_template("model_card.md").render(held)


def code(text: str) -> Markup:
    """Makes a code span of Markdown, in which nothing has a meaning, whatever the text holds."""
    text = " ".join(text.split())
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return Markup(f"{fence}{space}{text}{space}{fence}")


def _is_of_the_export(record: ResultRecord) -> bool:
    # An ensemble of posterior draws is not exported.
    return record["robust_accuracy"] is not None and "posterior_draws" not in record


def _metrics(measured: list[ResultRecord]) -> list[tuple[str, float]]:
    """Lists (name, share in [0, 1]) of the clean accuracy, and of the reliable robust ones."""
    found = [("clean accuracy", round(measured[0]["clean_accuracy"], 4))] if measured else []
    for record in measured:
        if record.get("reliable", True):
            attack, threat, *_ = _measured(record)
            name = f"accuracy under {attack}, {threat}, {record['examples']} images"
            found.append((name, round(record["robust_accuracy"], 4)))
    return found


def _measured(record: ResultRecord) -> tuple[str, ...]:
    """Formats a record as cells: attack, threat model, images, clean accuracy, robust accuracy."""
    threat = record["threat_model"]
    doubt = ""
    if not record.get("reliable", True):
        doubt = f" (unreliable: {'; '.join(record.get('unreliable_because', ['see its checks']))})"
    return (
        records.attack_text(record["attack"]),
        f"{threat['norm']} {radius.as_text(threat['epsilon'])}",
        str(record["examples"]),
        f"{record['clean_accuracy']:.2%}",
        f"{record['robust_accuracy']:.2%}{doubt}",
    )
