"""An evaluation: attacks on one model, their records, the worst case, the checks."""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
import scipy.stats
import tensorflow as tf

from anpvs_tf.attacks import radius, registry
from anpvs_tf.attacks.projected_gradient import pgd
from anpvs_tf.attacks.registry import Stage
from anpvs_tf.attacks.settings import AttackSettings
from anpvs_tf.common import files, randomness
from anpvs_tf.common.errors import UsageError
from anpvs_tf.common.progress import Progress
from anpvs_tf.data import loading, pipelines
from anpvs_tf.evaluation import attack_curves, attack_run, recording, self_checks
from anpvs_tf.evaluation.attack_choice import TRANSFER, description, resolve, uses
from anpvs_tf.evaluation.attack_run import AttackRun, Outcome
from anpvs_tf.evaluation.attacked_model import Subject
from anpvs_tf.runs import chance, records
from anpvs_tf.runs.result_record import ResultRecord


def file_name(attack: str, settings: AttackSettings, identity: str) -> str:
    """Makes the name of an attack's file of per-example results."""
    return f"{attack}-{settings.norm}-epsilon{settings.epsilon:g}-{identity[:8]}.npz"


def transfer_stages(sources: Sequence[Subject], settings: AttackSettings) -> list[Stage]:
    """Makes the black-box stages: PGD crafted on each source, without access to the model."""
    settings = resolve(TRANSFER, settings)

    def stage(source, restart):
        name = f"{TRANSFER}/{source.name}"
        if settings.restarts > 1:
            name += f"/restart{restart + 1}"

        @tf.function(autograph=False, reduce_retracing=True)
        def craft(images, labels, seed):
            return pgd(
                source.logits,
                images,
                labels,
                randomness.fold(seed, name),
                epsilon=settings.epsilon,
                norm=settings.norm,
                steps=settings.steps,
                step_size=settings.step_size,
            )

        return Stage(name, lambda logits_fn, images, labels, seed: craft(images, labels, seed))

    return [stage(source, restart) for restart in range(settings.restarts) for source in sources]


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Computes the 95 % interval of a share (Wilson 1927)."""
    low, high = scipy.stats.binomtest(successes, trials).proportion_ci(method="wilson")
    return float(low), float(high)


@dataclasses.dataclass(frozen=True)
class Conditions:
    """The conditions that all attacks of an evaluation share.

    Attributes:
        subject: the model.
        split: the examples.
        split_name: of `data.sources.EVALUATED`, for the records.
        directory: where the per-example results go; made if absent.
        seed: of the attacks.
        batch_size: examples attacked at a time.
        sources: the models on which transferred examples are crafted.
        check_examples: run the self-checks on so many examples; 0 leaves them out.
        curve_examples: write the course of each attack on so many examples; 0 leaves it out.
    """

    subject: Subject
    split: loading.Split
    directory: pathlib.Path
    seed: int
    batch_size: int
    split_name: str = "test"
    sources: Sequence[Subject] = ()
    check_examples: int = 0
    curve_examples: int = 0


def assess(
    conditions: Conditions, attacks: list[tuple[str, AttackSettings]]
) -> Iterator[ResultRecord]:
    """Runs the attacks that have not been run yet.

    Args:
        attacks: (name, settings) in the order in which they are run; each sees every
            example, so that its accuracy does not depend on the others.

    Yields:
        A record for each attack, and for each threat model with more than one attack
        the worst case over them; a threat model's records once it is done.

    Raises:
        UsageError: the model does not return logits, or a source does not fit.
        AssertionError: an adversarial example left the ball or [0, 1].
    """
    subject = conditions.subject
    for source in conditions.sources:
        if source.dataset != subject.dataset:
            raise UsageError(
                f"--source_run={source.name} was trained on {source.dataset}, the model on "
                f"{subject.dataset}; choose a source of the same dataset"
            )
    first = conditions.split.images[: conditions.batch_size]
    steady = self_checks.deterministic(subject, pipelines.to_float(first))
    for threat in dict.fromkeys((s.epsilon, s.norm) for _, s in attacks):
        chosen = [(n, resolve(n, s)) for n, s in attacks if (s.epsilon, s.norm) == threat]
        yield from _in_threat_model(conditions, chosen, steady)


def _in_threat_model(
    conditions: Conditions, chosen: list[tuple[str, AttackSettings]], steady: bool
) -> Iterator[ResultRecord]:
    """Yields the records of attacks of one epsilon and norm, and that of their worst case."""
    subject = conditions.subject
    runs = [_run(conditions, *one) for one in chosen]
    outcomes = [_outcome(run, *one) for run, one in zip(runs, chosen, strict=True)]
    if conditions.curve_examples:
        for run, one in zip(runs, chosen, strict=True):
            _draw_curves(conditions, run, *one)
    checks = None
    if conditions.check_examples:
        checks = [_above_chance(subject, outcomes[0]), *_check(conditions, chosen, outcomes)]
    for (attack, settings), run, outcome in zip(chosen, runs, outcomes, strict=True):
        record = _record(conditions, outcome, outcome.robust, settings, steady, checks)
        if attack != TRANSFER and (
            stronger := _stronger(outcome, outcomes, [name for name, _ in chosen])
        ):
            # Other attacks found more: this accuracy overstates robustness.
            record["reliable"] = False
            record["unreliable_because"] = [*record.get("unreliable_because", []), stronger]
        record["attack"] = description(attack, settings, conditions.sources)
        record["accuracy_after"] = outcome.accuracy_after()
        layers = outcome.vulnerability()
        if layers and attack.startswith(("pgd", TRANSFER)):
            record["vulnerability"] = float(np.mean(list(layers.values())))
            record["layer_vulnerability"] = layers
        record["per_example"] = f"{conditions.directory.name}/{run.path.name}"
        record["attack_seed"] = conditions.seed
        yield record
    if len(chosen) > 1:
        weakest = min((s for _, s in chosen), key=lambda s: s.draws)
        worst = np.logical_and.reduce([outcome.robust for outcome in outcomes])
        record = _record(conditions, outcomes[0], worst, weakest, steady, checks)
        of = [description(*one, conditions.sources) for one in chosen]
        attack = {"name": records.WORST_CASE, "of": of}
        yield record | {"attack": attack, "attack_seed": conditions.seed}


def _outcome(run: AttackRun, attack: str, settings: AttackSettings) -> Outcome:
    """Runs an attack with a progress line."""
    title = f"{attack}, epsilon {radius.as_text(settings.epsilon)}"
    shown = _Shown(title, [stage.name for stage in run.stages])
    outcome = run.run(shown.update)
    shown.done(f"{title}: {np.mean(outcome.robust):.2%}")
    return outcome


def _run(conditions: Conditions, attack: str, settings: AttackSettings) -> AttackRun:
    subject, sources = conditions.subject, conditions.sources
    if attack == TRANSFER:
        stages, models = transfer_stages(sources, settings), [subject, *sources]
    else:
        stages, models = registry.stages(attack, settings), [subject]
    what = description(attack, settings) | {
        "seed": conditions.seed,
        "norm": settings.norm,
        "epsilon": settings.epsilon,
        "stages": [stage.name for stage in stages],
        "drawn_for": "example",  # Files of versions that drew for a batch do not match.
    }
    identity = attack_run.fingerprint(models, conditions.split, what)
    return AttackRun(
        subject,
        conditions.split,
        stages,
        epsilon=settings.epsilon,
        norm=settings.norm,
        seed=conditions.seed,
        batch_size=conditions.batch_size,
        draws=settings.draws,
        path=conditions.directory / file_name(attack, settings, identity),
        identity=identity,
        use_latent=attack == "pgd-latent",
    )


def _draw_curves(
    conditions: Conditions, run: AttackRun, attack: str, settings: AttackSettings
) -> None:
    """Writes the course of an attack's first stage for TensorBoard, if it was not written yet."""
    name = f"{run.path.stem}-{conditions.curve_examples}examples"
    directory = conditions.directory / "tensorboard" / name
    if attack == TRANSFER or directory.exists():
        return
    split = conditions.split.take(conditions.curve_examples)
    found = attack_curves.of_stage(run, registry.stages(attack, settings)[0], split)
    if any(found):
        what = f"directory of the results {conditions.directory}"
        with files.staging(directory, what, "--out_dir") as beside:
            attack_curves.write(beside, *found)
            beside.rename(directory)


