"""Is a robust accuracy to be believed? Checks after Carlini et al. (2019), on a few examples.

A defence that hides its gradients looks robust to the attacks that need them. It is
found out by attacks that should be weaker and are not, or stronger and do nothing.
"""

import dataclasses
import math

import numpy as np
import tensorflow as tf

from anpvs_tf.attacks import losses, registry, threat_model
from anpvs_tf.attacks.settings import AttackSettings, resolve
from anpvs_tf.data import loading, pipelines
from anpvs_tf.evaluation.attack_run import AttackRun, Outcome, Progress
from anpvs_tf.evaluation.attacked_model import Subject

# How much better a stronger attack may be before a figure counts as not converged.
TOLERANCE = 0.01
STRONGER_STEPS, STRONGER_RESTARTS, QUERIES = 4, 5, 500
VANISHING_SHARE = 0.05


@dataclasses.dataclass(frozen=True)
class Check:
    """name; passed; meaning: what a failure would say; found: the figures."""

    name: str
    passed: bool
    meaning: str
    found: str


def deterministic(subject: Subject, images: tf.Tensor) -> bool:
    """Whether two forward passes agree."""
    first, second = (subject.logits(images).numpy() for _ in range(2))
    return bool(np.allclose(first, second, rtol=1e-4, atol=1e-4 * np.abs(first).max(initial=1e-9)))


def run(
    subject: Subject,
    split: loading.Split,
    settings: AttackSettings,
    reported: np.ndarray | None,
    transferred: np.ndarray | None,
    *,
    seed: int,
    batch_size: int,
    progress: Progress = lambda stage, done, total: None,
) -> list[Check]:
    """All checks of a model at one epsilon.

    Args:
        split: the first examples of what was evaluated.
        settings: threat model, and the steps and step size of PGD.
        reported: bool, which of them withstood all attacks but transferred ones; None
            if there were none.
        transferred: bool, which of them withstood transferred examples; None if
            there were none.
    """
    draws = settings.draws or 1

    def accuracy(attack: str, **changes) -> Outcome:
        chosen = dataclasses.replace(settings, **changes)
        return AttackRun(
            subject,
            split,
            registry.stages(attack, chosen),
            epsilon=chosen.epsilon,
            norm=chosen.norm,
            seed=seed,
            batch_size=batch_size,
            draws=draws,
        ).run(lambda stage, *counts: progress(f"check {stage}", *counts))

    settings = resolve("pgd", settings)
    tolerance = max(TOLERANCE, 1.01 / len(split))
    double = accuracy("pgd", steps=2 * settings.steps, restarts=1)
    strong = accuracy("pgd", steps=STRONGER_STEPS * settings.steps, restarts=STRONGER_RESTARTS)
    by_restart = list(strong.accuracy_after().values())
    plain = accuracy("pgd", restarts=1)
    single = float(np.mean(accuracy("fgsm").robust))
    noise = float(np.mean(accuracy("noise", restarts=1).robust))
    square = float(np.mean(accuracy("square", queries=QUERIES, restarts=1).robust))
    dimensions = float(np.prod(split.images.shape[1:]))
    whole = 0.5 if settings.norm == "linf" else 0.5 * math.sqrt(dimensions)
    most = accuracy("pgd", epsilon=whole, steps=100, step_size=whole / 20, restarts=1)
    most = (
        most.robust
        & accuracy("pgd-margin", epsilon=whole, steps=100, step_size=whole / 20, restarts=1).robust
    )
    chance = 1 / subject.classes
    limit = chance + 3 * math.sqrt(chance * (1 - chance) / len(split))
    pgd = float(np.mean(plain.robust))
    white = min(by_restart)
    black = {f"square, {QUERIES} queries": square}
    if transferred is not None:
        black["transfer"] = float(np.mean(transferred))
    zero = _vanishing(subject, split, settings.norm, batch_size)
    checks = [
        Check("ball", True, "an image left the ball or [0, 1]", "asserted on every batch"),
        Check(
            "iterations",
            single >= pgd - tolerance,
            "many steps should beat one: if not, the gradients mislead",
            f"one step {single:.1%}, {settings.steps} steps {pgd:.1%}",
        ),
        Check(
            "chance",
            float(np.mean(most)) <= limit,
            "an adversary who may paint every image grey should leave chance: gradients are masked",
            f"epsilon {whole:g}: {np.mean(most):.1%}, chance {chance:.1%}",
        ),
        Check(
            "noise",
            noise >= white - tolerance,
            "random noise should be weaker than attacks that follow gradients",
            f"noise {noise:.1%}, white box {white:.1%}",
        ),
        Check(
            "black box",
            min(black.values()) >= white - tolerance,
            "attacks without gradients should be weaker than those with: gradients are masked",
            f"white box {white:.1%}, "
            + ", ".join(f"{name} {value:.1%}" for name, value in black.items()),
        ),
        Check(
            "gradients",
            zero <= VANISHING_SHARE,
            "where the gradient is zero, cross-entropy attacks are blind",
            f"zero at {zero:.1%} of the images",
        ),
    ]
    if reported is not None:
        worst = float(np.mean(reported))
        curve = f"PGD {settings.steps} steps {pgd:.1%}, {2 * settings.steps} steps "
        curve += f"{np.mean(double.robust):.1%}, {STRONGER_STEPS * settings.steps} steps with 1 to "
        curve += f"{STRONGER_RESTARTS} starts " + ", ".join(f"{value:.1%}" for value in by_restart)
        checks.append(
            Check(
                "convergence",
                white >= worst - tolerance,
                "more steps and restarts find much more: not converged, attack harder",
                f"reported {worst:.1%}; {curve}",
            )
        )
    images = pipelines.to_float(split.images[:batch_size])
    steady = deterministic(subject, images)
    checks.append(
        Check(
            "deterministic",
            steady or draws > 1,
            "two passes differ: use --eot, a figure without it is no robust accuracy",
            ("two passes agree" if steady else "two passes differ") + f", --eot={draws}",
        )
    )
    if subject.outputs is not None:
        checks.append(_same_network(subject, split, batch_size))
    return checks


