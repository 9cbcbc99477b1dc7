"""Attacks a finished run, or any model of yours, and says how much of it to believe.

  python bin/evaluate.py --run_dir=RUN                     AutoAttack on the whole test set
  python bin/evaluate.py --run_dir=RUN --attack=pgd,apgd-ce,square --epsilons=0.1,0.2,0.3
  python bin/evaluate.py --saved_model=DIR --dataset=mnist --epsilons=0.3

Writes evaluation/<attack>-….npz (what is known of each example) and adds to
results.json. A stopped evaluation goes on when the same command is given again; what is
finished is not computed twice.
"""

import dataclasses
import math
import pathlib

from absl import flags

from anpvs_tf.attacks import radius, threat_model
from anpvs_tf.attacks.registry import Settings
from anpvs_tf.common import program
from anpvs_tf.common.errors import TrainingError, UsageError
from anpvs_tf.data import loading
from anpvs_tf.data.sources import describe
from anpvs_tf.evaluation import assessment, attack_choice, attacked_model
from anpvs_tf.runs import console, records
from anpvs_tf.runs.directory import RunDirectory
from anpvs_tf.runs.resolve import defaults, parsed_size

BATCH_SIZE = 250
FEWEST_CHECKED = 50


# Flags and the settings of attacks that they set.
SETTINGS = {
    "attack_steps": "steps",
    "step_size": "step_size",
    "restarts": "restarts",
    "eot": "draws",
    "targets": "targets",
    "queries": "queries",
    "gamma": "gamma",
}


def _define_flags() -> None:
    flags.DEFINE_string("run_dir", None, "a finished run of bin/train.py")
    flags.DEFINE_string(
        "saved_model", None, "instead: a SavedModel directory, or a Keras model file, with logits"
    )
    flags.DEFINE_string("dataset", None, "with --saved_model: the data that it classifies")
    flags.DEFINE_list("image_size", None, "with --saved_model: as of bin/train.py")
    flags.DEFINE_integer("channels", None, "with --saved_model: as of bin/train.py")
    flags.DEFINE_integer(
        "posterior_draws",
        None,
        "of a Bayesian run: evaluate the ensemble of so many networks drawn from its posterior. "
        "Default: the network of the posterior means",
    )
    flags.DEFINE_list("attack", ["autoattack"], f"of {', '.join(attack_choice.ATTACKS)}")
    flags.DEFINE_list(
        "epsilons",
        None,
        "radii in pixel units of [0, 1], like 8/255. Default: the run's or dataset's",
    )
    flags.DEFINE_list(
        "attack_steps", None, "gradient steps. Default: pgd the dataset's, others 100"
    )
    flags.DEFINE_string("threat_model", None, "--norm and --epsilons by name, like linf-8/255")
    flags.DEFINE_string(
        "step_size", None, "of pgd. Default: the run's or dataset's, or 2.5 epsilon / steps"
    )
    flags.DEFINE_integer("restarts", 1, "of attacks with a random start")
    flags.DEFINE_integer("eot", None, "draws of a stochastic model that gradients average over")
    flags.DEFINE_integer("targets", 9, "classes that targeted attacks aim at")
    flags.DEFINE_integer("queries", 5000, "of square")
    flags.DEFINE_float("gamma", 1.0, "weight of the latent displacement in pgd-latent")
    flags.DEFINE_string(
        "norm", None, f"one of {', '.join(threat_model.NORMS)}. Default: as the epsilons"
    )
    flags.DEFINE_multi_string("source_run", [], "with --attack=transfer: a run to craft on; repeat")
    flags.DEFINE_integer(
        "examples", None, "evaluate on the first only. Default: the whole test set"
    )
    flags.DEFINE_integer("batch_size", BATCH_SIZE, "examples attacked at a time")
    flags.DEFINE_integer("seed", 0, "of the attacks")
    flags.DEFINE_integer("check_examples", 200, "examples for the self-checks; 0 leaves them out")
    flags.DEFINE_string("out_dir", None, "with --saved_model: where results go. Default: beside it")
    flags.DEFINE_string(
        "data_dir", None, "TFDS data directory. Default: TFDS_DATA_DIR, else TFDS's own"
    )
    flags.DEFINE_bool("download", True, "let TFDS download a dataset that is absent")