def _above_chance(subject: Subject, outcome: Outcome) -> self_checks.Check:
    accuracy, count = float(np.mean(outcome.correct)), len(outcome.correct)
    best_constant = chance.of_labels(outcome.labels, subject.classes)
    found = chance.verdict(accuracy, count, best_constant, subject.settings)
    return self_checks.Check(
        "accuracy",
        found is None,
        "accuracies of a network that cannot classify say nothing of robustness",
        found or f"clean {accuracy:.1%}, a constant answer {best_constant:.1%}",
    )


def _check(
    conditions: Conditions, chosen: list[tuple[str, AttackSettings]], outcomes: list[Outcome]
) -> list[self_checks.Check]:
    count = min(conditions.check_examples, len(conditions.split))
    with_steps = [settings for attack, settings in chosen if "step_size" in uses(attack)]
    settings = (with_steps or [chosen[0][1]])[0]
    white, black = [], []
    for (attack, _), outcome in zip(chosen, outcomes, strict=True):
        (black if attack == TRANSFER else white).append(outcome.robust[:count])
    shown = _Shown(f"checks, epsilon {radius.as_text(settings.epsilon)}", [])
    measured = self_checks.measure(
        conditions.subject,
        conditions.split.take(count),
        settings,
        np.logical_and.reduce(white) if white else None,
        np.logical_and.reduce(black) if black else None,
        seed=conditions.seed,
        batch_size=conditions.batch_size,
        progress=shown.update,
    )
    shown.done()
    return self_checks.judge(measured)


