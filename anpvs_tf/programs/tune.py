"""Sweeps training settings, and shows the trade-off.

  python bin/tune.py --beta=0.5:16:log --lambda_vs=0.1:30:log --trials=20 --run_dir=SWEEP
  python bin/tune.py --run_dir=SWEEP           go on, or show a finished sweep
  python bin/tune.py --run_dir=SWEEP --show    show it while it runs

Every setting of bin/train.py is a flag that takes one value, a range low:high[:log|:linear][:steps]
if it is a number, or choices 'a|b|c'. Each trial is a run directory in SWEEP. An interrupted sweep
goes on when the same command is given again, or --run_dir alone. Several workers: docs/tuning.md.
"""

import dataclasses
import sys

from absl import flags

from anpvs_tf.attacks import radius
from anpvs_tf.common import interruption, program
from anpvs_tf.common.errors import UsageError
from anpvs_tf.runs import defaults, flag_help, settings
from anpvs_tf.training import nonfinite, trainer
from anpvs_tf.tuning import oracles, score, search, space, table
from anpvs_tf.tuning.sweep import TRIALS, Definition, Sweep, read_definition, wait_until


def _define_flags() -> None:
    for field in settings.CHOSEN.values():
        boolean = settings.kind_of(field) is bool
        flags.DEFINE(
            flags.ArgumentParser(), field.name, None, flag_help.describe(field), boolean=boolean
        )
    flags.DEFINE_string("threat_model", None, "--norm and --epsilon by name, like linf-8/255")
    flags.DEFINE_string("recipe", None, f"named set of defaults: {', '.join(defaults.RECIPES)}")
    flags.DEFINE_string("run_dir", None, "the sweep's directory; its trials are run directories")
    flags.DEFINE_string("tuner", None, f"how to search: {', '.join(oracles.TUNERS)}")
    flags.DEFINE_string("objective", None, f"{score.HELP}. Default: robust")
    flags.DEFINE_integer(
        "trials", None, f"at most so many. Default: {TRIALS}; grid: all; more later goes on"
    )
    flags.DEFINE_integer("search_seed", None, "of the search. Default: 0")
    flags.DEFINE_bool("show", False, "show the trials so far, train nothing")
    flags.DEFINE_string(
        "data_dir", None, "TFDS data directory. Default: TFDS_DATA_DIR, else TFDS's own"
    )
    flags.DEFINE_bool("download", True, "let TFDS download a dataset that is absent")
    flags.DEFINE_float(
        "checkpoint_minutes", 15.0, "save this often within an epoch, besides at its end"
    )
    flags.DEFINE_enum(
        "on_nonfinite",
        "stop",
        nonfinite.ACTIONS,
        "at a loss or gradient that is nan or infinite: stop, or skip the step",
    )


def _definition() -> Definition | None:
    """What the flags say; what they leave open, an existing sweep says."""
    values = flags.FLAGS
    texts = {n: str(values[n].value) for n in settings.CHOSEN if values[n].value is not None}
    if values.threat_model is not None:
        if texts.keys() & {"norm", "epsilon"}:
            raise UsageError("--threat_model says --norm and --epsilon; give it or them")
        norm, epsilon = radius.parse_threat_model(values.threat_model)
        texts |= {"norm": norm, "epsilon": str(epsilon)}
    given = {
        field.name: values[field.name].value
        for field in dataclasses.fields(Definition)
        if field.name != "settings" and values[field.name].value is not None
    }
    held = read_definition(values.run_dir)
    if held is None:
        return Definition(texts, **given) if texts else None
    return dataclasses.replace(held, settings=texts or held.settings, **given)


def main() -> None:
    values = flags.FLAGS
    if not values.run_dir:
        raise UsageError("--run_dir is missing: the directory of the sweep")
    role = search.role()
    with interruption.deferred():
        if role.name == "worker" and _definition() is None:
            # The chief has the definition.
            wait_until(lambda: _definition() is not None, search.CHIEF_SECONDS)
        definition = _definition()
        if definition is None:
            raise UsageError(
                f"{values.run_dir} holds no sweep, and no setting is given. {space.HELP}"
            )
        sweep = Sweep(
            values.run_dir,
            definition,
            values.data_dir,
            values.download,
            trainer.Execution(
                checkpoint_minutes=values.checkpoint_minutes, on_nonfinite=values.on_nonfinite
            ),
            sys.argv,
        )
        if not values.show:
            search.run(sweep)
    if role.name != "worker":
        print(table.text(sweep))


def run() -> None:
    """Runs the program on the command line."""
    _define_flags()
    program.run(main, __doc__)
