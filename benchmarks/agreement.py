"""Our AutoAttack beside the authors': does each component break the same?

  python -m benchmarks.agreement --run_dir=RUN                         a finished LeNet run
  python -m benchmarks.agreement --run_dir=RUN --examples=1000 --queries=1000

From the root of the repository, with `pip install -e '.[reference]'`. A Markdown table goes to
standard output.

Both attack the same weights, ours in TensorFlow and a copy in PyTorch, and each component sees
every image. The random draws differ, so that single images may fall to one and not to the
other; where the attacks are equally strong that happens as often one way as the other. For APGD
on cross-entropy the highest loss that was reached is compared too, on the images that neither
broke (a broken image leaves our search, and its loss says nothing).

Square is not quite the same: where a square would change nothing ours tries its opposite, and the
package spends the query. In both, the images of a batch see the same squares, so that whole
batches are lucky or not: compare several seeds.
"""

import dataclasses
import os
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from anpvs_tf.attacks import registry, threat_model
from anpvs_tf.attacks.settings import EVALUATION_BATCH, AttackSettings
from anpvs_tf.common import program
from anpvs_tf.common.errors import UsageError
from anpvs_tf.data import loading, pipelines
from anpvs_tf.evaluation import attacked_model
from anpvs_tf.evaluation.attack_run import AttackRun
from anpvs_tf.evaluation.attacked_model import Subject
from anpvs_tf.runs.finished_run import open_run
from benchmarks import reference, timing

