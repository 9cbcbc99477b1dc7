"""Checks that an export computes the same as the training network."""

import dataclasses
import pathlib
import subprocess
import sys
import tempfile

import keras
import numpy as np

from anpvs_tf.attacks.settings import EVALUATION_BATCH
from anpvs_tf.common.errors import TrainingError
from anpvs_tf.data import loading, pipelines
from anpvs_tf.serving import litert
from anpvs_tf.serving.names import QUANTIZATIONS

# Of the largest logit: float32 sums in another order differ by about 1e-6.
TOLERANCE = 1e-4
# A quantised file computes something else, and is judged by its accuracy: so much may be lost.
MOST_LOST = 0.1
QUANTISED = tuple(litert.file_name(name) for name in QUANTIZATIONS)
# Of a probability: 8-bit ones are multiples of 1/256.
PROBABILITY_TOLERANCE, QUANTISED_TOLERANCE = 1e-5, 1 / 128
# The output of a page's second network.
RIVAL = "rival"


@dataclasses.dataclass(frozen=True)
class Agreement:
    """One signature (or file) against the training network, over the whole test set.

    Attributes:
        difference: largest difference of a logit, over the largest logit.
        equal_classes: examples of which the class is the same.
        accuracy: in [0, 1].
        size: of the file, in bytes; None for a signature.
    """

    difference: float
    equal_classes: int
    accuracy: float
    size: int | None = None


@dataclasses.dataclass(frozen=True)
class Report:
    """The check of an export.

    Attributes:
        accuracy: of the training network on the `examples` test images, in [0, 1].
        exported: by signature or file; empty if the export was not checked.
        unchecked: why not.
    """

    examples: int
    accuracy: float
    exported: dict[str, Agreement]
    unchecked: str = ""


def verify(
    network: keras.Model,
    test: loading.Split,
    names: list[str] | None,
    path: pathlib.Path,
    rival: keras.Model | None = None,
) -> Report:
    """Runs an export on every test image without this package, and compares the outputs.

    Args:
        network: the training network: images -> dict with "logits".
        test: the test images.
        names: of the classes; None where the export has no labels.
        path: directory of the exported version.
        rival: the training network of the output "rival", if there is one.

    Raises:
        TrainingError: the export cannot be loaded, or disagrees; or a quantised file classifies
            more than `MOST_LOST` of the images less right than the training network.
    """
    wanted = _logits(network, test)
    rivals = {} if rival is None else {RIVAL: _logits(rival, test)}
    outputs = _run_isolated(path, test.images)
    found, accuracy = {}, _accuracy(wanted, test)
    for name in dict.fromkeys(key.split("/")[0] for key in outputs):
        expected = rivals.get(name, wanted)
        classes = expected.argmax(axis=-1)
        logits, got = outputs[f"{name}/logits"], outputs[f"{name}/classes"]
        agreement = Agreement(
            difference=float(np.abs(logits - expected).max() / np.abs(expected).max()),
            equal_classes=int(np.sum(got == classes)),
            accuracy=float(np.mean(got == test.labels)),
            size=(path / name).stat().st_size if (path / name).is_file() else None,
        )
        quantised = name in QUANTISED
        # Not >: a NaN disagrees.
        good = quantised or (
            agreement.difference <= TOLERANCE and agreement.equal_classes == len(test)
        )
        good &= bool(
            np.allclose(
                outputs[f"{name}/probabilities"],
                _softmax(logits),
                atol=QUANTISED_TOLERANCE if quantised else PROBABILITY_TOLERANCE,
            )
        )
        if names is not None and f"{name}/labels" in outputs:
            good &= outputs[f"{name}/labels"].astype(str).tolist() == [names[i] for i in got]
        if not good:
            raise TrainingError(
                f"the exported {name} disagrees with the training network: logits differ by "
                f"{agreement.difference:.1e} of the largest, {agreement.equal_classes} of "
                f"{len(test)} classes are equal; nothing was kept"
            )
        if quantised and agreement.accuracy < accuracy - MOST_LOST:
            raise TrainingError(
                f"{name} classifies {agreement.accuracy:.1%} of the test images right, the "
                f"training network {accuracy:.1%}; quantisation may cost {100 * MOST_LOST:g} "
                "points, choose another --quantize; nothing was kept"
            )
        found[name] = agreement
    return Report(len(test), accuracy, found)


def leave_out(network: keras.Model, test: loading.Split, program: str) -> Report:
    """Makes the report of an export that cannot be run, because `program` is not installed."""
    reason = f"{program} is not installed"
    return Report(len(test), _accuracy(_logits(network, test), test), {}, reason)


def _logits(network: keras.Model, test: loading.Split) -> np.ndarray:
    batches = pipelines.evaluation_batches(test, EVALUATION_BATCH)
    return np.concatenate([network(x, training=False)["logits"].numpy() for x, _ in batches])


def _accuracy(logits: np.ndarray, test: loading.Split) -> float:
    return float(np.mean(logits.argmax(axis=-1) == test.labels))


def _run_isolated(path: pathlib.Path, images: np.ndarray) -> dict[str, np.ndarray]:
    program = pathlib.Path(__file__).with_name("isolated_process.py")
    with tempfile.TemporaryDirectory() as directory:
        sent, received = f"{directory}/images.npy", f"{directory}/outputs.npz"
        np.save(sent, images)
        # -I: neither the working directory nor PYTHONPATH can bring the package in.
        done = subprocess.run(
            [sys.executable, "-I", program, path, sent, received, str(EVALUATION_BATCH)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            reason = (done.stderr.strip() or "no message").splitlines()[-1]
            raise TrainingError(
                f"the exported model cannot be run in a new process: {reason}; nothing was kept"
            )
        with np.load(received) as file:
            return dict(file)


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)
