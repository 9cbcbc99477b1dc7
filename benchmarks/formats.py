"""Size and latency of a run's network in every format of an export.

  python -m benchmarks.formats --run_dir=RUN

From the root of the repository; needs the extras `serving`, `onnx` and `torch`. A Markdown table
goes to standard output. Every format is exported, checked and run as `bin/export.py` does it; the
runtimes then take turns on all cores, each with a call that is not timed, because the runtime
before it has threads that still wait busily, and one that is. Milliseconds are medians (least to
greatest).
"""

import os
import pathlib
import tempfile
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from anpvs_tf.common import program
from anpvs_tf.runs.finished_run import open_run
from anpvs_tf.serving import exporting, formats, isolated_process
from anpvs_tf.serving.names import QUANTIZATIONS
from benchmarks import timing

BATCHES = (1, 64)


def size(path: pathlib.Path, name: str) -> int:
    """Bytes of a model: of its file, or of a SavedModel's files without the warm-up requests."""
    if (path / name).is_file():
        return (path / name).stat().st_size
    files = [path / "saved_model.pb", *(path / "variables").iterdir()]
    return sum(file.stat().st_size for file in files)


def functions_of(path: pathlib.Path) -> dict:
    """{signature or file: uint8 images -> outputs}, as the check of an export runs them."""
    (load, _), *_ = [
        held for file, held in isolated_process.FORMATS.items() if (path / file).exists()
    ]
    return load(path)


def flags_of(format: str, name: str) -> str:
    """The flags of `bin/export.py` that write a file or signature."""
    quantized = pathlib.Path(name).stem.partition("_")[2] if format == "tflite" else ""
    return f"--format={format}" + (f" --quantize={quantized}" if quantized else "")


def define(flags: program.Flags) -> None:
    measured = "What to measure"
    flags.add(measured, str, "run_dir", None, "a finished run of bin/train.py", required=True)
    flags.add(measured, int, "repeats", 50, "timed calls of each", lower_bound=1)


def main(values: Any) -> None:
    run = open_run(values.run_dir)
    shape = run.network().inputs[0].shape[1:]
    images = np.random.default_rng(0).integers(0, 256, (max(BATCHES), *shape), np.uint8)
    with tempfile.TemporaryDirectory() as base:
        rows, variants = {}, {batch: [] for batch in BATCHES}
        for format in formats.FORMATS:
            if format == "triton":  # Its network is that of `onnx`; `benchmarks.serving` asks it.
                continue
            quantize = QUANTIZATIONS if format == "tflite" else None
            done = exporting.export(
                run, pathlib.Path(base) / format, format=format, quantize=quantize
            )
            for name, function in functions_of(done.path).items():
                if name == "serve_encoded":  # Most of its time goes into decoding.
                    continue
                agreement = done.report.exported[name]
                cells = (f"`{flags_of(format, name)}`", name)
                rows[cells] = [
                    f"{size(done.path, name):,}",
                    f"{agreement.equal_classes} of {done.report.examples}",
                    f"{agreement.difference:.1e}",
                ]
                for batch in BATCHES:
                    variants[batch].append(
                        timing.Variant(cells, lambda f=function, b=batch: f(images[:b]))
                    )
        for batch in BATCHES:
            for variant, taken in timing.measure(
                f"batch {batch}", variants[batch], values.repeats, twice=True
            ):
                rows[variant.cells].append(timing.seconds([1e3 * one for one in taken]))
    print(timing.environment("formats"))
    head = (
        "flags of bin/export.py",
        "signature or file",
        "bytes",
        "equal classes",
        "largest difference",
    )
    head += tuple(f"ms a batch of {batch}" for batch in BATCHES)
    timing.print_rows([head, ("---",) * len(head), *((*k, *v) for k, v in rows.items())])


if __name__ == "__main__":
    program.run(main, __doc__, define)
