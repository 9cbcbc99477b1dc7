"""Finished runs as a report reads them: found below paths, checked, grouped by settings."""

import collections
import dataclasses
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from anpvs_tf.common.errors import UsageError
from anpvs_tf.methods.registry import METHODS
from anpvs_tf.runs.directory import RunDirectory
from anpvs_tf.runs.finished_run import FinishedRun, open_run
from anpvs_tf.runs.settings import Settings, as_text, decisive

# Groups differ in the settings that decide the weights, but for the seed and the base run that
# goes with it, and in those of the evaluation.
_FREE = ("seed", "base_run")
_EVALUATION = ("norm", "epsilon", "eval_step_size", "eval_attack_steps", "eval_examples")
# If more settings differ, a group's label names only those that tell the groups apart.
_MOST_NAMED = 4


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A run that the report leaves out, and why."""

    path: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed: a row of a table, a line of a figure.

    label: the method, with the settings that tell it from other groups of the method.
    runs: by seed.
    """

    label: str
    runs: tuple[FinishedRun, ...]

    @property
    def method(self) -> str:
        return self.runs[0].settings.method

    @property
    def settings(self) -> Settings:
        return self.runs[0].settings

    @property
    def seeds(self) -> list[int]:
        return [run.settings.seed for run in self.runs]


def collect(paths: Iterable[str]) -> tuple[list[FinishedRun], list[Skipped]]:
    """Reads run directories, and the runs in directories of runs (one level below).

    Returns:
        The finished runs, all of one dataset; and those that are left out.

    Raises:
        UsageError: a path that is neither; runs of several datasets; no finished run.
    """
    runs: list[FinishedRun] = []
    skipped: list[Skipped] = []
    seen = set()
    for path in run_paths(paths):
        if path.resolve() in seen:
            continue
        seen.add(path.resolve())
        try:
            run = open_run(path)
            same = [other for other in runs if _identity(other) == _identity(run)]
            if same:
                raise UsageError(f"a repetition of {same[0].path}: same settings, same seed")
            runs.append(run)
        except UsageError as error:
            skipped.append(Skipped(str(path), str(error).removeprefix(f"run {path} ")))
    if not runs:
        reasons = "; ".join(f"{one.path}: {one.reason}" for one in skipped[:3])
        more = f"; and {len(skipped) - 3} more" if len(skipped) > 3 else ""
        raise UsageError(f"no finished run to report on ({reasons}{more})")
    _check_one_dataset(runs)
    return runs, skipped


def groups(runs: list[FinishedRun]) -> list[Group]:
    """Groups runs by settings, in the order of `METHODS` and then of the settings that differ."""

    by_method: dict[str, list[tuple[dict, list[FinishedRun]]]] = {}
    for run in sorted(runs, key=lambda run: (run.settings.seed, run.path)):
        found = by_method.setdefault(run.settings.method, [])
        own = distinguishing(run.settings)
        for settings, members in found:
            if settings == own:
                members.append(run)
                break
        else:
            found.append((own, [run]))
    made = []
    for method in METHODS:
        found = by_method.get(method, [])
        varied = varying(settings for settings, _ in found)
        found.sort(key=lambda one: [_sortable(one[0][name]) for name in varied])
        named = _without_versions([settings for settings, _ in found], varied)
        if len(named) > _MOST_NAMED:
            named = _telling_apart([settings for settings, _ in found], named)
        for settings, members in found:
            # With a target, beta is steered: its value only begins the run.
            steered = "beta" if settings.get("target_sparsity") is not None else None
            given = [name for name in named if settings[name] is not None and name != steered]
            own = ", ".join(f"{name}={as_text(settings[name])}" for name in given)
            made.append(Group(f"{method} ({own})" if own else method, tuple(members)))
    return made


def distinguishing(settings: Settings) -> dict[str, Any]:
    """Returns the settings in which the runs of a group are equal."""
    names = dict.fromkeys([*decisive(METHODS[settings.method]), *_EVALUATION])
    return {name: getattr(settings, name) for name in names if name not in _FREE}


def most_robust(groups: list[Group]) -> list[Group]:
    """Chooses each method's group of the highest accuracy under the attack that ended training.

    Groups that were attacked as most groups were come before the others.
    """

    def attacked(group: Group) -> tuple:
        return tuple(getattr(group.settings, name) for name in _EVALUATION)

    usual, _ = collections.Counter(map(attacked, groups)).most_common(1)[0]
    best: dict[str, tuple[tuple[bool, float], Group]] = {}
    for group in groups:
        found = [run.trained["robust_accuracy"] or 0.0 for run in group.runs]
        merit = attacked(group) == usual, sum(found) / len(found)
        if group.method not in best or merit > best[group.method][0]:
            best[group.method] = merit, group
    return [group for _, group in best.values()]


def runs_of(groups: list[Group]) -> list[FinishedRun]:
    """Lists the runs of all groups."""
    return [run for group in groups for run in group.runs]


def varying(settings: Iterable[dict[str, Any]]) -> list[str]:
    """Lists the names of the settings that are not the same everywhere."""
    settings = list(settings)
    return [
        name
        for name in (settings[0] if settings else {})
        if any(one[name] != settings[0][name] for one in settings)
    ]


def _without_versions(settings: list[dict[str, Any]], names: list[str]) -> list[str]:
    """Leaves out the version of a network's file, if the file's name tells as much."""
    networks = {one["network"] for one in settings}
    versions = {(one["network"], one["network_version"]) for one in settings}
    if len(networks) < len(versions):
        return names
    return [name for name in names if name != "network_version"]


def _telling_apart(settings: list[dict[str, Any]], names: list[str]) -> list[str]:
    """Chooses each setting that tells apart more groups than those before it, in order."""
    chosen: list[str] = []
    classes = 1
    for name in names:
        found = len({tuple(as_text(one[n]) for n in (*chosen, name)) for one in settings})
        if found > classes:
            chosen.append(name)
            classes = found
    return chosen


def _sortable(value: Any) -> tuple[int, Any]:
    if isinstance(value, int | float):
        return 0, value
    return 1, as_text(value)


def _identity(run: FinishedRun) -> dict[str, Any]:
    own = {"method": run.settings.method, "seed": run.settings.seed}
    return distinguishing(run.settings) | own | {"base_run": run.settings.base_run}


def run_paths(paths: Iterable[str]) -> list[pathlib.Path]:
    """Finds the run directories at `paths`, and those one level below a path that is none.

    Raises:
        UsageError: a path that is no run directory and holds none.
    """
    found = []
    for text in paths:
        path = pathlib.Path(os.path.normpath(text))
        if not path.is_dir():
            what = "is no directory" if path.exists() else "does not exist"
            raise UsageError(f"{path} {what}; give run directories of bin/train.py")
        if RunDirectory(path).config_path.exists():
            found.append(path)
            continue
        below = [p for p in sorted(path.iterdir()) if RunDirectory(p).config_path.exists()]
        if not below:
            raise UsageError(
                f"{path} is not a run directory and holds none; give run directories of "
                "bin/train.py, or a directory of them"
            )
        found += below
    return found


def _check_one_dataset(runs: list[FinishedRun]) -> None:
    datasets: dict[str, list[str]] = {}
    for run in runs:
        datasets.setdefault(run.settings.dataset, []).append(run.path)
    if len(datasets) > 1:
        held = "; ".join(
            f"{name}: {', '.join(paths[:3])}{', ...' if len(paths) > 3 else ''}"
            for name, paths in datasets.items()
        )
        raise UsageError(f"runs of different datasets ({held}); report on one dataset at a time")