def _vanishing(subject: Subject, split: loading.Split, norm: str, batch_size: int) -> float:
    """Share of the images at which the cross-entropy's gradient shows no way."""

    @tf.function(autograph=False, reduce_retracing=True)
    def zeros(images, labels):
        loss = losses.attack_loss("ce", subject.logits, images, labels)
        gradients = losses.evaluate(subject.logits, images, loss).gradients
        gradients = threat_model.steepest(gradients, norm)
        return tf.reduce_all(gradients == 0, axis=range(1, gradients.shape.rank))

    found = [zeros(*batch).numpy() for batch in pipelines.evaluation_batches(split, batch_size)]
    return float(np.mean(np.concatenate(found)))


def _same_network(subject: Subject, split: loading.Split, batch_size: int) -> Check:
    """The deployed network against the trained one."""
    differences, equal = [], True
    for images, _ in pipelines.evaluation_batches(split, batch_size):
        deployed, trained = subject.logits(images), subject.outputs(images)["logits"]
        scale = tf.reduce_max(tf.abs(trained))
        differences.append(float(tf.reduce_max(tf.abs(deployed - trained)) / scale))
        top = tf.math.top_k(trained, 2).values
        clear = top[:, 0] - top[:, 1] > 1e-4 * scale
        same = tf.argmax(deployed, 1) == tf.argmax(trained, 1)
        equal &= bool(tf.reduce_all(same | ~clear))
    largest = float(np.max(differences))  # NaN stays NaN, and is not small.
    return Check(
        "frozen",
        equal and largest < 1e-4,
        "what was attacked is not what was trained",
        f"frozen and gated logits differ by at most {largest:.1e} of the largest",
    )
