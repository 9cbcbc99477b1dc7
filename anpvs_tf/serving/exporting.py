"""Export of a finished run for TensorFlow Serving or LiteRT.

DIR/models.config, DIR/batching.config   for the server; kept if they exist
DIR/<version>/saved_model.pb, variables/ or model.tflite, model_int8.tflite
DIR/<version>/assets.extra/tf_serving_warmup_requests
DIR/<version>/README.md                  the model card

A version is written beside, checked in another process (`verification`), and
renamed, so that a server never sees half a model.
"""

import dataclasses
import os
import pathlib

import keras
import tensorflow as tf

from anpvs_tf.common.errors import UsageError
from anpvs_tf.common.files import check_directory, staging, write_atomically
from anpvs_tf.data import loading
from anpvs_tf.pruning import compact
from anpvs_tf.runs import directory
from anpvs_tf.serving import model_card, signatures, verification
from anpvs_tf.serving.names import FORMATS

MODELS_CONFIG = """\
model_config_list {{
  config {{
    name: "{name}"
    base_path: "/models/{name}"
    model_platform: "tensorflow"
  }}
}}
"""

# A request waits for others 2 ms at most.
BATCHING_CONFIG = """\
max_batch_size { value: 64 }
batch_timeout_micros { value: 2000 }
max_enqueued_batches { value: 100 }
"""


@dataclasses.dataclass(frozen=True)
class Exported:
    """Where an export went, the networks before and after freezing, and its check."""

    path: pathlib.Path
    training_network: keras.Model
    compact_network: keras.Model
    report: verification.Report


def export(
    run: directory.RunDirectory,
    export_base: str | os.PathLike,
    version: int | None = None,
    format: str = "saved_model",
    data_dir: str | None = None,
    download: bool = True,
) -> Exported:
    """Writes and checks one version of a run's network.

    Args:
        run: a finished run.
        export_base: directory of all versions of this model; made if absent.
        version: at least 1; None for one more than the newest there.
        format: one of `FORMATS`.
        data_dir, download: as in `loading.load`; the test images check the export.

    Raises:
        UsageError: something cannot be used; nothing was written.
        TrainingError: the export disagrees with the network; nothing was kept.
    """
    # ---- Everything that can be refused, before anything is written ----
    if format not in FORMATS:
        raise UsageError(f"unknown format {format!r}; choose one of {', '.join(FORMATS)}")
    _check_packages(format)
    run.check_finished()
    settings = run.settings()
    base = pathlib.Path(export_base)
    version = choose_version(base, version, format)
    network = run.load_network()
    frozen = compact.freeze(network)
    test = loading.load_test(settings.source, data_dir, download)
    names = settings.class_names

    # ---- Write beside, check, rename ----
    path = base / str(version)
    with staging(path, f"export base {base}", "--export_base") as beside:
        if format == "saved_model":
            signatures.write_saved_model(frozen, names, beside)
            signatures.write_warmup(beside, base.resolve().name, test.images[:1])
        else:
            write_tflite(frozen, beside)
        report = verification.verify(network, test, names, beside)
        card = model_card.text(run, frozen, format, version, report)
        (beside / "README.md").write_text(card)
        if path.exists():  # Another export made this version meanwhile.
            raise UsageError(f"{path} exists; choose another --version")
        beside.rename(path)
    if format == "saved_model":
        write_server_configs(base)
    return Exported(path, network, frozen, report)


def choose_version(base: pathlib.Path, version: int | None, format: str) -> int:
    """The version to write: `version`, or one more than the newest in `base`.

    Raises:
        UsageError: `base` is no writable directory, the version exists or is
            below 1, or `base` holds versions of another format.
    """
    check_directory(base, f"export base {base}", "--export_base")
    held = [entry for entry in base.iterdir() if entry.name.isdigit()] if base.exists() else []
    for entry in held:
        # A server would try to load every version as a SavedModel.
        if (entry / "model.tflite").exists() != (format == "tflite"):
            raise UsageError(
                f"export base {base} holds versions of another format than {format}; "
                "choose another --export_base"
            )
    if version is None:
        return max((int(entry.name) for entry in held), default=0) + 1
    if version < 1:
        raise UsageError(f"--version must be at least 1; got {version}")
    if (base / str(version)).exists():
        raise UsageError(f"{base / str(version)} exists; choose another --version")
    return version


def _check_packages(format: str) -> None:
    try:
        if format == "saved_model":
            import tensorflow_serving.apis  # noqa: F401
        else:
            import ai_edge_litert  # noqa: F401
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--format={format} needs the package {error.name}: pip install 'anpvs_tf[serving]'"
        ) from error


def write_server_configs(base: pathlib.Path) -> None:
    """Writes models.config and batching.config, unless they are there: users edit them."""
    name = base.resolve().name
    files = {"models.config": MODELS_CONFIG.format(name=name), "batching.config": BATCHING_CONFIG}
    for file, text in files.items():
        if not (base / file).exists():
            write_atomically(base / file, text)


# ---- LiteRT ----


def write_tflite(frozen: keras.Model, path: pathlib.Path) -> None:
    """Writes model.tflite (float32) and model_int8.tflite (int8 weights).

    Both take float32 images [batch, H, W, C] in [0, 1] and return the three
    outputs of the SavedModel by name, without its checks.
    """

    def respond(images):
        logits = frozen(images, training=False)
        classes = tf.argmax(logits, axis=-1)
        return {"logits": logits, "probabilities": tf.nn.softmax(logits), "classes": classes}

    spec = tf.TensorSpec([None, *frozen.inputs[0].shape[1:]], tf.float32, "images")
    function = tf.function(respond, autograph=False).get_concrete_function(spec)
    held = tf.Module()  # Of a Keras model, the converter would not find the variables.
    held.weights = [weight.value for weight in frozen.weights]
    for name, optimizations in (("model", []), ("model_int8", [tf.lite.Optimize.DEFAULT])):
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function], held)
        converter.optimizations = optimizations
        (path / f"{name}.tflite").write_bytes(converter.convert())
