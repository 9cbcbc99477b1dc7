"""Attacks a finished run, or any model of yours, and says how reliable the results are.

  python bin/evaluate.py --run_dir=RUN                     AutoAttack on the whole test set
  python bin/evaluate.py --run_dir=RUN --attack=pgd,apgd-ce,square --epsilons=0.1,0.2,0.3
  python bin/evaluate.py --saved_model=DIR --dataset=mnist --epsilons=0.3
  python bin/evaluate.py --run_dir=RUN --litert=DIR/1/model_int8.tflite
  python bin/evaluate.py --zoo=digits-anpvs_vib            a network that comes with the package

Writes evaluation/<attack>-….npz (the outcome for each example) and adds to
results.json. A stopped evaluation resumes when the same command is given again; finished
attacks are not computed twice. Lengths in images (epsilons, step sizes) are in pixel units of
[0, 1], whatever range the model takes.
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from anpvs_tf.attacks import radius
from anpvs_tf.attacks.settings import (
    DRAWS,
    EVALUATION_BATCH,
    FLAGS,
    NORMS,
    RADII,
    RAND_DRAWS,
    STEPS,
    AttackSettings,
    usual_step_size,
)
from anpvs_tf.common import program
from anpvs_tf.common.errors import TrainingError, UsageError
from anpvs_tf.common.files import check_directory
from anpvs_tf.common.program import Flags
from anpvs_tf.data.sources import EVALUATED, Source, describe
from anpvs_tf.evaluation import attack_choice
from anpvs_tf.programs import next_steps, shared_flags
from anpvs_tf.runs import console, records
from anpvs_tf.runs.directory import RunDirectory
from anpvs_tf.runs.finished_run import FinishedRun, open_run
from anpvs_tf.runs.resolution import black_and_white, defaults, parsed_size
from anpvs_tf.runs.result_record import ResultRecord
from anpvs_tf.tracking import tracked_run
from anpvs_tf.tracking.tracker import Tracker
from anpvs_tf.zoo import shelf

FEWEST_CHECKED = 50
EXPERTS = "For experts"
# The settings that attacks of one command may take differently.
OF_EACH = ("steps", "step_size")
# The flags that only --saved_model needs.
OF_MODEL = ("dataset", "image_size", "channels", "input_range")
MODELS = ("run_dir", "saved_model", "zoo")


def define(flags: Flags) -> None:
    model, attack, data = "The model, one of", "The attack", "The examples"
    flags.add(model, str, "run_dir", None, "a finished run of bin/train.py")
    flags.add(
        model,
        str,
        "saved_model",
        None,
        "a SavedModel directory, or a Keras model file, that returns logits; needs --dataset",
    )
    flags.add(model, str, "zoo", None, f"a network of the package ({', '.join(shelf.names())})")
    flags.add(
        model,
        str,
        "litert",
        None,
        "with --run_dir: attack this int8 file that bin/export.py made of the run",
    )
    own = "With --saved_model"
    flags.add(own, str, "dataset", None, "the data that it classifies, as of bin/train.py")
    flags.add(
        own,
        tuple,
        "input_range",
        None,
        "the values that it takes for black and white, such as 0,255 or -1,1. Default: read off "
        "its first layers, else 0,1",
    )
    flags.add(own, tuple, "image_size", None, "height,width in pixels, as of bin/train.py")
    flags.add(own, int, "channels", None, "1 (grey) or 3 (colour), as of bin/train.py")
    flags.add(
        own,
        str,
        "out_dir",
        None,
        "and with --zoo or --litert: directory of the results. Default: beside the model; "
        "NAME-evaluation",
    )
    flags.add(
        attack, tuple, "attack", ["autoattack"], f"which ({', '.join(attack_choice.ATTACKS)})"
    )
    flags.add(
        attack,
        tuple,
        "epsilons",
        None,
        "radii of the ball, in pixel units, like 8/255. Default: the run's or dataset's",
    )
    flags.add(
        attack, str, "norm", None, f"of the ball ({', '.join(NORMS)}). Default: as the epsilons"
    )
    flags.add(attack, str, "threat_model", None, "--norm and --epsilons by name, like linf-8/255")
    flags.add(
        attack, int, "restarts", AttackSettings.restarts, "runs of an attack with a random start"
    )
    flags.add(attack, int, "seed", 0, "of the attacks")
    flags.add(
        attack,
        str,
        "source_run",
        [],
        "with --attack=transfer: a run to craft on; may be given several times. With --litert, "
        "the run itself comes first",
        repeated=True,
    )
    flags.add(
        data,
        str,
        "split",
        EVALUATED[0],
        f"the examples ({', '.join(EVALUATED)}): validation to choose settings by; reports and "
        "model cards hold results of test alone",
    )
    flags.add(data, int, "examples", None, "evaluate on the first only. Default: the whole split")
    flags.add(data, int, "batch_size", EVALUATION_BATCH, "examples attacked at a time")
    flags.add(data, int, "check_examples", 200, "examples for the self-checks; 0 leaves them out")
    flags.add(
        data,
        int,
        "curve_examples",
        0,
        "of so many of the first, write loss and share broken after each step of an attack, for "
        "TensorBoard",
        lower_bound=0,
    )
    shared_flags.add_data(flags, data)
    shared_flags.add_track(flags, data)
    flags.add(
        EXPERTS,
        tuple,
        "attack_steps",
        None,
        f"gradient steps. Default: pgd the dataset's, others {STEPS}",
    )
    flags.add(
        EXPERTS,
        float,
        "step_size",
        None,
        "length of a step of pgd, in pixel units. Default: the run's or dataset's, or "
        f"{RADII:g} epsilon / steps",
        parse=radius.parse,
    )
    flags.add(
        EXPERTS,
        int,
        "eot",
        None,
        f"draws of a stochastic model that gradients average over. Default: {DRAWS}; "
        f"autoattack-rand: {RAND_DRAWS}",
    )
    flags.add(
        EXPERTS,
        int,
        "targets",
        AttackSettings.targets,
        "classes that targeted attacks aim at, one after another",
    )
    flags.add(
        EXPERTS, int, "queries", AttackSettings.queries, "of the model, for each image, of square"
    )
    flags.add(
        EXPERTS,
        float,
        "gamma",
        AttackSettings.gamma,
        "weight of the latent displacement in pgd-latent",
    )
    flags.add(
        EXPERTS,
        int,
        "posterior_draws",
        None,
        "of a Bayesian run: evaluate the ensemble of so many networks drawn from its posterior. "
        "Default: the network of the posterior means",
    )


def _check_model(values: Any) -> None:
    """Raises UsageError unless the flags name one model, and fit it."""
    if sum(bool(values[name].value) for name in MODELS) != 1:
        raise UsageError("give --run_dir, --saved_model or --zoo, one of them")
    if values.saved_model and not values.dataset:
        raise UsageError("--saved_model needs --dataset")
    for name in OF_MODEL:
        if not values.saved_model and values[name].value:
            kind = "run" if values.run_dir else "network of the zoo"
            raise UsageError(f"--{name} belongs to --saved_model; a {kind} knows its own")
    if values.litert and not values.run_dir:
        raise UsageError("--litert needs --run_dir, the run that the file was exported from")
    if values.run_dir and not values.litert:
        if values.out_dir:
            raise UsageError(
                "--out_dir belongs to --saved_model, --zoo and --litert; a run keeps its own "
                "results"
            )
        return
    kind = "a LiteRT file" if values.litert else "a saved model"
    if values.track:
        raise UsageError(f"--track belongs to --run_dir; {kind} has no tracked run")
    if values.posterior_draws is not None:
        raise UsageError(f"--posterior_draws belongs to --run_dir; {kind} has no posterior")


def _check(values: Any) -> None:
    """Raises UsageError for flags that do not go together, and for values out of range."""
    _check_model(values)
    counts = ("batch_size", "examples", "restarts", "eot", "targets", "queries", "posterior_draws")
    for name in counts:
        if values[name].value is not None and values[name].value < 1:
            raise UsageError(f"--{name} must be at least 1; got {values[name].value}")
    if values.check_examples and values.check_examples < FEWEST_CHECKED:
        raise UsageError(
            f"--check_examples must be 0 or at least {FEWEST_CHECKED}: fewer decide nothing; got "
            f"{values.check_examples}"
        )
    if values.split not in EVALUATED:
        raise UsageError(f"--split must be one of {', '.join(EVALUATED)}; got {values.split}")
    if len(set(values.source_run)) < len(values.source_run):
        raise UsageError("--source_run names a run twice")
    if not 0 <= values.seed < 2**31:
        raise UsageError(f"--seed must lie in [0, 2^31); got {values.seed}")
    transfer = attack_choice.TRANSFER in values.attack
    if transfer != bool(values.source_run) and not (transfer and values.litert):
        raise UsageError("--attack=transfer and --source_run need each other")
    for setting, flag in FLAGS.items():
        used = [name for name in attack_choice.ATTACKS if setting in attack_choice.uses(name)]
        if values[flag].present and not set(used) & set(values.attack):
            raise UsageError(f"--{flag} is used by {', '.join(used)} only")
        if isinstance(values[flag].value, float) and values[flag].value < 0:
            raise UsageError(f"--{flag} must be at least 0; got {values[flag].value}")


def choice_of(values: Any) -> attack_choice.Choice:
    """Returns the attacks that the flags ask for.

    Raises:
        UsageError: no attack is named, a value is not a number, or flags contradict each other.
    """
    if not values.attack:
        raise UsageError(f"--attack names none; choose of {', '.join(attack_choice.ATTACKS)}")
    norm = values.norm
    epsilons = tuple(radius.parse_flag("epsilons", text) for text in values.epsilons or ())
    if values.threat_model is not None:
        if values.norm or values.epsilons:
            raise UsageError("--threat_model says --norm and --epsilons; give it or them")
        norm, epsilon = radius.parse_threat_model(values.threat_model)
        epsilons = (epsilon,)
    return attack_choice.Choice(
        tuple(values.attack),
        epsilons,
        norm,
        _numbers("attack_steps", values.attack_steps, int),
        values.step_size,
        {name: values[flag].value for name, flag in FLAGS.items() if name not in OF_EACH},
    )


def _numbers(flag: str, texts: list[str] | None, kind: type) -> tuple:
    try:
        return tuple(kind(text) for text in texts or ())
    except ValueError:
        raise UsageError(
            f"--{flag} must be numbers between commas; got {','.join(texts)}"
        ) from None


def _input_range(values: Any) -> tuple[float, float] | None:
    """Returns (black, white) of --input_range; None if the flag is not given."""
    return black_and_white(values.input_range) if values.input_range else None


def _examined(values: Any, run: FinishedRun | None) -> tuple[Source, Mapping[str, Any]]:
    """Returns the data that the model classifies, and the usual settings of attacks on it.

    Raises:
        UsageError: the model does not exist, or the dataset is unknown.
    """
    if values.litert and not os.path.exists(values.litert):
        raise UsageError(f"--litert={values.litert} does not exist")
    if run is not None:
        return run.settings.source, dataclasses.asdict(run.settings)
    if values.zoo:
        entry = shelf.entry(values.zoo)
        source = describe(entry.dataset)
        usual = defaults(source)
        threat = {"norm": entry.norm, "epsilon": entry.epsilon}
        if threat.items() <= usual.items():
            return source, usual
        steps = usual["eval_attack_steps"]
        return source, usual | threat | {"eval_step_size": usual_step_size(entry.epsilon, steps)}
    if not os.path.exists(values.saved_model):
        raise UsageError(f"--saved_model={values.saved_model} does not exist")
    size = parsed_size(values.image_size) if values.image_size else None
    source = describe(values.dataset, size, values.channels, values.data_dir)
    return source, defaults(source)


def _in_levels(
    choice: attack_choice.Choice, usual: Mapping[str, Any]
) -> tuple[attack_choice.Choice, Mapping[str, Any]]:
    """Lowers linf radii to whole levels of a pixel, from which rounding to integers leads nowhere.

    Raises:
        UsageError: a radius below one level.
    """
    if (choice.norm or usual["norm"]) != "linf":
        return choice, usual
    for epsilon in choice.epsilons or (usual["epsilon"],):
        if (lowered := radius.in_levels(epsilon)) < epsilon - 1e-6:
            print(
                f"epsilon {radius.as_text(epsilon)} is {radius.as_text(lowered)} to images of 256 "
                "levels a pixel"
            )
    epsilons = tuple(radius.in_levels(epsilon) for epsilon in choice.epsilons)
    choice = dataclasses.replace(choice, epsilons=epsilons)
    return choice, {**usual, "epsilon": radius.in_levels(usual["epsilon"])}


def _home(values: Any, run: FinishedRun | None) -> RunDirectory:
    """Returns the directory of the results: a run's own, --out_dir, or one beside the model."""
    if run is not None and not values.litert:
        return run.directory
    beside = values.zoo or pathlib.Path(values.saved_model or values.litert).absolute()
    home = RunDirectory(values.out_dir or f"{beside}-evaluation")
    check_directory(home.path, f"directory of the results {home.path}", "--out_dir")
    return home


