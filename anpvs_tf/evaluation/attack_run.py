"""An attack on every example of a split: stage by stage, in batches, interruptible.

A stage (one restart, one target class) gets the examples that no earlier stage has
broken, in full batches. The state of each example is written after every batch, so
that a stopped attack resumes where it was.
"""

import dataclasses
import hashlib
import json
import pathlib
import zipfile
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from anpvs_tf.attacks import stochastic, threat_model
from anpvs_tf.attacks.losses import logits_of
from anpvs_tf.attacks.registry import Stage
from anpvs_tf.common import files, randomness
from anpvs_tf.common.errors import UsageError
from anpvs_tf.data import loading, pipelines
from anpvs_tf.evaluation.attacked_model import Subject, check_logits
from anpvs_tf.evaluation.feature_movement import movement

Progress = Callable[[str, int, int], None]

# Images that are read and hashed at a time: those of a split may stay on disk.
HASHED_AT_ONCE = 1_000


@dataclasses.dataclass
class Outcome:
    """The state of each example after an attack; all arrays have one row an example.

    Attributes:
        stages: names of the attack's stages.
        labels: int64, the true classes.
        clean_predictions: int64, the model's on the unperturbed images.
        broken_by: int16, the stage that fooled the model; -1 where none has.
        losses: float32, cross-entropy in nats at the last image that was tried.
        distances: float32, norm of that image's perturbation; NaN where none was tried.
        moved: {latent layer: float64 [features]}, how far each feature moved, summed over
            `moved_examples` examples and averaged over nothing else (Eq. 1).
        stage, position: the stage under way, and how many of its examples are done.
    """

    stages: list[str]
    labels: np.ndarray
    clean_predictions: np.ndarray
    broken_by: np.ndarray
    losses: np.ndarray
    distances: np.ndarray
    moved: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    moved_examples: int = 0
    stage: int = 0
    position: int = 0

    @property
    def correct(self) -> np.ndarray:
        """bool: right on the unperturbed image."""
        return self.clean_predictions == self.labels

    @property
    def robust(self) -> np.ndarray:
        """bool: right on the unperturbed image and not broken."""
        return self.correct & (self.broken_by < 0)

    @property
    def finished(self) -> bool:
        return self.stage >= len(self.stages)

    def left(self) -> np.ndarray:
        """Finds the indices of the examples of the stage under way."""
        if self.stage == 0:
            return np.arange(len(self.labels))  # All: the movement of their features is measured.
        unbroken = (self.broken_by < 0) | (self.broken_by >= self.stage)
        return np.flatnonzero(self.correct & unbroken)

    def vulnerability(self) -> dict[str, float]:
        """Computes {latent layer: mean of Eq. 1 over its features}; empty if none was measured."""
        return {
            layer: float(total.mean()) / self.moved_examples for layer, total in self.moved.items()
        }

    def accuracy_after(self) -> dict[str, float]:
        """Computes {stage's name: robust accuracy after that stage}."""
        return {
            name: float(np.mean(self.correct & ((self.broken_by < 0) | (self.broken_by > i))))
            for i, name in enumerate(self.stages)
        }


def fingerprint(subjects: list[Subject], split: loading.Split, what: dict) -> str:
    """Computes an attack's identity: a digest of its models, the examples and `what`."""
    what = what | {"models": [subject.digest for subject in subjects]}
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode())
    for begin in range(0, len(split), HASHED_AT_ONCE):
        digest.update(np.ascontiguousarray(split.images[begin : begin + HASHED_AT_ONCE]).tobytes())
    digest.update(np.ascontiguousarray(split.labels).tobytes())
    return digest.hexdigest()


