"""A sweep: its directory, its definition, the settings and the run of each trial.

TensorFlow, which takes seconds to import, is imported when a trial is to be trained: a sweep
that cannot be run is refused at once.

SWEEP/sweep.json          the definition, the trials, the front, the chosen trial
SWEEP/trial-0000/ …       the run directory of each trial
SWEEP/base-…/             runs that trials start from, each trained once
SWEEP/tuner/              keras-tuner's files
SWEEP/workers/            held by the workers that live
SWEEP/networks/           copies of the Keras model files that trials are made from
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any

from anpvs_tf.common import files, interruption, lock
from anpvs_tf.common.errors import Interrupted, InUse, UsageError, one_line
from anpvs_tf.methods.registry import METHODS
from anpvs_tf.networks.names import is_file
from anpvs_tf.runs import resolution
from anpvs_tf.runs.directory import RunDirectory
from anpvs_tf.runs.settings import Settings
from anpvs_tf.tuning import score, space
from anpvs_tf.tuning.names import TUNERS
from anpvs_tf.tuning.score import Score
from anpvs_tf.tuning.space import Space

TRIALS = 20
# Settings that count epochs of the whole run; a shorter trial has its share of them.
_EPOCHS = ("kl_warmup_epochs", "kl_ramp_epochs", "epsilon_warmup_epochs", "admm_epochs")


@dataclasses.dataclass(frozen=True)
class Definition:
    """The definition of a sweep in the user's words, which `Sweep` reads.

    Attributes:
        settings: {setting: text of its flag}.
        recipe: of `defaults.RECIPES`.
        tuner: of `oracles.TUNERS`.
        objective: as `score.parse` takes it.
        trials: the most trials; None for as many as the tuner makes.
        search_seed: of the search; that of training is a setting.
    """

    settings: dict[str, str]
    recipe: str = "published"
    tuner: str = "random"
    objective: str = "robust"
    trials: int | None = None
    search_seed: int = 0


class Sweep:
    """A sweep in a directory. Creating the object touches nothing on disk.

    Args:
        path: the sweep's directory.
        definition: of the sweep.
        data_dir, download: as in `loading.load`.
        execution: how each trial is trained, as fields of `trainer.Execution`.
        command: the command line, kept in each run's config.json.

    Raises:
        UsageError: the definition cannot be used.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        definition: Definition,
        data_dir: str | None = None,
        download: bool = True,
        execution: Mapping[str, Any] | None = None,
        command: list[str] = (),
    ):
        self.path = pathlib.Path(path)
        self.definition = definition
        self.data_dir = data_dir
        self.download = download
        self.execution = dict(execution or {})
        self.command = list(command)
        self.objective: Score = score.parse(definition.objective)
        self.space: Space = space.parse(definition.settings)
        self.network_files = self._network_files()
        corners = [self._chosen(values) for values in self.space.corners()]
        self.longest = max(one.epochs for one in corners)
        score.check_recorded(self.objective, {one.method for one in corners})
        score.check_comparable(self.space.swept)
        self._check_tuner()

    def _check_tuner(self) -> None:
        tuner, trials = self.definition.tuner, self.definition.trials
        if tuner not in TUNERS:
            raise UsageError(f"unknown --tuner={tuner!r}; choose one of {', '.join(TUNERS)}")
        if trials is not None and trials < 1:
            raise UsageError(f"--trials must be at least 1; got {trials}")
        if tuner == "hyperband":
            if trials is not None:
                raise UsageError("--trials is not used by --tuner=hyperband: --epochs decides it")
            if "epochs" in self.space.swept:
                raise UsageError("--tuner=hyperband varies --epochs itself; give it one value")
        for name, swept in self.space.swept.items():
            if tuner == "grid" and isinstance(swept, space.Range):
                raise UsageError(
                    f"--tuner=grid needs steps or choices for --{name}, as in "
                    f"{self.definition.settings[name]}:5"
                )

    @property
    def state_path(self) -> pathlib.Path:
        return self.path / "sweep.json"

    @property
    def trials(self) -> int | None:
        """The most trials; None if the tuner decides."""
        if self.definition.tuner in ("hyperband", "grid"):
            return self.definition.trials
        return self.definition.trials or TRIALS

    def held(self) -> dict[str, Any]:
        """Returns the content of sweep.json."""
        return read_state(self.path)

    @property
    def finished(self) -> bool:
        """Whether all trials are done that this definition asks for."""
        held = self.held()
        return bool(held.get("finished")) and held["sweep"]["trials"] == self.definition.trials

    # ---- Trials ----

    def run_of(self, trial_id: str) -> RunDirectory:
        return RunDirectory(self.path / f"trial-{int(trial_id):04d}")

    def settings_of(self, sampled: dict[str, Any]) -> Settings:
        """Makes the settings of a trial.

        Args:
            sampled: keras-tuner's values, those of hyperband among them.

        Raises:
            UsageError: settings that do not fit together.
        """
        # Precision goes by the processor, so workers need processors of one kind.
        whole = resolution.resolve(
            self._by_copies(self.space.values(sampled)), self.definition.recipe, self.data_dir
        )
        epochs = sampled.get("tuner/epochs", whole.epochs)
        return shortened(whole, epochs)

    def _chosen(self, values: dict[str, Any]) -> Settings:
        return resolution.choose(self._by_copies(values), self.definition.recipe, self.data_dir)

    def _network_files(self) -> dict[str, pathlib.Path]:
        """Lists the Keras model files of the trials as the user gave them, {name: path}.

        Raises:
            UsageError: two of one name.
        """
        swept = self.space.swept.get("network")
        names = swept.ends if swept else [self.space.constants.get("network") or ""]
        paths = [pathlib.Path(name) for name in names if is_file(name)]
        found = {path.name: path for path in paths}
        if len(found) < len(paths):
            raise UsageError(f"--network names two files {paths[0].name}; rename one")
        return found

    def _by_copies(self, values: dict[str, Any]) -> dict[str, Any]:
        """Values in which the sweep's copy of a network's file stands for the user's file."""
        file = self._copy_of(values.get("network") or "")
        return values | {"network": str(file)} if file else values

    def _copy_of(self, network: str) -> pathlib.Path | None:
        """Finds the copy of a network's file, before the sweep the user's; None if named."""
        if not is_file(network):
            return None
        copy = self.path / "networks" / pathlib.Path(network).name
        return copy if copy.exists() else self.network_files[copy.name]

    def train(self, chosen: Settings, run: RunDirectory) -> None:
        """Trains or resumes a trial and the run that it starts from, unless they are done.

        Waits for another process that trains the same run.

        Raises:
            UsageError, TrainingError, Interrupted: as `trainer.train`.
        """
        chosen = run.settings() if run.config_path.exists() else self._with_base(chosen)
        self._train(chosen, run)

    def _with_base(self, chosen: Settings) -> Settings:
        """Adds the run that a trial starts from; trains it once for all trials that need it."""
        from anpvs_tf.training import warm_start

        if not warm_start.needs_base(chosen):
            return chosen
        wanted = self._with_base(warm_start.base_settings(chosen))
        text = json.dumps(dataclasses.asdict(wanted), sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:8]
        base = RunDirectory(self.path / f"base-{wanted.method}-{key}")
        if not base.finished:
            print(f"Warm start: the {wanted.method} network in {base.path}")
            self._train(wanted, base)
        return dataclasses.replace(chosen, base_run=str(base.path))

    def _train(self, chosen: Settings, run: RunDirectory) -> None:
        from anpvs_tf.training import trainer

        execution = trainer.Execution(**self.execution)
        while True:
            try:
                trainer.train(
                    chosen,
                    run,
                    self.data_dir,
                    self.download,
                    self.command,
                    execution=execution,
                    network_file=self._copy_of(chosen.network),
                )
                return
            except InUse:
                print(f"Another process trains {run.path}; waiting for it")
            except UsageError:
                if not run.in_use():
                    raise
            wait_until(lambda: not run.in_use())

    # ---- The directory ----

    def check(self) -> None:
        """Raises UsageError unless the sweep can begin or resume in its directory."""
        from anpvs_tf.data import loading

        chosen = self._chosen(self.space.corners()[0])
        # A dataset that cannot be loaded would fail every trial.
        if "dataset" not in self.space.swept:
            loading.load(chosen.source, self.data_dir, self.download, stream=chosen.stream)
        files.check_directory(self.path, f"sweep directory {self.path}", "--run_dir")
        if not self.state_path.exists():
            if self.path.is_dir() and not all(map(lock.is_part, self.path.iterdir())):
                raise UsageError(
                    f"{self.path} is not empty and holds no sweep; choose another --run_dir"
                )
            return
        before = read_definition(self.path)
        for field in dataclasses.fields(Definition):
            old, new = getattr(before, field.name), getattr(self.definition, field.name)
            if field.name != "trials" and old != new:
                raise UsageError(
                    f"{self.path} holds a sweep of other {field.name}: {_shown(old)}, now "
                    f"{_shown(new)}; give --run_dir alone to resume, or choose another --run_dir"
                )
        for name, file in self.network_files.items():
            copy = self.path / "networks" / name
            if not (file.exists() and copy.exists()):
                continue
            if resolution.version_of(file) != resolution.version_of(copy):
                raise UsageError(
                    f"{file} was changed after the sweep in {self.path} began; choose another "
                    "--run_dir"
                )

    def begin(self) -> None:
        """Writes sweep.json and, for a new sweep, its description for TensorBoard."""
        new = not self.state_path.exists()
        self.write(self.held() | {"finished": False})
        for name, file in self.network_files.items():
            copy = self.path / "networks" / name
            if not copy.exists():
                copy.parent.mkdir(exist_ok=True)
                files.replace_atomically(copy, functools.partial(shutil.copyfile, file))
        if new:
            from anpvs_tf.tracking import tensorboard

            tensorboard.write_experiment(self.path / "tensorboard", list(self.space.swept))

    def write(self, state: dict[str, Any]) -> None:
        """Replaces the state in sweep.json, which keeps the definition."""
        state = {"sweep": dataclasses.asdict(self.definition)} | {
            name: value for name, value in state.items() if name != "sweep"
        }
        files.write_atomically(self.state_path, json.dumps(state, indent=2) + "\n")


