"""Trains a network that is robust and small.

  python bin/train.py                                    ANP-VS on digits, a few minutes
  python bin/train.py --dataset=cifar10 --method=anpvs   the published recipe
  python bin/train.py --method=help                      the methods and their flags

An interrupted run resumes when the same command is given again, or --run_dir alone.
SIGTERM and SIGINT (Ctrl-C) save and end it; a second one ends it at once. Lengths in images
(epsilon, step sizes) are in pixel units of [0, 1].
"""

import dataclasses
import os
import sys
from typing import Any

from anpvs_tf.attacks import radius
from anpvs_tf.common import interruption, program
from anpvs_tf.common.errors import UsageError
from anpvs_tf.common.names import STRATEGIES, XLA
from anpvs_tf.common.program import Flags
from anpvs_tf.networks.names import is_file
from anpvs_tf.programs import next_steps, shared_flags
from anpvs_tf.runs import console, defaults, directory, flag_help, records, resolution, settings
from anpvs_tf.runs.directory import RunDirectory
from anpvs_tf.runs.finished_run import open_run
from anpvs_tf.runs.flag_help import EXPERTS, HOW_LONG, WHAT
from anpvs_tf.runs.names import COSTS
from anpvs_tf.tracking import tracked_run

RUNS = "runs"


def define(flags: Flags) -> None:
    """Defines the flags of the program: every setting, and how the run is carried out."""
    for group, fields in flag_help.groups().items():
        for field in fields:
            flags.add(
                group,
                settings.kind_of(field),
                field.name,
                None,
                flag_help.describe(field),
                parse=radius.parse if "pixels" in field.metadata else None,
            )
        if group == WHAT:
            recipes = ", ".join(defaults.RECIPES)
            flags.add(WHAT, str, "recipe", "published", f"named set of defaults ({recipes})")
            flags.add(WHAT, str, "threat_model", None, flag_help.THREAT_MODEL)
    flags.add(
        EXPERTS,
        str,
        "match_cost_of",
        None,
        "a finished run: choose the --width at which a network without gates costs as much",
    )
    flags.add(
        EXPERTS,
        str,
        "match",
        "flops",
        "with --match_cost_of: which cost is to be equal",
        choices=COSTS,
    )
    flags.add(
        HOW_LONG,
        str,
        "run_dir",
        None,
        f"directory of the run. Default: {RUNS}/<dataset>-<network>-<method>-seed<seed>",
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
    flags.add(
        EXPERTS,
        str,
        "xla",
        "auto",
        "compile the attack of training by XLA; auto: with a GPU",
        choices=XLA,
    )
    # For tests: not in the help.
    flags.add(None, int, "logical_cpus", None, "cut the CPU into this many devices", lower_bound=1)


def chosen_settings(values: Any) -> settings.Settings:
    """Makes the settings of the flags; an existing run gives the values of absent flags.

    Precision may still be "auto".

    Raises:
        UsageError: flags do not go together, or a value cannot be used.
    """
    given = {name: values[name].value for name in settings.CHOSEN}
    if values.threat_model is not None:
        for name in ("norm", "epsilon"):
            if given[name] is not None:
                raise UsageError(f"--threat_model says --{name} too; give one of them")
        given["norm"], given["epsilon"] = radius.parse_threat_model(values.threat_model)
    if given["train_attack"] == "n_fgsm":
        for name in ("attack_steps", "step_size"):
            if given[name] is not None:
                raise UsageError(
                    f"--{name} is not used by --train_attack=n_fgsm: its one step is epsilon"
                )
    if values["match"].present and values.match_cost_of is None:
        raise UsageError("--match needs --match_cost_of")
    if values.match_cost_of is not None and given["width"] is not None:
        raise UsageError("--match_cost_of chooses the --width; give one of them")
    if values.match_cost_of is not None and is_file(given["network"] or ""):
        raise UsageError("--match_cost_of chooses the --width, and a Keras model file has its own")
    run = RunDirectory(values.run_dir or "")
    of_flags = values.overwrite or values["recipe"].present or not values.run_dir
    if of_flags or not run.config_path.exists():
        return _matched(resolution.choose(given, values.recipe, values.data_dir), values)
    held = run.settings()
    file = given["network"] or ""
    if os.path.basename(file) == held.network and is_file(file) and not os.path.exists(file):
        del given["network"]  # The run has a copy.
    if given["precision"] == "auto":
        del given["precision"]  # It was chosen when the run began.
    given = {name: value for name, value in given.items() if value is not None}
    resolution.check_used(given.get("method", held.method), given)
    given = resolution.of_network(given)
    resolution.check_of_network(given.get("network", held.network), given)
    return resolution.validated(dataclasses.asdict(held) | given)


def _matched(chosen: settings.Settings, values: Any) -> settings.Settings:
    """Returns the settings with the width that --match_cost_of asks for, if the flag is given."""
    if values.match_cost_of is None:
        return chosen
    other = open_run(values.match_cost_of)
    from anpvs_tf.runs import matching

    found = matching.matched(chosen, other, values.match)
    print(
        f"--width={found.width:g} gives {found.cost:,} {values.match}, {other.path} has "
        f"{found.wanted:,}"
    )
    return dataclasses.replace(chosen, width=found.width)


def _check(chosen: settings.Settings, run: RunDirectory, overwrite: bool) -> None:
    """Raises UsageError if the run cannot be in its directory, before TensorFlow is imported."""
    if chosen.precision == "auto" and run.config_path.exists() and not overwrite:
        chosen = dataclasses.replace(chosen, precision=run.settings().precision)
    run.check(chosen, overwrite)


def main(values: Any) -> None:
    if values.method == "help":
        print(flag_help.describe_methods(values.dataset or "digits", values.recipe))
        return
    chosen = chosen_settings(values)
    run = RunDirectory(values.run_dir or os.path.join(RUNS, directory.default_name(chosen)))
    _check(chosen, run, values.overwrite)
    trackers = tracked_run.named(values.track)

    # These import TensorFlow.
    from anpvs_tf.common import devices
    from anpvs_tf.training import trainer

    # First: TensorFlow fixes its devices when they are first used.
    used = devices.choose(values.strategy, values.logical_cpus, values.deterministic, values.xla)
    if not used.is_chief:
        # Every worker would say the same; open until the end.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    else:
        tracked_run.check(trackers)
    # By every worker, needed or not: one may see the directory of a run that another does not yet.
    chosen = resolution.with_precision(chosen, resolution.fast_precision_of_all(used))
    finished = run.finished and not values.overwrite
    with interruption.deferred():
        found = trainer.train(
            chosen,
            run,
            values.data_dir,
            values.download,
            sys.argv,
            values.overwrite,
            trainer.Execution(used, values.checkpoint_minutes, values.on_nonfinite, trackers),
            values.network if is_file(values.network or "") else None,
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
    program.run(main, __doc__, define)
