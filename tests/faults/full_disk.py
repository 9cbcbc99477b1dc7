"""Fills the disk of a run in mid-training and of an export in each format, and prints the ends.

    python -m tests.faults.full_disk

Needs root, for a tmpfs of its own. Each time the disk has less room left than the last, down
to none; then there is room again, and the run must end as if nothing had been.
"""

import contextlib
import importlib.util
import itertools
import pathlib
import shutil
import subprocess
import sys
import tempfile

from anpvs_tf.serving.formats import FORMATS
from tests.faults.corruption import TINY, files, make
from tests.faults.kill import ROOT, command, differences

# Bytes that are left: room for all but one checkpoint, for a part of one, for small files, none.
LEFT = (6_000_000, 3_000_000, 200_000, 4_096, 0)


@contextlib.contextmanager
def small_disk(megabytes: int):
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", directory], check=True
        )
        try:
            yield pathlib.Path(directory)
        finally:
            subprocess.run(["umount", directory], check=True)


def fill(disk: pathlib.Path, left: int) -> pathlib.Path:
    """Takes all room but `left` bytes."""
    filler = disk / "filler"
    filler.write_bytes(b"\0" * max(0, shutil.disk_usage(disk).free - left))
    return filler


def said(arguments: list) -> tuple[int, str]:
    result = subprocess.run(
        list(map(str, arguments)),
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    if result.returncode and not lines:
        raise SystemExit(result.stderr[-3000:])
    return result.returncode, " ".join(lines)


def installed(name: str) -> bool:
    return importlib.util.find_spec(name.split(".")[0]) is not None


def main() -> None:
    with small_disk(64) as disk:
        home = disk / "made"
        home.mkdir()
        stopped, finished = make(home)
        for left in LEFT:
            run = disk / "copy"
            shutil.copytree(stopped.path, run)
            before = {name for name in files(stopped) if name.name.startswith("ckpt")}
            filler = fill(disk, left)
            code, line = said(command(run, TINY))
            print(f"training, {left:,} bytes left: {code} {line}", flush=True)
            names = {path.relative_to(run) for path in run.rglob("*") if path.is_file()}
            assert code == 0 or before <= names, names
            assert not [name for name in names if "unfinished" in str(name) or ".tmp" in str(name)]
            filler.unlink()
            code, line = said(command(run, TINY))
            assert code == 0, line
            assert not differences(finished.path, run), differences(finished.path, run)
            shutil.rmtree(run)
        for format, left in itertools.product(FORMATS, (400_000, 0)):
            if absent := [name for name in FORMATS[format].packages if not installed(name)]:
                print(f"export, {format}: left out, {absent[0]} is not installed", flush=True)
                continue
            filler, base = fill(disk, left), disk / "exports"
            export = [sys.executable, ROOT / "bin/export.py", f"--run_dir={finished.path}"]
            code, line = said([*export, f"--export_base={base}", f"--format={format}"])
            print(f"export, {format}, {left:,} bytes left: {code} {line}", flush=True)
            assert code == 1 and not base.exists()
            filler.unlink()
    print("each run went on to the same result when there was room; no part of an export stayed")


if __name__ == "__main__":
    main()
