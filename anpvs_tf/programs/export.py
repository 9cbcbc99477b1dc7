"""Exports a finished run for a server or another runtime, and checks the files.

  python bin/export.py --run_dir=RUN --export_base=DIR
  python bin/export.py --run_dir=RUN --export_base=DIR --format=onnx
  python bin/export.py --run_dir=RUN --export_base=DIR --format=tflite --quantize=int8
  python bin/export.py --run_dir=RUN --export_base=DIR --format=web --rival=OTHER_RUN
  python bin/export.py --run_dir=RUN --export_base=DIR --format=keras --push_to=hf://USER/NAME

Writes DIR/<version>/ and says how the export compares with the training network.
"""

from typing import TYPE_CHECKING, Any

from anpvs_tf.common import program
from anpvs_tf.common.errors import UsageError
from anpvs_tf.common.program import Flags
from anpvs_tf.programs import shared_flags
from anpvs_tf.runs.finished_run import open_run
from anpvs_tf.serving import publishing, rivals
from anpvs_tf.serving.names import (
    CALIBRATION_EXAMPLES,
    FORMATS,
    QUANTIZATIONS,
    quantizations,
)

if TYPE_CHECKING:
    from anpvs_tf.serving import exporting

EXPORT = "The export"


def define(flags: Flags) -> None:
    flags.add(EXPORT, str, "run_dir", None, "a finished run of bin/train.py", required=True)
    flags.add(
        EXPORT,
        str,
        "export_base",
        None,
        "directory of all versions of this model; made if absent",
        required=True,
    )
    flags.add(
        EXPORT,
        int,
        "version",
        None,
        "number of this version, at least 1. Default: one more than the newest",
        lower_bound=1,
    )
    flags.add(
        EXPORT,
        str,
        "format",
        "saved_model",
        "for TensorFlow Serving, LiteRT, Keras, ONNX Runtime, Triton or PyTorch, or a web page "
        f"({', '.join(FORMATS)})",
        choices=FORMATS,
    )
    flags.add(
        EXPORT,
        tuple,
        "quantize",
        None,
        f"with --format=tflite: write these besides float32 ({', '.join(QUANTIZATIONS)}). "
        "Default: dynamic",
    )
    flags.add(
        EXPORT,
        int,
        "calibration_examples",
        CALIBRATION_EXAMPLES,
        "with --quantize=int8: training images that decide on the ranges of the integers",
        lower_bound=1,
    )
    flags.add(
        EXPORT,
        str,
        "rival",
        None,
        "with --format=web: a finished run on the same data, whose network is attacked beside",
    )
    flags.add(EXPORT, str, "license", None, "of the network, for its model card, such as mit")
    flags.add(
        EXPORT,
        str,
        "push_to",
        None,
        "with --format=keras: upload it to this repository of the Hugging Face Hub, hf://USER/NAME",
    )
    flags.add(
        EXPORT, bool, "dry_run", False, "with --push_to: write the folder, but upload nothing"
    )
    shared_flags.add_data(flags, "Test images, which the export is checked on")


def _hub(values: Any) -> str | None:
    """Checks that --push_to can be pushed to, and returns its repository; None without the flag.

    Raises:
        UsageError: the repository cannot be pushed to, or flags do not go together.
    """
    if values.push_to is None:
        if values.dry_run:
            raise UsageError("--dry_run belongs to --push_to")
        return None
    publishing.check_format(values.format)
    repository = publishing.repository_of(values.push_to)
    publishing.check(repository, values.dry_run)
    return repository


def main(values: Any) -> None:
    quantize = quantizations(values.format, values.quantize)
    if values["calibration_examples"].present and "int8" not in quantize:
        raise UsageError("--calibration_examples belongs to --quantize=int8")
    run = open_run(values.run_dir)
    hub = _hub(values)
    rival = None
    if values.rival is not None:
        rival = open_run(values.rival)
        rivals.check(run, rival, values.format)

    # These import TensorFlow.
    from anpvs_tf.pruning import efficiency
    from anpvs_tf.serving import exporting

    done = exporting.export(
        run,
        values.export_base,
        values.version,
        values.format,
        values.data_dir,
        values.download,
        license=values.license,
        hub=hub,
        quantize=values.quantize,
        calibration_examples=values.calibration_examples,
        rival=rival,
    )
    measured = efficiency.measure(
        {"training network": done.training_network, "exported": done.compact_network}
    )
    print(table(done, measured))
    print(f"The export is in {done.path}")
    if values.format == "web" and rival is None:
        print("To show another network beside it, such as a dense one: --rival=OTHER_RUN")
    if hub is None:
        return
    folder = done.path / exporting.HUB
    if values.dry_run:
        print(f"{folder} would be uploaded to {values.push_to}")
        return
    address = publishing.push(folder, hub, f"Version {done.path.name}")
    print(f'{address} holds it: keras.saving.load_model("{values.push_to}")')


def table(done: "exporting.Exported", measured: dict) -> str:
    """Makes the lines that an export ends with: accuracy, size, latency and peak memory."""
    report = done.report
    lines = [f"{report.examples} test images", f"  {'training network':<28}{report.accuracy:.2%}"]
    for name, agreement in report.exported.items():
        lines.append(
            f"  {name:<28}{agreement.accuracy:.2%}   {agreement.equal_classes} classes equal, "
            f"logits differ by at most {agreement.difference:.1e} of the largest"
        )
    if report.unchecked:
        lines.append(f"  not checked: {report.unchecked}")
    columns = {"before": measured["training network"], "after": measured["exported"]}
    if columns["before"]["parameters"] == columns["after"]["parameters"]:
        del columns["before"]  # Nothing was pruned or folded: the same network.
    rows = {
        "": list(columns),
        "parameters": [f"{one['parameters']:,}" for one in columns.values()],
        "SavedModel, bytes": [f"{one['saved_model_bytes']:,}" for one in columns.values()],
    }
    for size in columns["after"]["latency"]:
        seconds = [one["latency"][size] for one in columns.values()]
        peaks = [one["peak_memory"][size] for one in columns.values()]
        rows[f"ms a batch of {size}"] = [f"{1e3 * one:.2f}" for one in seconds]
        rows[f"peak memory, batch {size}"] = [f"{one / 2**20:.2f} MiB" for one in peaks]
    for name in report.exported or [path.name for path in done.path.glob("*.html")]:
        if (done.path / name).is_file():
            size = (done.path / name).stat().st_size
            rows[f"{name}, bytes"] = [*[""] * (len(columns) - 1), f"{size:,}"]
    for name, cells in rows.items():
        if cells != ["after"]:
            lines.append(f"  {name:<28}" + "".join(f"{cell:>14}" for cell in cells))
    return "\n".join(lines)


def run() -> None:
    """Runs the program on the command line."""
    program.run(main, __doc__, define)