def shortened(whole: Settings, epochs: int) -> Settings:
    """Returns the same recipe in fewer epochs: settings that count epochs shrink in proportion.

    Warm starts stay as they are.
    """
    if epochs == whole.epochs:
        return whole
    share = epochs / whole.epochs
    parts = {name: round(getattr(whole, name) * share) for name in _EPOCHS}
    if METHODS[whole.method].weight_pruning:
        # Both phases, pruning and retraining, keep an epoch.
        parts["admm_epochs"] = max(1, min(parts["admm_epochs"], epochs - 1))
    return resolution.validated(dataclasses.asdict(whole) | parts | {"epochs": epochs})


def read_state(path: pathlib.Path) -> dict[str, Any]:
    """Reads a sweep.json; returns an empty dict if no file exists.

    Raises:
        UsageError: the file cannot be read.
    """
    file = pathlib.Path(path) / "sweep.json"
    try:
        return json.loads(file.read_text()) if file.exists() else {}
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read: {one_line(error)}") from error


def read_definition(path: str | os.PathLike) -> Definition | None:
    """Reads the definition of the sweep in a directory; returns None if there is no sweep.

    Raises:
        UsageError: sweep.json cannot be read.
    """
    state = read_state(pathlib.Path(path))
    if not state:
        return None
    try:
        return Definition(**state["sweep"])
    except (LookupError, TypeError) as error:
        raise UsageError(f"{path}/sweep.json is no sweep of this version") from error


def wait_until(condition: Callable[[], bool], seconds: float = float("inf")) -> bool:
    """Waits for a condition, at most `seconds`; returns whether it became true.

    Raises:
        Interrupted: a signal asked for the end.
    """
    end = time.monotonic() + seconds
    while not condition():
        if interruption.asked():
            raise Interrupted(interruption.asked(), "the same command resumes the sweep")
        if time.monotonic() > end:
            return False
        time.sleep(0.5)
    return True


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"--{name}={text}" for name, text in value.items())
    return str(value)