def main() -> None:
    values = flags.FLAGS
    # ---- Everything that can be refused, before any long work ----
    if bool(values.run_dir) == bool(values.saved_model):
        raise UsageError("give --run_dir or --saved_model, one of them")
    if values.saved_model and not values.dataset:
        raise UsageError("--saved_model needs --dataset")
    for name in ("dataset", "image_size", "channels"):
        if values.run_dir and values[name].value:
            raise UsageError(f"--{name} belongs to --saved_model; a run knows its own")
    if values.saved_model and values.posterior_draws is not None:
        raise UsageError("--posterior_draws belongs to --run_dir; a saved model has no posterior")
    counts = ("batch_size", "examples", "restarts", "eot", "targets", "queries", "posterior_draws")
    for name in counts:
        if values[name].value is not None and values[name].value < 1:
            raise UsageError(f"--{name} must be at least 1; got {values[name].value}")
    if values.check_examples and values.check_examples < FEWEST_CHECKED:
        raise UsageError(
            f"--check_examples must be 0 or at least {FEWEST_CHECKED}: fewer decide nothing; got "
            f"{values.check_examples}"
        )
    if values.out_dir and values.run_dir:
        raise UsageError("--out_dir belongs to --saved_model; a run keeps its own results")
    if len(set(values.source_run)) < len(values.source_run):
        raise UsageError("--source_run names a run twice")
    unknown = [name for name in values.attack if name not in attack_choice.ATTACKS]
    if unknown or not values.attack:
        raise UsageError(
            f"unknown attack {', '.join(unknown)!r}; choose of {', '.join(attack_choice.ATTACKS)}"
        )
    for flag, setting in SETTINGS.items():
        used = [name for name in attack_choice.ATTACKS if setting in attack_choice.uses(name)]
        if values[flag].present and not set(used) & set(values.attack):
            raise UsageError(f"--{flag} is used by {', '.join(used)} only")
        value = values[flag].value
        if flag == "step_size" and value is not None:
            value = radius.parse_flag(flag, value)
        if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
            raise UsageError(f"--{flag} must be a finite number, at least 0; got {value}")
    if not 0 <= values.seed < 2**31:
        raise UsageError(f"--seed must lie in [0, 2^31); got {values.seed}")
    if (attack_choice.TRANSFER in values.attack) != bool(values.source_run):
        raise UsageError("--attack=transfer and --source_run need each other")
    if values.run_dir:
        run = RunDirectory(values.run_dir)
        subject, directory = attacked_model.of_run(run, values.posterior_draws), run.path
    else:
        size = parsed_size(values.image_size) if values.image_size else None
        source = describe(values.dataset, size, values.channels, values.data_dir)
        subject = attacked_model.of_model(values.saved_model, source)
        beside = pathlib.Path(values.saved_model).absolute()
        directory = pathlib.Path(values.out_dir or f"{beside}-evaluation")
    sources = [attacked_model.of_run(RunDirectory(path)) for path in values.source_run]
    attacks = chosen_attacks(subject)
    stream = subject.settings is not None and subject.settings.stream
    test = loading.load_test(subject.source, values.data_dir, values.download, stream)
    split = test.take(values.examples)

    # ---- Attack ----
    check_examples = values.check_examples
    if len(split) < FEWEST_CHECKED:
        print(f"{len(split)} examples are too few for self-checks; they are left out")
        check_examples = 0
    found = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        home = RunDirectory(directory)
        with home.owned():
            try:
                held = home.results()
            except ValueError as error:
                raise UsageError(f"{home.results_path} is damaged: {error}") from error
            for record in assessment.assess(
                subject,
                split,
                attacks,
                seed=values.seed,
                batch_size=values.batch_size,
                directory=directory / "evaluation",
                sources=sources,
                check_examples=min(check_examples, len(split)),
            ):
                held = records.merged(held, [record])
                home.write_results(held)
                found.append(record)
    except OSError as error:
        raise UsageError(f"{directory} cannot be written: {error.strerror}") from error
    except AssertionError as error:
        raise TrainingError(f"{error}; nothing of this attack is to be believed") from error
    print(console.evaluation_table(found))
    print(f"Results are in {directory}")


