"""Trains a network that is robust and small.

  python bin/train.py                                    ANP-VS on digits, a few minutes
  python bin/train.py --dataset=cifar10 --method=anpvs   the published recipe
  python bin/train.py --method=help                      the methods and their flags

An interrupted run continues when the same command is given again, or --run_dir alone.
SIGTERM and SIGINT (Ctrl-C) save and end it; a second one ends it at once. Lengths in images
(epsilon, step sizes) are in pixel units of [0, 1].
"""

import dataclasses
import os
import sys
from typing import Any

from anpvs_tf.common import interruption, program
from anpvs_tf.common.names import STRATEGIES
from anpvs_tf.common.program import Flags
from anpvs_tf.programs import next_steps, shared_flags
from anpvs_tf.runs import console, defaults, directory, flag_help, records, resolve, settings
from anpvs_tf.runs.directory import RunDirectory
from anpvs_tf.runs.flag_help import EXPERTS, HOW_LONG, WHAT

RUNS = "runs"
<<<<<<< ours


def _define(flags: Flags) -> None:
    for group, fields in flag_help.groups().items():
        for field in fields:
            flags.add(group, settings.kind_of(field), field.name, None, flag_help.describe(field))
        if group == WHAT:
            recipes = ", ".join(defaults.RECIPES)
            flags.add(WHAT, str, "recipe", "published", f"named set of defaults ({recipes})")
    flags.add(
        HOW_LONG,
        str,
        "run_dir",
        None,
        f"directory of the run. Default: {RUNS}/<dataset>-<network>-<method>-seed<seed>",
=======
DEFINE = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}


def define_flags() -> None:
    """Defines the flags of the program: every setting, and how the run is carried out."""
    for field in settings.CHOSEN.values():
        define = DEFINE.get(settings.kind_of(field), flags.DEFINE_list)
        define(field.name, None, flag_help.describe(field))
    flags.DEFINE_string(
        "recipe", "published", f"named set of defaults: {', '.join(defaults.RECIPES)}"
    )
    flags.DEFINE_string(
        "run_dir", None, f"where the run goes. Default: {RUNS}/<dataset>-<network>-<method>-seed<n>"
>>>>>>> theirs
    )
    flags.add(
        HOW_LONG, bool, "overwrite", False, "delete the run that is in --run_dir and start anew"
    )
    shared_flags.add_data(flags, HOW_LONG)
    flags.add(
        HOW_LONG,
        str,
        "strategy",
        "auto",
        "devices to train on; auto: multi_worker if TF_CONFIG is set, mirrored with several GPUs, "
        f"else default ({', '.join(STRATEGIES)})",
        choices=STRATEGIES,
    )
    shared_flags.add_execution(flags, HOW_LONG, EXPERTS)
    flags.add(
        EXPERTS,
        bool,
        "deterministic",
        False,
        "the same bits in every run on a GPU too, with slower kernels",
    )
    # For tests: not in the help.
    flags.add(None, int, "logical_cpus", None, "cut the CPU into this many devices", lower_bound=1)


<<<<<<< ours
def _chosen(values: Any) -> settings.Settings:
    """The settings that the flags give; a flag that is absent takes an existing run's value."""
=======
def chosen_settings() -> settings.Settings:
    """The settings that the flags give; what they leave open, an existing --run_dir says."""
    values = flags.FLAGS
>>>>>>> theirs
    given = {name: values[name].value for name in settings.CHOSEN}
    run = RunDirectory(values.run_dir or "")
    of_flags = values.overwrite or values["recipe"].present or not values.run_dir
    if of_flags or not run.config_path.exists():
        return resolve.choose(given, values.recipe, values.data_dir)
    held = run.settings()
    if given["precision"] == "auto":
        del given["precision"]  # It was chosen when the run began.
    given = {name: value for name, value in given.items() if value is not None}
    resolve.check_used(given.get("method", held.method), given)
    return resolve.validated(dataclasses.asdict(held) | given)


def _check(chosen: settings.Settings, run: RunDirectory, overwrite: bool) -> None:
    """Raises UsageError if the run cannot be in its directory, before TensorFlow is imported."""
    if chosen.precision == "auto" and run.config_path.exists() and not overwrite:
        chosen = dataclasses.replace(chosen, precision=run.settings().precision)
    run.check(chosen, overwrite)


def main(values: Any) -> None:
    if values.method == "help":
        print(flag_help.describe_methods(values.dataset or "digits", values.recipe))
        return
    chosen = _chosen(values)
    run = RunDirectory(values.run_dir or os.path.join(RUNS, directory.default_name(chosen)))
    _check(chosen, run, values.overwrite)

    # What follows imports TensorFlow.
    from anpvs_tf.common import devices
    from anpvs_tf.training import trainer

    # First: TensorFlow fixes its devices when they are first used.
    used = devices.choose(values.strategy, values.logical_cpus, values.deterministic)
    if not used.is_chief:
        # Every worker would say the same; open until the end.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
<<<<<<< ours
    chosen = resolve.with_precision(chosen)
=======
    chosen = chosen_settings()
    run = directory.RunDirectory(
        values.run_dir or os.path.join(RUNS, directory.default_name(chosen))
    )
>>>>>>> theirs
    finished = run.finished and not values.overwrite
    with interruption.deferred():
        found = trainer.train(
            chosen,
            run,
            values.data_dir,
            values.download,
            sys.argv,
            values.overwrite,
            trainer.Execution(used, values.checkpoint_minutes, values.on_nonfinite),
        )
    if not used.is_chief:
        return
    if finished:
        print(
            f"{run.path} holds this run, finished; nothing was trained. To train on from its "
            f"weights: --base_run={run.path} with another --run_dir; to start anew: --overwrite"
        )
    for record in filter(records.of_training, found):
        print(console.result_table(record))
    if others := [record for record in found if not records.of_training(record)]:
        print(console.evaluation_table(others))
    print(f"Results are in {run.path}")
    print(next_steps.text(str(run.path), "evaluate", "report", "export"))


def run() -> None:
    """Runs the program on the command line."""
<<<<<<< ours
    program.run(main, __doc__, _define)
=======
    define_flags()
    program.run(main, __doc__)
>>>>>>> theirs
