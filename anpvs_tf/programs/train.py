"""Trains a network that is robust and small.

  python bin/train.py                                    ANP-VS on digits, a few minutes
  python bin/train.py --dataset=cifar10 --method=anpvs   the published recipe
  python bin/train.py --method=help                      the methods and their flags

An interrupted run continues when the same command is given again, or --run_dir alone.
SIGTERM and SIGINT (Ctrl-C) save and end it; a second one ends it at once.
"""

import dataclasses
import os
import sys
from collections.abc import Mapping

from absl import flags

from anpvs_tf.attacks import radius
from anpvs_tf.common import devices, interruption, program
from anpvs_tf.common.errors import UsageError
from anpvs_tf.runs import (
    console,
    defaults,
    directory,
    flag_help,
    matching,
    records,
    resolve,
    settings,
)
from anpvs_tf.training import nonfinite, trainer

RUNS = "runs"
DEFINE = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}


class PixelParser(flags.ArgumentParser):
    """A length in pixel units: a number, or a fraction like 8/255."""

    def parse(self, argument: str | float) -> float:
        return radius.parse(argument)


def define_flags() -> None:
    """Defines the flags of the program: every setting, and how the run is carried out."""
    for field in settings.CHOSEN.values():
        if "pixels" in field.metadata:
            flags.DEFINE(PixelParser(), field.name, None, flag_help.describe(field))
            continue
        define = DEFINE.get(settings.kind_of(field), flags.DEFINE_list)
        define(field.name, None, flag_help.describe(field))
    flags.DEFINE_string(
        "recipe", "published", f"named set of defaults: {', '.join(defaults.RECIPES)}"
    )
    flags.DEFINE_string("threat_model", None, "--norm and --epsilon by name, like linf-8/255")
    flags.DEFINE_string(
        "match_cost_of",
        None,
        "a finished run: choose the --width at which a network without gates costs as much",
    )
    flags.DEFINE_enum(
        "match", "flops", matching.COSTS, "with --match_cost_of: which cost is to be equal"
    )
    flags.DEFINE_string(
        "run_dir", None, f"where the run goes. Default: {RUNS}/<dataset>-<network>-<method>-seed<n>"
    )
    flags.DEFINE_string(
        "data_dir", None, "TFDS data directory. Default: TFDS_DATA_DIR, else TFDS's own"
    )
    flags.DEFINE_bool("download", True, "let TFDS download a dataset that is absent")
    flags.DEFINE_enum(
        "strategy",
        "auto",
        devices.STRATEGIES,
        "auto: multi_worker if TF_CONFIG is set, mirrored with several GPUs, else default",
    )
    flags.DEFINE_integer(
        "logical_cpus", None, "cut the CPU into this many devices, to try strategies without GPUs"
    )
    flags.DEFINE_bool(
        "deterministic", False, "the same bits in every run on a GPU too, with slower kernels"
    )
    flags.DEFINE_float(
        "checkpoint_minutes",
        15.0,
        "save this often within an epoch, besides at its end",
        lower_bound=0.0,
    )
    flags.DEFINE_enum(
        "on_nonfinite",
        "stop",
        nonfinite.ACTIONS,
        "at a loss or gradient that is nan or infinite: stop, or skip the step",
    )
    flags.DEFINE_bool("overwrite", False, "delete the run that is in --run_dir and start anew")


def chosen_settings() -> settings.Settings:
    """The settings that the flags give; what they leave open, an existing --run_dir says."""
    values = flags.FLAGS
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
    run = directory.RunDirectory(values.run_dir or "")
    of_flags = values.overwrite or values["recipe"].present or not values.run_dir
    if of_flags or not run.config_path.exists():
        chosen = resolve.resolve(given, values.recipe, values.data_dir)
        return _matched(chosen, given)
    held = run.settings()
    if given["precision"] == "auto":
        del given["precision"]  # It was chosen when the run began.
    given = {name: value for name, value in given.items() if value is not None}
    resolve.check_used(given.get("method", held.method), given)
    return resolve.validated(dataclasses.asdict(held) | given)


def _matched(chosen: settings.Settings, given: Mapping[str, object]) -> settings.Settings:
    """The settings with the width that --match_cost_of asks for, if it does."""
    values = flags.FLAGS
    if values.match_cost_of is None:
        return chosen
    if given["width"] is not None:
        raise UsageError("--match_cost_of chooses the --width; give one of them")
    other = directory.RunDirectory(values.match_cost_of)
    found = matching.matched(chosen, other, values.match)
    print(
        f"--width={found.width:g} gives {found.cost:,} {values.match}, {other.path} has "
        f"{found.wanted:,}"
    )
    return dataclasses.replace(chosen, width=found.width)


def main() -> None:
    values = flags.FLAGS
    if values.method == "help":
        print(flag_help.describe_methods(values.dataset or "digits", values.recipe))
        return
    # First: TensorFlow fixes its devices when they are first used.
    used = devices.choose(values.strategy, values.logical_cpus, values.deterministic)
    if not used.is_chief:
        # Every worker would say the same; open until the end.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    chosen = chosen_settings()
    run = directory.RunDirectory(
        values.run_dir or os.path.join(RUNS, directory.default_name(chosen))
    )
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


def run() -> None:
    """Runs the program on the command line."""
    define_flags()
    program.run(main, __doc__)
