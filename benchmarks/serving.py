"""Latency and throughput of Triton Inference Server: the dense network against the compact one.

  python -m benchmarks.serving                   VGG-16, 76.5 % of its gated features pruned
  python -m benchmarks.serving --run_dir=RUN     the network of a finished run

From the root of the repository; needs the extra `triton`. A Markdown table goes to standard output.

dense: folded, nothing pruned. compact: folded and pruned, as `bin/export.py --format=triton` writes
it. One server on this machine's processors holds both, and threads of this process ask it over
HTTP, each for one answer after the other; the two networks take turns. An answer counts if its
logits are those of the Keras network. Requests a second are medians of the rounds (least to
greatest); milliseconds are those of a request in all rounds.
"""

import os
import pathlib
import tempfile
import threading
import time
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from anpvs_tf.common import program
from anpvs_tf.data.splits import Split
from anpvs_tf.pruning import compact
from anpvs_tf.runs.finished_run import open_run
from anpvs_tf.serving import formats, server_files, triton_server, verification
from benchmarks import inference, timing

IMAGES = 64
WARM_UP = 50


class Answer(NamedTuple):
    """What came of a request: seconds until then, and logits [batch, classes] or the error."""

    seconds: float
    logits: np.ndarray | None
    error: Exception | None


def ask(url: str, model: str, requests: list[np.ndarray], threads: int) -> list[Answer]:
    """Sends every request, in threads with a connection each; answers in order of the requests.

    Args:
        url: "host:port" of the server's HTTP.
        model: its name.
        requests: float32 images [batch, H, W, C] in [0, 1] of each.
    """
    from tritonclient import http

    answers: list[Answer | None] = [None] * len(requests)

    def work(first: int) -> None:
        with http.InferenceServerClient(url) as client:
            for i in range(first, len(requests), threads):
                images = http.InferInput("images", requests[i].shape, "FP32")
                images.set_data_from_numpy(requests[i])
                logits = error = None
                begin = time.perf_counter()
                try:
                    logits = client.infer(model, [images]).as_numpy("logits")
                except Exception as failure:
                    error = failure
                answers[i] = Answer(time.perf_counter() - begin, logits, error)

    workers = [threading.Thread(target=work, args=[first]) for first in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    lost = Answer(np.inf, None, RuntimeError("its thread ended"))
    return [lost if answer is None else answer for answer in answers]


def write_model(network: keras.Model, base: pathlib.Path) -> None:
    """Writes version 1 of a model as an export does."""
    (base / "1").mkdir(parents=True)
    held = formats.FORMATS["triton"]
    unused = Split(np.zeros(0), np.zeros(0))
    held.write(formats.Content(network, None, base.name, unused), base / "1")
    server_files.write(base, held.server_files(network, base.name))


def right(answers: list[Answer], expected: np.ndarray) -> int:
    """How many answers have the logits that are expected [requests, batch, classes]."""
    allowed = verification.TOLERANCE * np.abs(expected).max()
    return sum(
        answer.logits is not None and np.abs(answer.logits - logits).max() <= allowed
        for answer, logits in zip(answers, expected, strict=True)
    )


MEASURED = "What to measure"


def define(flags: program.Flags) -> None:
    flags.add(MEASURED, str, "run_dir", None, "a finished run of bin/train.py")
    for name, default, help in (
        ("requests", 1000, "requests of a round"),
        ("threads", 8, "threads that ask"),
        ("batch", 1, "images of a request"),
        ("rounds", 5, "rounds of each network"),
        ("port", 8000, "TCP port of the server"),
    ):
        flags.add(MEASURED, int, name, default, help, lower_bound=1)


def main(values: Any) -> None:
    if values.run_dir:
        network = open_run(values.run_dir).network()
    else:
        network = inference.vgg16(inference.PATTERNS["published"])
    frozen = {
        "dense": compact.freeze(network, prune=False),
        "compact": compact.freeze(network),
    }
    shape = (IMAGES, values.batch, *network.inputs[0].shape[1:])
    images = np.random.default_rng(0).random(shape, np.float32)
    requests = [images[i % IMAGES] for i in range(values.requests)]
    rounds: dict[str, list[list[Answer]]] = {name: [] for name in frozen}
    rates: dict[str, list[float]] = {name: [] for name in frozen}
    rows = [("network", "parameters", "bytes", "right answers", "requests a second")]
    rows[0] += ("ms, median", "ms, 99th percentile")
    rows.append(("---",) * len(rows[0]))
    with tempfile.TemporaryDirectory() as models:
        for name, one in frozen.items():
            write_model(one, pathlib.Path(models) / name)
        with triton_server.running(models, values.port):
            url = f"127.0.0.1:{values.port}"
            for name in frozen:
                ask(url, name, requests[:WARM_UP], values.threads)
            for _ in range(values.rounds):
                for name in frozen:
                    begin = time.perf_counter()
                    rounds[name].append(ask(url, name, requests, values.threads))
                    rates[name].append(values.requests / (time.perf_counter() - begin))
        for name, one in frozen.items():
            logits = one.predict(images.reshape(-1, *shape[2:]), verbose=0)
            expected = logits.reshape(IMAGES, values.batch, -1)[np.arange(values.requests) % IMAGES]
            taken = [1e3 * answer.seconds for answers in rounds[name] for answer in answers]
            counted = sum(right(answers, expected) for answers in rounds[name])
            size = (pathlib.Path(models) / name / "1" / "network.onnx").stat().st_size
            rows.append(
                (
                    name,
                    f"{one.count_params():,}",
                    f"{size:,}",
                    f"{counted:,} of {len(taken):,}",
                    f"{np.median(rates[name]):,.0f} "
                    f"({min(rates[name]):,.0f}-{max(rates[name]):,.0f})",
                    f"{np.median(taken):.2f}",
                    f"{np.percentile(taken, 99):.2f}",
                )
            )
    print(timing.environment("serving"))
    timing.print_rows(rows)


if __name__ == "__main__":
    program.run(main, __doc__, define)
