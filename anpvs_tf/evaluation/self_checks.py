"""Checks whether a robust accuracy is reliable, after Carlini et al. (2019), on a few examples.

A defence that hides its gradients looks robust to the attacks that need them. Attacks
reveal it that should be weaker and are not, or that should be stronger and break nothing.
`measure` runs those attacks; each check then judges the values, without the model.
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

# How much better a stronger attack may be before an accuracy counts as not converged.
TOLERANCE = 0.01
STRONGER_STEPS, STRONGER_RESTARTS, QUERIES = 4, 5, 500
VANISHING_SHARE = 0.05


@dataclasses.dataclass(frozen=True)
class Check:
    """name; passed; meaning: what a failure would say; found: the values."""

    name: str
    passed: bool
    meaning: str
    found: str


def deterministic(subject: Subject, images: tf.Tensor) -> bool:
    """Says whether two forward passes agree."""
    first, second = (subject.logits(images).numpy() for _ in range(2))
    return bool(np.allclose(first, second, rtol=1e-4, atol=1e-4 * np.abs(first).max(initial=1e-9)))


@dataclasses.dataclass(frozen=True)
class Measured:
    """The values that the checks judge: shares of `examples` images, in [0, 1], if not said.

    Attributes:
        steps: of PGD, as the evaluation has them; draws: that each attack averages over.
        one_step, pgd, double: right after FGSM, after PGD, and after PGD of twice the steps.
        by_restart: after PGD of `STRONGER_STEPS` times the steps, one start after another.
        noise, square: right after random noise, and after Square with `QUERIES` queries.
        everything: right after attacks of radius `whole`, which may paint every image grey.
        transferred: right after transferred examples; None if there were none.
        reported: right after all other attacks of the evaluation; None if there were none.
        vanishing: images at which the cross-entropy's gradient is zero.
        steady: whether two passes of the network agree.
        deployed: (whether the network that was attacked classifies like the trained one, the
            largest difference of their logits over the largest logit); None without a trained one.
        simulated: (share of the images that the network whose gradients are taken classifies like
            the one that is attacked, the same difference); None if it is the same network.
    """

    examples: int
    classes: int
    steps: int
    draws: int
    one_step: float
    pgd: float
    double: float
    by_restart: tuple[float, ...]
    noise: float
    square: float
    whole: float
    everything: float
    transferred: float | None
    reported: float | None
    vanishing: float
    steady: bool
    deployed: tuple[bool, float] | None
    simulated: tuple[float, float] | None

    @property
    def tolerance(self) -> float:
        return max(TOLERANCE, 1.01 / self.examples)

    @property
    def white(self) -> float:
        """After the strongest attack that follows gradients."""
        return min(self.by_restart)


def judge(measured: Measured) -> list[Check]:
    """Makes the checks that the values allow, in the order in which they are shown."""
    found = (check(measured) for check in _CHECKS)
    return [check for check in found if check is not None]


def measure(
    subject: Subject,
    split: loading.Split,
    settings: AttackSettings,
    reported: np.ndarray | None,
    transferred: np.ndarray | None,
    *,
    seed: int,
    batch_size: int,
    progress: Progress = lambda stage, done, total: None,
) -> Measured:
    """Attacks a model at one epsilon and returns the values that the checks judge.

    Args:
        split: the first examples of those that were evaluated.
        settings: threat model, and the steps and step size of PGD.
        reported: bool, the examples that withstood all attacks but transferred ones; None
            if there were none.
        transferred: bool, the examples that withstood transferred ones; None if there were none.
    """
    draws = settings.draws or 1
    settings = resolve("pgd", settings)

    def attack(name: str, **changes) -> Outcome:
        chosen = dataclasses.replace(settings, **changes)
        return AttackRun(
            subject,
            split,
            registry.stages(name, chosen),
            epsilon=chosen.epsilon,
            norm=chosen.norm,
            seed=seed,
            batch_size=batch_size,
            draws=draws,
        ).run(lambda stage, *counts: progress(f"check {stage}", *counts))

    def right(name: str, **changes) -> float:
        return float(np.mean(attack(name, **changes).robust))

    strong = attack("pgd", steps=STRONGER_STEPS * settings.steps, restarts=STRONGER_RESTARTS)
    dimensions = float(np.prod(split.images.shape[1:]))
    whole = 0.5 if settings.norm == "linf" else 0.5 * math.sqrt(dimensions)
    most = {"epsilon": whole, "steps": 100, "step_size": whole / 20, "restarts": 1}
    return Measured(
        examples=len(split),
        classes=subject.classes,
        steps=settings.steps,
        draws=draws,
        one_step=right("fgsm"),
        pgd=right("pgd", restarts=1),
        double=right("pgd", steps=2 * settings.steps, restarts=1),
        by_restart=tuple(strong.accuracy_after().values()),
        noise=right("noise", restarts=1),
        square=right("square", queries=QUERIES, restarts=1),
        whole=whole,
        everything=float(
            np.mean(attack("pgd", **most).robust & attack("pgd-margin", **most).robust)
        ),
        transferred=None if transferred is None else float(np.mean(transferred)),
        reported=None if reported is None else float(np.mean(reported)),
        vanishing=_vanishing(subject, split, settings.norm, batch_size),
        steady=deterministic(subject, pipelines.to_float(split.images[:batch_size])),
        deployed=None if subject.outputs is None else _deployed(subject, split, batch_size),
        simulated=None if subject.simulated is None else _simulated(subject, split, batch_size),
    )


# ---- Measuring without an attack ----


def _vanishing(subject: Subject, split: loading.Split, norm: str, batch_size: int) -> float:
    """Computes the share of the images at which the cross-entropy's gradient is zero."""

    @tf.function(autograph=False, reduce_retracing=True)
    def zeros(images, labels):
        loss = losses.attack_loss("ce", subject.logits, images, labels)
        gradients = losses.evaluate(subject.logits, images, loss).gradients
        gradients = threat_model.steepest(gradients, norm)
        return tf.reduce_all(gradients == 0, axis=range(1, gradients.shape.rank))

    found = [zeros(*batch).numpy() for batch in pipelines.evaluation_batches(split, batch_size)]
    return float(np.mean(np.concatenate(found)))


