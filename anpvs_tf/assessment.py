"""An evaluation: attacks on one model, their records, the worst case, the checks."""

import dataclasses
import math
import pathlib
from typing import Any

import numpy as np
import tensorflow as tf

from anpvs_tf import attack_runs, datasets, efficiency, records, runs, selfchecks
from anpvs_tf.attack_runs import AttackRun, Outcome
from anpvs_tf.attacks import autoattack, pgd
from anpvs_tf.attacks.autoattack import Settings, Stage
from anpvs_tf.errors import UsageError
from anpvs_tf.progress import Progress
from anpvs_tf.subjects import Subject

TRANSFER = "transfer"
ATTACKS = (*autoattack.ATTACKS, TRANSFER)


def resolve(attack: str, settings: Settings) -> Settings:
    """As `autoattack.resolve`, for every attack here."""
    return autoattack.resolve("pgd" if attack == TRANSFER else attack, settings)


def uses(attack: str) -> tuple[str, ...]:
    """The settings that an attack depends on."""
    return autoattack.ATTACKS["pgd" if attack == TRANSFER else attack].uses


def description(attack: str, settings: Settings) -> dict[str, Any]:
    """An attack and the settings that it depends on, as records hold them."""
    found = {name: getattr(resolve(attack, settings), name) for name in uses(attack)}
    return {"name": attack, **found}


def file_name(attack: str, settings: Settings) -> str:
    """The name of an attack's file of per-example results."""
    parts = [attack, settings.norm, f"epsilon{settings.epsilon:g}"]
    standard = dataclasses.asdict(resolve(attack, Settings(settings.epsilon, settings.norm)))
    for name, value in description(attack, settings).items():
        if name != "name" and value != standard[name]:
            parts.append(f"{name}{value:g}")
    return "-".join(parts) + ".npz"


def transfer_stages(sources: list[Subject], settings: Settings) -> list[Stage]:
    """Black box: PGD crafted on each source, which knows nothing of the model.

    Raises:
        UsageError: a source takes other images than the first.
    """
    settings = resolve(TRANSFER, settings)

    def stage(source):
        @tf.function(autograph=False, reduce_retracing=True)
        def craft(images, labels, seed):
            return pgd.python_function(
                source.logits,
                images,
                labels,
                seed,
                epsilon=settings.epsilon,
                norm=settings.norm,
                steps=settings.steps,
                step_size=settings.step_size,
            )

        return Stage(
            f"{TRANSFER}/{source.name}",
            lambda logits_fn, images, labels, seed: craft(images, labels, seed),
        )

    return [stage(source) for source in sources]


def wilson(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    share, half = successes / trials, z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + half / (2 * trials))
    scale = 1 + 2 * half
    return max(0.0, (share + half - spread) / scale), min(1.0, (share + half + spread) / scale)


def assess(
    subject: Subject,
    split: datasets.Split,
    attacks: list[tuple[str, Settings]],
    *,
    seed: int,
    batch_size: int,
    directory: pathlib.Path,
    sources: list[Subject] = (),
    check_examples: int = 0,
) -> list[dict[str, Any]]:
    """Runs the attacks that have not been run yet.

    Args:
        subject: the model.
        split: the examples.
        attacks: (name, settings) in the order in which they are run; each sees every
            example, so that its own figure does not depend on the others.
        seed: of the attacks.
        batch_size: examples attacked at a time.
        directory: where the per-example results go; made if absent.
        sources: where transferred examples are crafted.
        check_examples: run the self-checks on so many examples; 0 leaves them out.

    Returns:
        A record for each attack, and for each threat model with more than one attack
        the worst case over them.

    Raises:
        UsageError: the model does not return logits, or a source does not fit.
        AssertionError: an adversarial example left the ball or [0, 1].
    """
    for source in sources:
        if source.dataset != subject.dataset:
            raise UsageError(
                f"--source_run={source.name} was trained on {source.dataset}, the model on "
                f"{subject.dataset}; choose a source of the same dataset"
            )
    steady = selfchecks.deterministic(subject, datasets.to_float(split.images[:batch_size]))
    found = []
    for epsilon, norm in dict.fromkeys((s.epsilon, s.norm) for _, s in attacks):
        chosen = [(n, s) for n, s in attacks if (s.epsilon, s.norm) == (epsilon, norm)]
        outcomes = []
        for attack, settings in chosen:
            path = directory / file_name(attack, settings)
            outcome = _attack(subject, split, attack, settings, seed, batch_size, path, sources)
            outcomes.append(outcome)
        checks = None
        if check_examples:
            checks = _check(subject, split.take(check_examples), chosen, outcomes, seed, batch_size)
        for (attack, settings), outcome in zip(chosen, outcomes, strict=True):
            record = _record(subject, outcome.correct, outcome.robust, settings, steady, checks)
            record["attack"] = description(attack, settings)
            record["accuracy_after"] = outcome.accuracy_after()
            layers = outcome.vulnerability()
            if layers and attack.startswith(("pgd", TRANSFER)):
                record["vulnerability"] = float(np.mean(list(layers.values())))
                record["layer_vulnerability"] = layers
            record["per_example"] = f"{directory.name}/{file_name(attack, settings)}"
            record["attack_seed"] = seed
            found.append(record)
        if len(chosen) > 1:
            robust = np.logical_and.reduce([outcome.robust for outcome in outcomes])
            record = _record(subject, outcomes[0].correct, robust, settings, steady, checks)
            of = [description(*one) for one in chosen]
            found.append(
                record | {"attack": {"name": records.WORST_CASE, "of": of}, "attack_seed": seed}
            )
    return found


