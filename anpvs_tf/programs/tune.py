"""Sweeps training settings, and shows the trade-off.

  python bin/tune.py --beta=0.5:16:log --lambda_vs=0.1:30:log --trials=20 --run_dir=SWEEP
  python bin/tune.py --run_dir=SWEEP           resume, or show a finished sweep
  python bin/tune.py --run_dir=SWEEP --show    show it while it runs

Every setting of bin/train.py is a flag that takes one value, a range low:high[:log|:linear][:steps]
if it is a number, or choices 'a|b|c'. Each trial is a run directory in SWEEP. An interrupted sweep
resumes when the same command is given again, or --run_dir alone. Several workers: docs/tuning.md.
"""

import dataclasses
import sys
from typing import Any

from anpvs_tf.attacks import radius
from anpvs_tf.common import interruption, program
from anpvs_tf.common.errors import UsageError
from anpvs_tf.common.program import Flags
from anpvs_tf.programs import shared_flags
from anpvs_tf.runs import defaults, flag_help, settings
from anpvs_tf.runs.flag_help import EXPERTS, HOW_LONG, WHAT
from anpvs_tf.tracking import tracked_run
from anpvs_tf.tuning import role, score, space, table
from anpvs_tf.tuning.names import TUNERS
from anpvs_tf.tuning.sweep import TRIALS, Definition, Sweep, read_definition, wait_until

SEARCH = "The sweep"


def define(flags: Flags) -> None:
    flags.add(
        SEARCH,
        str,
        "run_dir",
        None,
        "the sweep's directory; its trials are run directories",
        required=True,
    )
    flags.add(SEARCH, str, "tuner", None, f"how to search ({', '.join(TUNERS)}). Default: random")
    flags.add(SEARCH, str, "objective", None, f"{score.HELP}. Default: robust")
    flags.add(
        SEARCH,
        int,
        "trials",
        None,
        f"at most so many; a larger number resumes a finished sweep. Default: {TRIALS}; grid: all",
    )
    flags.add(SEARCH, int, "search_seed", None, "seed of the search. Default: 0")
    flags.add(SEARCH, bool, "show", False, "show the trials so far, train nothing")
    for group, fields in flag_help.groups().items():
        for field in fields:
            kind = object if settings.kind_of(field) is bool else None
            flags.add(group, kind, field.name, None, flag_help.describe(field))
        if group == WHAT:
            recipes = ", ".join(defaults.RECIPES)
            flags.add(
                WHAT, str, "recipe", None, f"named set of defaults ({recipes}). Default: published"
            )
            flags.add(WHAT, str, "threat_model", None, flag_help.THREAT_MODEL)
    shared_flags.add_data(flags, HOW_LONG)
    shared_flags.add_execution(flags, HOW_LONG, EXPERTS)


def _definition(values: Any) -> Definition | None:
    """Makes the sweep of the flags; an existing sweep gives the values of absent flags.

    Returns None if no sweep exists and the flags give no setting.
    """
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


def main(values: Any) -> None:
    own, trackers = role.own_role(), tracked_run.named(values.track)
    with interruption.deferred():
        if own.name == "worker" and _definition(values) is None:
            # The chief has the definition.
            wait_until(lambda: _definition(values) is not None, role.CHIEF_SECONDS)
        definition = _definition(values)
        if definition is None:
            raise UsageError(
                f"{values.run_dir} holds no sweep, and no setting is given. {space.HELP}"
            )
        sweep = Sweep(
            values.run_dir,
            definition,
            values.data_dir,
            values.download,
            {
                "checkpoint_minutes": values.checkpoint_minutes,
                "on_nonfinite": values.on_nonfinite,
                "trackers": trackers,
            },
            sys.argv,
        )
        if not values.show:
            tracked_run.check(trackers)
            from anpvs_tf.tuning import search

            search.run(sweep)
    if own.name != "worker":
        print(table.text(sweep))


def run() -> None:
    """Runs the program on the command line."""
    program.run(main, __doc__, define)