class AttackRun:
    """Runs the stages of one attack on a split.

    Args:
        subject: the model.
        split: its examples.
        stages: as of `registry.stages`.
        epsilon, norm: the ball, asserted on every batch.
        seed: of all random draws.
        batch_size: examples attacked at a time.
        draws: a stochastic model decides by its mean softmax over so many calls.
        path: where the state is kept (.npz); None keeps nothing.
        identity: `fingerprint` of this attack: a file of another one is replaced.
        use_latent: give the attacks the latent features too.
    """

    def __init__(
        self,
        subject: Subject,
        split: loading.Split,
        stages: list[Stage],
        *,
        epsilon: float,
        norm: str,
        seed: int,
        batch_size: int,
        draws: int = 1,
        path: pathlib.Path | None = None,
        identity: str = "",
        use_latent: bool = False,
    ):
        self.subject = subject
        self.split = split
        self.stages = stages
        self.epsilon = epsilon
        self.norm = norm
        self.seed = seed
        self.batch_size = batch_size
        self.draws = draws
        self.path = path
        self.identity = identity
        self.attacked = subject.outputs if use_latent else subject.logits
        self._logits = tf.function(self._mean_logits, autograph=False, reduce_retracing=True)
        self._movement = tf.function(self._moved, autograph=False, reduce_retracing=True)

    def _mean_logits(self, images):
        logits_fn = self.subject.logits
        if self.draws > 1:
            logits_fn = stochastic.expectation(logits_fn, self.draws)
        return logits_of(logits_fn, images)

    def _moved(self, images, adversarial):
        moved = movement(self.subject.outputs(images), self.subject.outputs(adversarial))
        return {name: tf.reduce_sum(distances, axis=0) for name, distances in moved.items()}

    def run(self, progress: Progress = lambda stage, done, total: None) -> Outcome:
        """Attacks the examples that have not been attacked yet, stage by stage.

        Args:
            progress: called with (stage's name, examples done, examples of the stage).

        Raises:
            AssertionError: an adversarial example left the ball or [0, 1].
            UsageError: the model does not return logits.
        """
        outcome = self._read() or self._begin()
        if outcome.finished:
            return outcome
        while not outcome.finished:
            stage, rows = self.stages[outcome.stage], outcome.left()
            while outcome.position < len(rows):
                progress(stage.name, outcome.position, len(rows))
                batch = rows[outcome.position : outcome.position + self.batch_size]
                self._attack(stage, outcome, batch)
                outcome.position += len(batch)
                self._write(outcome)
            outcome.stage += 1
            outcome.position = 0
        self._write(outcome)
        return outcome

    def _begin(self) -> Outcome:
        labels = np.asarray(self.split.labels)
        if len(labels) and not 0 <= labels.min() <= labels.max() < self.subject.classes:
            raise UsageError(
                f"labels from {labels.min()} to {labels.max()}; {self.subject.dataset} has "
                f"{self.subject.classes} classes"
            )
        # Single draws are checked: the mean of several is a log-probability in any case.
        probe = pipelines.to_float(self.split.images[: self.batch_size])
        check_logits(self.subject, logits_of(self.subject.logits, probe).numpy())
        predictions = []
        for images, _ in pipelines.evaluation_batches(self.split, self.batch_size):
            logits = self._logits(images).numpy()
            check_logits(self.subject, logits)
            predictions.append(np.argmax(logits, axis=1))
        count = len(self.split)
        return Outcome(
            stages=[stage.name for stage in self.stages],
            labels=np.asarray(self.split.labels, np.int64),
            clean_predictions=np.concatenate(predictions),
            broken_by=np.full(count, -1, np.int16),
            losses=np.full(count, np.nan, np.float32),
            distances=np.full(count, np.nan, np.float32),
        )

    def _attack(self, stage: Stage, outcome: Outcome, rows: np.ndarray) -> None:
        images = pipelines.to_float(self.split.images[rows])
        labels = tf.constant(outcome.labels[rows])
        # Each example has its own seed: no result depends on the size of the batches.
        seed = randomness.ExampleSeeds(
            randomness.seed_of(self.seed, "attack"), tf.constant(rows, tf.int32)
        )
        try:
            adversarial = stage.run(self.attacked, images, labels, seed)
        except LookupError as error:  # TensorFlow raises it for an operation without gradient.
            raise UsageError(
                f"{self.subject.name} has no gradient ({error}); use --attack=square or transfer"
            ) from error
        threat_model.assert_in_threat_model(
            images.numpy(), adversarial.numpy(), self.epsilon, self.norm
        )
        logits = self._logits(adversarial)
        check_logits(self.subject, logits.numpy())
        wrong = np.argmax(logits, axis=1) != outcome.labels[rows]
        new = wrong & (outcome.broken_by[rows] < 0)
        outcome.broken_by[rows[new]] = outcome.stage
        outcome.losses[rows] = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        outcome.distances[rows] = tf.reshape(
            threat_model.length(adversarial - images, self.norm), [-1]
        )
        if self.subject.outputs is not None and outcome.stage == 0:
            for name, total in self._movement(images, adversarial).items():
                held = outcome.moved.get(name, 0.0)
                outcome.moved[name] = held + total.numpy().astype(np.float64)
            outcome.moved_examples += len(rows)

    # ---- The state on disk ----

    def _write(self, outcome: Outcome) -> None:
        if self.path is None:
            return
        values = dataclasses.asdict(outcome)
        moved = {f"moved/{name}": total for name, total in values.pop("moved").items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        files.replace_atomically(
            self.path, lambda path: np.savez(path, identity=self.identity, **values, **moved)
        )

    def _read(self) -> Outcome | None:
        if self.path is None or not self.path.exists():
            return None
        try:
            with np.load(self.path, allow_pickle=False) as file:
                if str(file["identity"]) != self.identity:
                    return None
                values = {name: file[name] for name in file.files if name != "identity"}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            print(f"{self.path} cannot be read ({error}); this attack begins anew")
            return None
        moved = {
            name.removeprefix("moved/"): values.pop(name)
            for name in list(values)
            if name.startswith("moved/")
        }
        try:
            for name in ("stage", "position", "moved_examples"):
                values[name] = int(values[name])
            values["stages"] = [str(name) for name in values["stages"]]
            return Outcome(**values, moved=moved)
        except (KeyError, TypeError, ValueError):
            print(f"{self.path} is of another version; this attack begins anew")
            return None