def _attack(subject, split, attack, settings, seed, batch_size, path, sources) -> Outcome:
    if attack == TRANSFER:
        stages = transfer_stages(sources, settings)
    else:
        stages = autoattack.stages(attack, settings)
    resolved = resolve(attack, settings)
    what = dataclasses.asdict(resolved) | {
        "attack": attack,
        "seed": seed,
        "stages": [stage.name for stage in stages],
    }
    run = AttackRun(
        subject,
        split,
        stages,
        epsilon=settings.epsilon,
        norm=settings.norm,
        seed=seed,
        batch_size=batch_size,
        draws=resolved.draws or 1,
        path=path,
        identity=attack_runs.fingerprint(subject, split, what),
        use_latent=attack == "pgd-latent",
    )
    shown = _Shown(f"{attack}, epsilon {settings.epsilon:g}", [stage.name for stage in stages])
    outcome = run.run(shown.update)
    shown.done(f"{attack}, epsilon {settings.epsilon:g}: {np.mean(outcome.robust):.2%}")
    return outcome


def _check(subject, split, chosen, outcomes, seed, batch_size) -> list[selfchecks.Check]:
    count = len(split)
    white = [settings for attack, settings in chosen if attack != TRANSFER]
    with_steps = [settings for attack, settings in chosen if "step_size" in uses(attack)]
    settings = (with_steps or white or [chosen[0][1]])[0]
    reported = np.logical_and.reduce([outcome.robust[:count] for outcome in outcomes])
    transferred = [
        o.robust[:count] for (n, _), o in zip(chosen, outcomes, strict=True) if n == TRANSFER
    ]
    shown = _Shown(f"checks, epsilon {settings.epsilon:g}", [])
    checks = selfchecks.run(
        subject,
        split,
        settings,
        reported,
        np.logical_and.reduce(transferred) if transferred else None,
        seed=seed,
        batch_size=batch_size,
        progress=shown.update,
    )
    shown.done()
    return checks


def _record(subject, correct, robust, settings, steady, checks) -> dict[str, Any]:
    count = len(robust)
    survived = int(np.sum(robust))
    draws = settings.draws or 1
    # Of a stochastic model that was attacked in single draws, nothing is known to be robust.
    called = steady or draws > 1
    record = {
        "dataset": subject.dataset,
        "split": "test",
        "examples": count,
        "threat_model": {"norm": settings.norm, "epsilon": settings.epsilon},
        "clean_accuracy": float(np.mean(correct)),
        "clean_interval": wilson(int(np.sum(correct)), count),
        "robust_accuracy": survived / count if called else None,
        "accuracy_under_attack": survived / count,
        "interval": wilson(survived, count),
        "model": subject.name,
    }
    if subject.settings is not None:
        held = subject.settings
        counts = efficiency.active_features(subject.network)
        record |= {"method": held.method, "network": held.network, "seed": held.seed}
        record |= {"sparsity": efficiency.sparsity(counts), "active_features": counts}
    if checks is not None:
        record["reliable"] = all(check.passed for check in checks) and called
        record["checks"] = [dataclasses.asdict(check) for check in checks]
    elif not called:
        record["reliable"] = False
    return record | {"date": runs.now(), "versions": runs.versions()}


class _Shown:
    """A progress line over the stages of an attack."""

    def __init__(self, title: str, stages: list[str]):
        self.title = title
        self.stages = stages
        self.stage = None
        self.progress = Progress(title, 0)

    def update(self, stage: str, done: int, total: int) -> None:
        if stage != self.stage:
            number = f" {self.stages.index(stage) + 1}/{len(self.stages)}" if self.stages else ""
            self.stage, self.progress = (
                stage,
                Progress(f"{self.title}{number} {stage}: image", total),
            )
        self.progress.update(done)

    def done(self, summary: str = "") -> None:
        self.progress.done(summary)