def main(values: Any) -> None:
    _check(values)
    choice, input_range = choice_of(values), _input_range(values)
    run = open_run(values.run_dir) if values.run_dir else None
    source, usual = _examined(values, run)
    if values.litert:
        choice, usual = _in_levels(choice, usual)
    latent = run is not None and not values.litert
    attacks = attack_choice.chosen_attacks(choice, usual, source.classes, latent)
    home, trackers = _home(values, run), tracked_run.named(values.track)
    source_runs = [open_run(path) for path in values.source_run]
    tracked_run.check(trackers)

    # These import TensorFlow.
    from anpvs_tf.data import loading
    from anpvs_tf.evaluation import assessment, attacked_model, leaderboards

    sources = [attacked_model.of_run(one) for one in source_runs]
    if run is not None:
        subject = attacked_model.of_run(run, values.posterior_draws)
        if values.litert:
            sources.insert(0, subject)
            subject = attacked_model.of_litert(values.litert, subject)
    else:
        file = str(shelf.file_of(values.zoo)) if values.zoo else values.saved_model
        subject = attacked_model.of_model(file, source, input_range)
    if subject.remark:
        print(subject.remark)
    stream = run is not None and usual["stream"]
    split = loading.load_evaluated(source, values.data_dir, values.download, stream, values.split)
    split = split.take(values.examples)
    conditions = assessment.Conditions(
        subject,
        split,
        home.path / "evaluation",
        split_name=values.split,
        seed=values.seed,
        batch_size=min(values.batch_size, len(split)),
        sources=sources,
        check_examples=_checked(values.check_examples, len(split)),
        curve_examples=values.curve_examples,
    )
    made = _recorded(home, assessment.assess(conditions, attacks), trackers)
    print(console.evaluation_table(made))
    for line in leaderboards.write(made, conditions.directory, subject):
        print(line)
    print(f"Results are in {home.path}")
    curves = conditions.directory / "tensorboard"
    if values.curve_examples and curves.exists():
        print(f"Attacks step by step: tensorboard --logdir {curves}")
    if run is not None and not values.litert:
        print(next_steps.text(str(home.path), "report", "export"))


def _checked(wanted: int, examples: int) -> int:
    """Returns the number of examples for the self-checks; 0, with a message, if too few exist."""
    if wanted and examples < FEWEST_CHECKED:
        print(f"{examples} examples are too few for self-checks; they are left out")
        return 0
    return min(wanted, examples)


def _recorded(
    home: RunDirectory, made: Iterator[ResultRecord], trackers: Sequence[Tracker]
) -> list[ResultRecord]:
    """Writes each record of an evaluation to results.json as soon as it is made; returns all.

    Args:
        trackers: told of each record.

    Raises:
        TrainingError: an attack left the threat model.
    """
    found = []
    with home.owned(), tracked_run.following(home, trackers) as tracked:
        held = home.results()
        try:
            for record in made:
                held = records.merged(held, [record])
                home.write_results(held)
                tracked.result(record)
                found.append(record)
        except AssertionError as error:
            raise TrainingError(
                f"{error}; the results of this attack are wrong, please report it"
            ) from error
    return found


def run() -> None:
    """Runs the program on the command line."""
    program.run(main, __doc__, define)