def _deployed(subject: Subject, split: loading.Split, batch_size: int) -> tuple[bool, float]:
    """Compares the deployed network with the trained one, for `Measured.deployed`."""
    differences, equal = [], True
    for images, _ in pipelines.evaluation_batches(split, batch_size):
        deployed, trained = subject.logits(images), subject.outputs(images)["logits"]
        scale = tf.reduce_max(tf.abs(trained))
        differences.append(float(tf.reduce_max(tf.abs(deployed - trained)) / scale))
        top = tf.math.top_k(trained, 2).values
        clear = top[:, 0] - top[:, 1] > 1e-4 * scale
        same = tf.argmax(deployed, 1) == tf.argmax(trained, 1)
        equal &= bool(tf.reduce_all(same | ~clear))
    return equal, float(np.max(differences))  # NaN stays NaN, and is not small.


def _simulated(subject: Subject, split: loading.Split, batch_size: int) -> tuple[float, float]:
    """Compares the simulated network with the attacked one, for `Measured.simulated`."""
    equal, differences, largest = [], [], 0.0
    for images, _ in pipelines.evaluation_batches(split, batch_size):
        answers, simulated = subject.logits(images).numpy(), subject.simulated(images).numpy()
        equal.append(answers.argmax(axis=1) == simulated.argmax(axis=1))
        differences.append(np.abs(answers - simulated).max())
        largest = max(largest, np.abs(answers).max())
    return float(np.mean(np.concatenate(equal))), float(np.max(differences) / largest)


# ---- Judging ----


def _ball(_: Measured) -> Check:
    return Check("ball", True, "an image left the ball or [0, 1]", "asserted on every batch")


def _iterations(measured: Measured) -> Check:
    return Check(
        "iterations",
        measured.one_step >= measured.pgd - measured.tolerance,
        "many steps should beat one: if not, the gradients mislead",
        f"one step {measured.one_step:.1%}, {measured.steps} steps {measured.pgd:.1%}",
    )


def _chance(measured: Measured) -> Check:
    chance = 1 / measured.classes
    limit = chance + 3 * math.sqrt(chance * (1 - chance) / measured.examples)
    return Check(
        "chance",
        measured.everything <= limit,
        "an adversary who may paint every image grey should leave chance: gradients are masked",
        f"epsilon {measured.whole:g}: {measured.everything:.1%}, chance {chance:.1%}",
    )


def _noise(measured: Measured) -> Check:
    return Check(
        "noise",
        measured.noise >= measured.white - measured.tolerance,
        "random noise should be weaker than attacks that follow gradients",
        f"noise {measured.noise:.1%}, white box {measured.white:.1%}",
    )


def _black_box(measured: Measured) -> Check:
    black = {f"square, {QUERIES} queries": measured.square}
    if measured.transferred is not None:
        black["transfer"] = measured.transferred
    return Check(
        "black box",
        min(black.values()) >= measured.white - measured.tolerance,
        "attacks without gradients should be weaker than those with: gradients are masked",
        f"white box {measured.white:.1%}, "
        + ", ".join(f"{name} {value:.1%}" for name, value in black.items()),
    )


def _gradients(measured: Measured) -> Check:
    return Check(
        "gradients",
        measured.vanishing <= VANISHING_SHARE,
        "where the gradient is zero, cross-entropy attacks are blind",
        f"zero at {measured.vanishing:.1%} of the images",
    )


def _convergence(measured: Measured) -> Check | None:
    if measured.reported is None:
        return None
    steps = measured.steps
    return Check(
        "convergence",
        measured.white >= measured.reported - measured.tolerance,
        "more steps and restarts find much more: not converged, attack harder",
        f"reported {measured.reported:.1%}; PGD {steps} steps {measured.pgd:.1%}, "
        f"{2 * steps} steps {measured.double:.1%}, {STRONGER_STEPS * steps} steps with 1 to "
        f"{STRONGER_RESTARTS} starts " + ", ".join(f"{value:.1%}" for value in measured.by_restart),
    )


def _deterministic(measured: Measured) -> Check:
    return Check(
        "deterministic",
        measured.steady or measured.draws > 1,
        "two passes differ: use --eot, without it this is no robust accuracy",
        f"two passes {'agree' if measured.steady else 'differ'}, --eot={measured.draws}",
    )


def _frozen(measured: Measured) -> Check | None:
    if measured.deployed is None:
        return None
    equal, largest = measured.deployed
    return Check(
        "frozen",
        equal and largest < 1e-4,
        "the attacked network is not the trained one",
        f"frozen and gated logits differ by at most {largest:.1e} of the largest",
    )


def _simulation(measured: Measured) -> Check | None:
    if measured.simulated is None:
        return None
    equal, largest = measured.simulated
    return Check(
        "simulation",
        equal >= 1 - measured.tolerance,
        "the gradients are those of another network than the attacked one",
        f"the simulated integers classify {equal:.1%} alike, logits differ by at most "
        f"{largest:.1e} of the largest",
    )


_CHECKS = (
    *(_ball, _iterations, _chance, _noise, _black_box, _gradients),
    *(_convergence, _deterministic, _frozen, _simulation),
)