def _stronger(outcome: Outcome, outcomes: list[Outcome], names: list[str]) -> str | None:
    """Says which attack breaks clearly more than `outcome`, and by how much; None if none does."""
    own, shares = np.mean(outcome.robust), [np.mean(other.robust) for other in outcomes]
    together = np.mean(np.logical_and.reduce([other.robust for other in outcomes]))
    if own <= together + self_checks.TOLERANCE:
        return None
    name, least = min(zip(names, shares, strict=True), key=lambda pair: pair[1])
    if own > least + self_checks.TOLERANCE:
        return f"{name} breaks {100 * (own - least):.1f} points more"
    return f"the attacks together break {100 * (own - together):.1f} points more"


def _record(conditions, outcome, robust, settings, steady, checks) -> ResultRecord:
    subject = conditions.subject
    correct, count = outcome.correct, len(robust)
    survived = int(np.sum(robust))
    # Attacks in single draws do not show the robust accuracy of a stochastic model.
    called = steady or settings.draws > 1
    record = recording.record(
        dataset=subject.dataset,
        split=conditions.split_name,
        examples=count,
        norm=settings.norm,
        epsilon=settings.epsilon,
        clean_accuracy=float(np.mean(correct)),
        robust_accuracy=survived / count if called else None,
        settings=subject.settings,
        network=subject.network,
    )
    record["clean_interval"] = wilson(int(np.sum(correct)), count)
    record["accuracy_under_attack"] = survived / count
    record["interval"] = wilson(survived, count)
    record["model"] = subject.name
    if subject.posterior_draws is not None:
        record["posterior_draws"] = subject.posterior_draws
    if subject.input_range != (0.0, 1.0):
        record["input_range"] = list(subject.input_range)
    best_constant = chance.of_labels(outcome.labels, subject.classes)
    record |= chance.recorded(record, best_constant, subject.settings)
    because = [] if called else ["the model is stochastic, use --eot=20"]
    if "at_chance" in record and checks is None:
        because.append("clean accuracy is not above chance")
    if checks is not None:
        because += [f"check {check.name} failed" for check in checks if not check.passed]
        record["checks"] = [dataclasses.asdict(check) for check in checks]
    if because or checks is not None:
        record["reliable"] = not because
    if because:
        record["unreliable_because"] = because
    return record


class _Shown:
    """A progress line over the stages of an attack."""

    def __init__(self, title: str, stages: list[str]):
        self.title = title
        self.stages = stages
        self.stage = None
        self.progress = Progress(title, 0)

    def update(self, stage: str, done: int, total: int) -> None:
        if stage != self.stage:
            self.progress.done()
            number = f" {self.stages.index(stage) + 1}/{len(self.stages)}" if self.stages else ""
            self.stage, self.progress = (
                stage,
                Progress(f"{self.title}{number} {stage}: image", total),
            )
        self.progress.update(done)

    def done(self, summary: str = "") -> None:
        self.progress.done(summary)
