"""Makes a report: reads the runs, draws, and puts a complete directory in place."""

import contextlib
import json
import os
import pathlib
import shutil
import struct
import tempfile
from collections.abc import Iterator

from anpvs_tf.common.errors import UsageError
from anpvs_tf.common.files import check_directory, staging
from anpvs_tf.common.progress import Progress
from anpvs_tf.data import loading
from anpvs_tf.reporting import (
    commands,
    formats,
    grouping,
    network_figures,
    page,
    probing,
    robustness_figures,
    style,
    tables,
    training_figures,
)
from anpvs_tf.reporting.grouping import Group, collect, most_robust
from anpvs_tf.runs.directory import RunDirectory

# This file marks a directory as a report, and lists the files that are the report's own.
MANIFEST = "report.json"
PAGE = "report.html"
# The most networks that stand side by side in a figure.
MOST_NETWORKS = 6


def write(
    paths: list[str],
    out: str | os.PathLike,
    *,
    examples: int = 200,
    data_dir: str | None = None,
    download: bool = True,
    command: list[str] = ("bin/report.py",),
) -> list[tables.Table]:
    """Writes a report on finished runs; an earlier report in `out` is replaced.

    Args:
        paths: run directories, and directories of run directories.
        out: the directory to write: report.html, tables/, figures/, report.json.
        examples: test images on which the vulnerability of features is measured; 0 leaves out
            all figures that need the networks.
        data_dir, download: as in `loading.load_evaluated`.
        command: the command line, shown in the report.

    Returns:
        The tables.

    Raises:
        UsageError: nothing to report on, or `out` holds other things; nothing was written.
    """
    out = pathlib.Path(os.path.abspath(out))
    check_free(out)
    runs, skipped = collect(paths)
    groups = grouping.groups(runs)
    print(f"{len(runs)} runs of {runs[0].settings.dataset}, {len(groups)} settings")
    for one in skipped:
        print(f"left out: {one.path}: {one.reason}")
    shown_command = commands.shell(list(command))
    found = tables.build(groups)
    absent = _absent(groups, found, examples)
    drawn = [*training_figures.build(groups), *robustness_figures.build(groups)]
    if examples:
        settings = runs[0].settings
        split = loading.load_evaluated(settings.source, data_dir, download, settings.stream)
        probes, missing = _probes(groups, split, examples)
        drawn += network_figures.build(probes, shown_command)
        absent += missing

    with _beside(out) as directory:
        _write_tables(found, directory / "tables")
        figures = _write_figures(drawn, directory / "figures")
        print(f"{len(found)} tables, {len(figures)} figures")
        text = page.render(groups, skipped, found, figures, absent, shown_command)
        (directory / PAGE).write_text(text)
        manifest = {
            "command": list(command),
            "runs": [run.path for run in runs],
            "left_out": {one.path: one.reason for one in skipped},
            "files": sorted(_files(directory)),
        }
        (directory / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    return found


def covered(out: str | os.PathLike) -> list[RunDirectory]:
    """Finds the runs that the report in `out` is on."""
    manifest = json.loads((pathlib.Path(out) / MANIFEST).read_text())
    return [RunDirectory(path) for path in manifest["runs"]]


def _probes(
    groups: list[Group], split: loading.Split, examples: int
) -> tuple[list[probing.Probe], list[str]]:
    """Measures the networks for the figures; says which networks have no figures, and why."""
    probes, missing = [], []
    chosen = most_robust(groups)
    for group in chosen[:MOST_NETWORKS]:
        progress = Progress(f"network of {group.runs[0].path}: image", 0)
        try:
            probes.append(probing.probe(group, split, examples, _counting(progress)))
        except UsageError as error:
            missing.append(f"Figures of the network of {group.label}: {error}")
        progress.done()
    if others := chosen[MOST_NETWORKS:]:
        names = ", ".join(group.method for group in others)
        missing.append(
            f"Figures of the networks of {names}: {MOST_NETWORKS} stand side by side; report "
            "on fewer runs to see others"
        )
    return probes, missing


def _write_tables(found: list[tables.Table], directory: pathlib.Path) -> None:
    directory.mkdir()
    for table in found:
        for ending, render in formats.BY_ENDING.items():
            (directory / f"{table.name}.{ending}").write_text(render(table))


def _write_figures(drawn: list[style.Picture], directory: pathlib.Path) -> list[page.Figure]:
    directory.mkdir()
    progress = Progress("figure", len(drawn))
    figures = []
    for picture in drawn:
        figures.append(_draw(picture, directory))
        progress.update(len(figures), picture.name)
    progress.done()
    return figures


def check_free(out: pathlib.Path) -> None:
    """Raises UsageError unless a report can be put at `out`: a new place, or an earlier report."""
    what = f"--out={out}"
    check_directory(out, what, "--out")
    if not out.exists():
        return
    check_directory(out.parent, what, "--out")  # A new report takes the place of the old one.
    try:
        own = {*json.loads((out / MANIFEST).read_text())["files"], MANIFEST}
    except (OSError, ValueError, KeyError, TypeError):
        own = set()
    others = sorted(_files(out) - own)
    if others:
        raise UsageError(
            f"--out={out} holds other things than an earlier report ({others[0]}); choose another "
            "--out, or empty it"
        )


def _absent(groups: list[Group], found: list[tables.Table], examples: int) -> list[str]:
    """Lists the evaluations that the report lacks, with the command that would make them."""
    names = {table.name for table in found}
    columns = {column.key for column in found[0].columns}
    evaluate = "python bin/evaluate.py --run_dir=RUN"
    absent = []
    if "autoattack_accuracy" not in columns:
        absent.append(f"AutoAttack: {evaluate}")
    if "black_accuracy" not in columns:
        absent.append(f"Black box: {evaluate} --attack=transfer --source_run=OTHER")
    if "table2a" not in names:
        epsilon = groups[0].settings.epsilon
        sweep = ",".join(f"{epsilon * share:.2g}" for share in (0.25, 0.5, 1, 2))
        absent.append(
            "Tables 2a and 2b, accuracy against ε and steps: "
            f"{evaluate} --attack=pgd --epsilons={sweep}; "
            f"{evaluate} --attack=pgd --attack_steps=10,100,500"
        )
    if "table3" not in names:
        absent.append(f"Table 3: runs of two or more of {', '.join(tables.ABLATION)}")
    if not examples:
        absent.append("Figures of the networks themselves: --examples=0 left them out")
    return absent


def _draw(picture: style.Picture, directory: pathlib.Path) -> page.Figure:
    """Writes a figure's files and returns it as the page embeds it."""
    made = {kind: style.render(picture.draw, style.LIGHT, kind) for kind in ("png", "svg")}
    for kind, data in made.items():
        (directory / f"{picture.name}.{kind}").write_bytes(data)
    kind = "png" if picture.raster else "svg"
    (pixels,) = struct.unpack(">I", made["png"][16:20])
    return page.Figure(
        picture,
        light=style.data_uri(made[kind], kind),
        dark=style.data_uri(style.render(picture.draw, style.DARK, kind), kind),
        width=round(pixels * style.SCREEN_DPI / style.PNG_DPI),
    )


def _counting(progress: Progress):
    def update(done, total):
        progress.total = total
        progress.update(done)

    return update


def _files(directory: pathlib.Path) -> set[str]:
    return {str(p.relative_to(directory)) for p in directory.rglob("*") if not p.is_dir()}


@contextlib.contextmanager
def _beside(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """Makes a directory beside `out` to replace it at the end; an error leaves `out` as it is."""
    with staging(out, f"--out={out}", "--out") as made:
        yield made
        check_free(out)
        if out.exists():
            old = pathlib.Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
            os.rename(out, old / "replaced")
            os.rename(made, out)
            shutil.rmtree(old)
        else:
            os.rename(made, out)
