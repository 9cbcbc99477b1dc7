"""Export of a finished run for TensorFlow Serving, Triton, LiteRT, Keras, ONNX Runtime
or PyTorch, or as a web page.

DIR/models.config, DIR/batching.config or DIR/config.pbtxt, DIR/configs/onnxruntime.pbtxt
    for the server; kept if they exist
DIR/inference_service.yaml               for KServe; kept if it exists
DIR/<version>/saved_model.pb, variables/ or model.tflite, model_<quantisation>.tflite or
    model.keras or model.onnx or model.py, network.onnx or model.py, model.pt or index.html
DIR/<version>/assets.extra/tf_serving_warmup_requests
DIR/<version>/README.md                  the model card
DIR/<version>/hub/                       the folder for the Hugging Face Hub, with --push_to

A version is written beside, checked in another process (`verification`), and
renamed, so that a server never sees half a model.
"""

import dataclasses
import importlib
import os
import pathlib
import shutil
from collections.abc import Sequence

import keras
import numpy as np

from anpvs_tf.common.errors import UsageError
from anpvs_tf.common.files import check_directory, staging
from anpvs_tf.data import loading
from anpvs_tf.runs.finished_run import FinishedRun
from anpvs_tf.serving import (
    formats,
    model_card,
    publishing,
    rivals,
    server_files,
    verification,
    web_page,
)
from anpvs_tf.serving.formats import FORMATS
from anpvs_tf.serving.names import CALIBRATION_EXAMPLES, quantizations

# In a version.
HUB = "hub"


@dataclasses.dataclass(frozen=True)
class Exported:
    """Where an export went, the networks before and after freezing, and its check."""

    path: pathlib.Path
    training_network: keras.Model
    compact_network: keras.Model
    report: verification.Report


def export(
    run: FinishedRun,
    export_base: str | os.PathLike,
    version: int | None = None,
    format: str = "saved_model",
    data_dir: str | None = None,
    download: bool = True,
    license: str | None = None,
    hub: str | None = None,
    quantize: Sequence[str] | None = None,
    calibration_examples: int = CALIBRATION_EXAMPLES,
    rival: FinishedRun | None = None,
) -> Exported:
    """Writes and checks one version of a run's network.

    Args:
        export_base: directory of all versions of this model; made if absent.
        version: at least 1; None for one more than the newest there.
        format: one of `FORMATS`.
        data_dir, download: as in `loading.load`; the test images check the export.
        license: of the network, for its model card.
        hub: a repository USER/NAME of the Hugging Face Hub: writes the folder for it, too, in the
            format "keras" only.
        quantize: in the format "tflite" only: of `names.QUANTIZATIONS`, those to write besides
            float32; None for "dynamic".
        calibration_examples: training images, drawn by the run's seed, whose activations decide
            on the ranges of "int8"; all, if there are fewer.
        rival: a run on the same data whose network is shown beside, in the format "web" only.

    Raises:
        UsageError: something cannot be used; nothing was written.
        TrainingError: the export disagrees with the network; nothing was kept.
    """
    # ---- Everything that can be refused, before anything is written ----
    if format not in FORMATS:
        raise UsageError(f"unknown format {format!r}; choose one of {', '.join(FORMATS)}")
    quantize = quantizations(format, quantize)
    if hub is not None:
        publishing.check_format(format)
    _check_packages(format)
    base = pathlib.Path(export_base)
    version = choose_version(base, version, format)
    if rival is not None:
        rivals.check(run, rival, format)
    shown = [web_page.prepare(one) for one in (run, rival) if one is not None]
    network, frozen = shown[0].network, shown[0].compact
    test = loading.load_evaluated(run.settings.source, data_dir, download)
    names, calibration = run.settings.class_names, None
    if "int8" in quantize:
        calibration = calibration_images(run, calibration_examples, data_dir, download)
    chosen = FORMATS[format]

    # ---- Write beside, check, rename ----
    path = base / str(version)
    with staging(path, f"export base {base}", "--export_base") as beside:
        content = formats.Content(
            frozen, names, base.resolve().name, test, shown, quantize, calibration
        )
        chosen.write(content, beside)
        if chosen.examples is not None:
            test = test.take(chosen.examples(shown, len(test)))
        if chosen.program is None or shutil.which(chosen.program):
            second = shown[1].network if rival is not None else None
            report = verification.verify(network, test, names, beside, second)
        else:
            report = verification.leave_out(network, test, chosen.program)
        calibrated = 0 if calibration is None else len(calibration)
        card = model_card.text(run, frozen, format, version, report, license, calibrated=calibrated)
        (beside / "README.md").write_text(card)
        if hub is not None:
            card = model_card.text(run, frozen, format, version, report, license, hub)
            publishing.write_folder(beside / chosen.file, card, beside / HUB)
        if path.exists():  # Another export made this version meanwhile.
            raise UsageError(f"{path} exists; choose another --version")
        # A server may read the version as soon as it has its name.
        server_files.write(base, chosen.server_files(frozen, content.name))
        beside.rename(path)
    return Exported(path, network, frozen, report)


def calibration_images(
    run: FinishedRun, examples: int, data_dir: str | None = None, download: bool = True
) -> np.ndarray:
    """Draws training images by the run's seed: uint8 [examples, H, W, C].

    Arguments and errors as of `export`.
    """
    settings = run.settings
    train = loading.load(
        settings.source, data_dir, download, settings.train_examples, settings.stream, check=False
    ).train
    drawn = np.random.default_rng(settings.seed).permutation(len(train))[:examples]
    return train.images[np.sort(drawn)]


def choose_version(base: pathlib.Path, version: int | None, format: str) -> int:
    """Chooses the version to write: `version`; if that is None, one more than the newest.

    Raises:
        UsageError: `base` is no writable directory, the version exists or is
            below 1, or `base` holds a version that is not of this format.
    """
    check_directory(base, f"export base {base}", "--export_base")
    held = [entry for entry in base.iterdir() if entry.name.isdigit()] if base.exists() else []
    for entry in held:
        # A server would try to load every version as a SavedModel.
        if not (entry / FORMATS[format].file).exists():
            raise UsageError(
                f"export base {base} holds versions of another format than {format}, {entry.name} "
                "for one; choose another --export_base"
            )
    if version is None:
        return max((int(entry.name) for entry in held), default=0) + 1
    if version < 1:
        raise UsageError(f"--version must be at least 1; got {version}")
    if (base / str(version)).exists():
        raise UsageError(f"{base / str(version)} exists; choose another --version")
    return version


def _check_packages(format: str) -> None:
    for package in FORMATS[format].packages:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise UsageError(
                f"--format={format} needs the package {error.name}: "
                f"pip install 'anpvs_tf[{FORMATS[format].extra}]'"
            ) from error