def chosen_attacks(subject: attacked_model.Subject) -> list[tuple[str, Settings]]:
    """The attacks that the flags ask for, in order, each with its settings.

    Raises:
        UsageError: a setting out of range.
    """
    values = flags.FLAGS
    # A run is attacked as it says, a model as is usual for its dataset.
    held = subject.settings
    usual = dataclasses.asdict(held) if held else defaults(subject.source)
    norm, texts = values.norm or usual["norm"], values.epsilons
    if values.threat_model is not None:
        if values.norm or values.epsilons:
            raise UsageError("--threat_model says --norm and --epsilons; give it or them")
        norm, epsilon = radius.parse_threat_model(values.threat_model)
        texts = [epsilon]
    if norm != usual["norm"] and not texts:
        raise UsageError(f"--norm={norm} needs --epsilons: the usual ones are of {usual['norm']}")
    epsilons = [radius.parse_flag("epsilons", text) for text in texts or [usual["epsilon"]]]
    steps = numbers("attack_steps", values.attack_steps or [], int)
    chosen: list[tuple[str, Settings]] = []
    for epsilon in epsilons:
        if epsilon > 1 and norm == "linf":
            raise UsageError(
                f"--epsilons must lie in (0, 1], in pixel units; got {epsilon:g}"
                f"{radius.meant(epsilon)}"
            )
        for attack in values.attack:
            published: dict = {"steps": None}
            # The published step reaches the published epsilon; other radii and step counts
            # take 2.5 epsilon / steps.
            usual_radius = norm == usual["norm"] and epsilon == usual["epsilon"] and not steps
            if "step_size" in attack_choice.uses(attack) and usual_radius:
                published = {"steps": usual["eval_attack_steps"]}
                published["step_size"] = usual["eval_step_size"]
            if values.step_size is not None:
                published["step_size"] = radius.parse_flag("step_size", values.step_size)
            for count in steps or [published.pop("steps")]:
                try:
                    settings = Settings(
                        epsilon=epsilon,
                        norm=norm,
                        classes=subject.classes,
                        restarts=values.restarts,
                        targets=values.targets,
                        draws=values.eot,
                        queries=values.queries,
                        gamma=values.gamma,
                        **published | {"steps": count},
                    )
                except ValueError as error:
                    raise UsageError(str(error)) from error
                if attack == "pgd-latent" and subject.outputs is None:
                    raise UsageError(
                        "--attack=pgd-latent needs --run_dir: it attacks latent features"
                    )
                one = (attack, attack_choice.resolve(attack, settings))
                if all(
                    attack_choice.description(*one) != attack_choice.description(*other)
                    or one[1].epsilon != other[1].epsilon
                    for other in chosen
                ):
                    chosen.append(one)
    return chosen


def numbers(flag: str, texts: list, kind: type) -> list:
    """Numbers of a flag.

    Raises:
        UsageError: for what is none.
    """
    try:
        return [kind(text) for text in texts]
    except ValueError:
        raise UsageError(
            f"--{flag} must be numbers between commas; got {','.join(texts)}"
        ) from None


def run() -> None:
    """Runs the program on the command line."""
    _define_flags()
    program.run(main, __doc__)
