"""Exports a finished run for TensorFlow Serving or LiteRT, and checks what it wrote.

  python bin/export.py --run_dir=RUN --export_base=DIR
  python bin/export.py --run_dir=RUN --export_base=DIR --format=tflite

Writes DIR/<version>/ and says how the export compares with the training network.
"""

from absl import flags

from anpvs_tf.common import program
from anpvs_tf.common.errors import UsageError
from anpvs_tf.pruning import efficiency
from anpvs_tf.runs import directory
from anpvs_tf.serving import export


def _define_flags() -> None:
    flags.DEFINE_string("run_dir", None, "a finished run of bin/train.py")
    flags.DEFINE_string("export_base", None, "directory of all versions of this model")
    flags.DEFINE_integer("version", None, "at least 1. Default: one more than the newest")
    flags.DEFINE_string("format", "saved_model", f"one of {', '.join(export.FORMATS)}")
    flags.DEFINE_string(
        "data_dir", None, "TFDS data directory. Default: TFDS_DATA_DIR, else TFDS's own"
    )
    flags.DEFINE_bool("download", True, "let TFDS download a dataset that is absent")


def main() -> None:
    values = flags.FLAGS
    for name in ("run_dir", "export_base"):
        if not values[name].value:
            raise UsageError(f"--{name} is missing")
    done = export.export(
        directory.RunDirectory(values.run_dir),
        values.export_base,
        values.version,
        values.format,
        values.data_dir,
        values.download,
    )
    measured = efficiency.measure(
        {"training network": done.training_network, "exported": done.compact_network}
    )
    print(table(done, measured))
    print(f"The export is in {done.path}")


def table(done: export.Exported, measured: dict) -> str:
    """The lines that end an export."""
    report = done.report
    lines = [f"{report.examples} test images", f"  {'training network':<22}{report.accuracy:.2%}"]
    for name, agreement in report.exported.items():
        lines.append(
            f"  {name:<22}{agreement.accuracy:.2%}   {agreement.equal_classes} classes equal, "
            f"logits differ by at most {agreement.difference:.1e} of the largest"
        )
    before, after = measured["training network"], measured["exported"]
    rows = [("parameters", f"{before['parameters']:,}", f"{after['parameters']:,}")]
    rows.append(("SavedModel, bytes", *(f"{m['saved_model_bytes']:,}" for m in (before, after))))
    for size in before["latency"]:
        rows.append(
            (f"ms a batch of {size}", *(f"{m['latency'][size] * 1e3:.2f}" for m in (before, after)))
        )
        rows.append(
            (
                f"peak memory, batch {size}",
                *(f"{m['peak_memory'][size] / 2**20:.2f} MiB" for m in (before, after)),
            )
        )
    lines.append(f"  {'':<22}{'before':>14}{'after':>14}")
    lines += [f"  {name:<22}{old:>14}{new:>14}" for name, old, new in rows]
    for file in sorted(done.path.glob("*.tflite")):
        lines.append(f"  {file.name:<22}{'':>14}{file.stat().st_size:>14,} bytes")
    return "\n".join(lines)


def run() -> None:
    """Runs the program on the command line."""
    _define_flags()
    program.run(main, __doc__)