COMPONENTS = ("apgd-ce", "apgd-t", "fab-t", "square")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One component on some images; arrays have one row an image.

    theirs, ours: bool, still right under the reference attack and under ours.
    correct: bool, right without an attack.
    gains: of "apgd-ce": float64, our highest cross-entropy minus the reference's, in nats, on
        the images that neither broke.
    losses: of "apgd-ce": mean highest cross-entropy on those images, reference and ours.
    """

    component: str
    correct: np.ndarray
    theirs: np.ndarray
    ours: np.ndarray
    gains: np.ndarray | None = None
    losses: tuple[float, float] | None = None

    @property
    def broken(self) -> tuple[int, int, int]:
        """How many images both broke, only the reference, only ours."""
        theirs, ours = self.correct & ~self.theirs, self.correct & ~self.ours
        return int(sum(theirs & ours)), int(sum(theirs & ~ours)), int(sum(ours & ~theirs))

    def gain(self) -> tuple[float, float]:
        """Mean of `gains` and its standard error."""
        return float(self.gains.mean()), float(self.gains.std(ddof=1) / len(self.gains) ** 0.5)


def compare(
    component: str,
    subject: Subject,
    model,
    split: loading.Split,
    settings: AttackSettings,
    *,
    seed: int,
    batch_size: int,
) -> Comparison:
    """Runs a component of both on every image of a split.

    Args:
        component: of `COMPONENTS`.
        subject: ours.
        model: the same network in PyTorch.
        seed: of all random draws; the two draw differently from it.

    Raises:
        AssertionError: an adversarial image left the ball or [0, 1].
    """
    epsilon, norm = settings.epsilon, settings.norm
    images, labels = pipelines.to_float(split.images).numpy(), np.asarray(split.labels, np.int64)
    bare = dataclasses.replace(subject, outputs=None)
    stages = registry.stages(component, settings)
    ours = AttackRun(
        bare, split, stages, epsilon=epsilon, norm=norm, seed=seed, batch_size=batch_size
    ).run()
    common = {"epsilon": epsilon, "norm": norm, "seed": seed, "batch_size": batch_size}

    def logits_under(attack):
        found = attack(images, labels)
        threat_model.assert_in_threat_model(images, found, epsilon, norm)
        return subject.logits(tf.constant(found)).numpy()

    attack = reference.autoattack(
        model, component, queries=settings.queries, targets=settings.targets, **common
    )
    theirs = np.argmax(logits_under(attack), axis=1) == labels
    theirs &= ours.correct
    if component != "apgd-ce":
        return Comparison(component, ours.correct, theirs, ours.robust)
    logits = logits_under(reference.highest_loss(model, **common))
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits).numpy()
    neither = theirs & ours.robust & (np.argmax(logits, axis=1) == labels)
    pair = losses[neither].astype(np.float64), ours.losses[neither].astype(np.float64)
    return Comparison(
        component,
        ours.correct,
        theirs,
        ours.robust,
        gains=pair[1] - pair[0],
        losses=(float(pair[0].mean()), float(pair[1].mean())),
    )


COLUMNS = (
    "component",
    "reference",
    "ours",
    "broken by both / only the reference / only ours",
    "highest loss: reference, ours",
    "ours - reference",
)


def row(found: Comparison) -> tuple[str, ...]:
    losses = gain = ""
    if found.losses is not None:
        losses = f"{found.losses[0]:.5f}, {found.losses[1]:.5f} ({len(found.gains)} images)"
        gain = "{:+.5f} ± {:.5f}".format(*found.gain())
    return (
        found.component,
        f"{np.mean(found.theirs):.2%}",
        f"{np.mean(found.ours):.2%}",
        " / ".join(map(str, found.broken)),
        losses,
        gain,
    )


MEASURED = "What to measure"


def define(flags: program.Flags) -> None:
    flags.add(MEASURED, str, "run_dir", None, "a finished LeNet run of bin/train.py")
    flags.add(MEASURED, int, "examples", 1000, "of the test set, from its start", lower_bound=2)
    flags.add(
        MEASURED, float, "epsilon", None, "in pixel units. Default: the run's", lower_bound=0.0
    )
    flags.add(MEASURED, str, "norm", "linf", "of the ball", choices=threat_model.NORMS)
    flags.add(
        MEASURED,
        str,
        "components",
        list(COMPONENTS),
        "which; repeat the flag",
        choices=tuple(COMPONENTS),
        repeated=True,
    )
    flags.add(MEASURED, int, "queries", AttackSettings.queries, "of Square", lower_bound=1)
    flags.add(MEASURED, int, "seed", 0, "of all random draws", lower_bound=0)


def main(values: Any) -> None:
    if not reference.installed("torch") or not reference.installed(reference.PACKAGE):
        raise UsageError("the reference is not installed: pip install -e '.[reference]'")
    if not values.run_dir:
        raise UsageError("--run_dir is needed: a finished run of bin/train.py")
    subject = attacked_model.of_run(open_run(values.run_dir))
    split = loading.load_evaluated(subject.source).take(values.examples)
    model = reference.torch_copy(subject.network)
    images = pipelines.to_float(split.images).numpy()
    epsilon = values.epsilon or subject.settings.epsilon
    settings = AttackSettings(epsilon, values.norm, subject.classes, queries=values.queries)

    difference = np.abs(subject.logits(images) - model(reference.to_torch(images)).numpy()).max()
    clean = np.mean(np.argmax(subject.logits(images), axis=1) == split.labels)
    print(
        f"{timing.environment('agreement')}; reference {reference.PACKAGE} "
        f"{reference.installed(reference.PACKAGE)}\n\n"
        f"{len(split)} test images of {subject.dataset}, {values.norm} {epsilon:g}, "
        f"clean {clean:.2%}, Square {values.queries} queries, seed {values.seed}; "
        f"logits differ by at most {difference:.1g}\n"
    )
    timing.print_rows([COLUMNS, ("---",) * len(COLUMNS)])
    for component in values.components:
        timing.progress(f"{component} ...")
        found = compare(
            component,
            subject,
            model,
            split,
            settings,
            seed=values.seed,
            batch_size=EVALUATION_BATCH,
        )
        timing.print_rows([row(found)])


if __name__ == "__main__":
    program.run(main, __doc__, define)
