"""Trains an exported run where neither TensorFlow nor this package is installed.

  python accelerator_run.py DIR --seconds=300 --out=TRAINED

DIR is what `python -m benchmarks.accelerator export` wrote. Needs JAX 0.10 or newer, NumPy and,
for data that is kept as JPEG, Pillow. All steps of an epoch are one call of the device; the
images stay in its memory. Several processes can share a GPU.

Each epoch ends with the trainer's attack on the validation examples. OUT gets the state
(state.npz), the weights as they are deployed of the epoch that withstood best (best.npz), the gates
(gates.npz) and a row for each epoch (history.csv); it is written now and then and at the end.
`python -m benchmarks.accelerator import DIR --trained=OUT --run_dir=RUN` makes a run of it.
"""

import argparse
import bz2
import concurrent.futures
import csv
import hashlib
import io
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

try:
    import jax
    import jax.numpy as jnp
    from jax import export
except ModuleNotFoundError:
    sys.exit("error: JAX is not installed; run pip install 'jax>=0.10.2,<0.11'")
import numpy as np

BEGAN = time.monotonic()
# Seconds between two writes of the state.
SAVE_EVERY = 20.0
# The values that are measured on the validation examples.
FIGURES = ("clean_accuracy", "robust_accuracy", "vulnerability")


def main(arguments: list[str] | None = None) -> None:
    """Runs the program; without `arguments`, on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=pathlib.Path, help="what was exported")
    parser.add_argument("--out", type=pathlib.Path, help="default: DIR/trained")
    parser.add_argument("--epochs", type=int, help="of this call; default: all that are left")
    parser.add_argument("--seconds", type=float, help="stop at the last epoch's end before")
    parser.add_argument("--resume", type=pathlib.Path, help="the --out of a call to go on from")
    parser.add_argument(
        "--validate_every", type=int, default=1, help="epochs between two attacks on validation"
    )
    parser.add_argument("--data", type=pathlib.Path, help="default: as the export says")
    given = parser.parse_args(arguments)
    try:
        train(given)
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"error: {error}")


def train(given: argparse.Namespace) -> None:
    """Trains for the epochs, or the time, that were asked for."""
    meta = json.loads((given.directory / "meta.json").read_text())
    out = given.out or given.directory / "trained"
    out.mkdir(parents=True, exist_ok=True)
    steps, batch_size = meta["steps"], meta["settings"]["batch_size"]
    with np.load(given.directory / meta["order"]) as held:
        order = held["order"][: meta["settings"]["epochs"], : steps * batch_size]
    order = order.reshape(-1, steps, batch_size)

    # ---- Where training starts ----
    state = load_arrays((given.resume or given.directory) / "state.npz")
    rows, gates, best = [], [], []
    if given.resume:
        rows = read_history(given.resume / "history.csv")
        gates = list(*load_arrays(given.resume / "gates.npz"))
        best = load_arrays(given.resume / "best.npz")

    # ---- Compilation, meanwhile the images ----
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor() as threads:
        data = threads.submit(load_data, given.data or given.directory / meta["data"], meta)
        of_epoch, validate = threads.map(
            lambda make: make(given.directory, meta, state), (compiled_epoch, compiled_validation)
        )
        compiling = since(began)
        images, labels, *validation = map(jnp.asarray, data.result())
    state = [jnp.asarray(array) for array in state]
    machine = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    replace(out / "machine.json", json.dumps(machine).encode())
    say(given, f"{', '.join(machine.values())}, compiled in {compiling:.1f} s")

    # ---- Epochs ----
    last = min(len(order), len(rows) + (given.epochs or len(order)))
    slowest, saved = 0.0, time.monotonic()
    while len(rows) < last:
        if given.seconds and since(BEGAN) + 1.1 * slowest + 2.0 > given.seconds:
            say(given, f"stopped after epoch {len(rows)} for lack of time")
            break
        began, epoch = time.monotonic(), len(rows) + 1
        indices = jnp.asarray(order[epoch - 1].astype(np.int32))
        state, values = of_epoch(state, images, labels, indices)
        values = np.asarray(values)
        seconds = since(began)
        speed = indices.size / seconds
        row = {"epoch": epoch, "seconds": round(seconds, 4), "images_per_second": round(speed, 1)}
        row |= {name: float(value) for name, value in zip(meta["terms"], values, strict=True)}
        if not np.isfinite(row["loss"]):
            raise ValueError(f"the loss is not finite after epoch {epoch}")
        deployed = [state[place] for place in meta["deployed"]]
        figures = [np.nan] * len(FIGURES)
        if epoch % given.validate_every == 0 or epoch == last:
            found = np.asarray(validate(deployed, *validation), np.float64)
            figures = (found / meta["validation_examples"]).tolist()
        row |= {f"validation_{name}": v for name, v in zip(FIGURES, figures, strict=True)}
        # Of equals the later, as the trainer chooses.
        held = [r["validation_robust_accuracy"] for r in rows[meta["first_selectable_epoch"] - 1 :]]
        if epoch >= meta["first_selectable_epoch"] and figures[1] >= np.nanmax([0.0, *held]):
            best = [np.asarray(weight) for weight in deployed]
        gates.append(flat([deployed[place] for place in meta["gates"]]))
        rows.append(row)
        slowest = max(slowest, since(began))
        shown = " ".join(f"{name} {value:.4g}" for name, value in list(row.items())[3:])
        say(given, f"epoch {epoch}/{len(order)} {seconds:.2f} s {speed:.0f} images/s {shown}")
        if since(saved) > SAVE_EVERY:
            save(out, state, rows, gates, best)
            saved = time.monotonic()
    save(out, state, rows, gates, best)
    say(given, f"{out} holds the state after epoch {len(rows)}; {since(BEGAN):.1f} s in all")


def compiled_epoch(directory: pathlib.Path, meta: dict, state: list[np.ndarray]) -> Callable:
    """(state, images, labels, indices [steps, batch]) -> (new state, means of the loss terms)."""
    exported = export.deserialize((directory / "step.bin").read_bytes())
    batch, *_ = exported.in_avals
    terms = len(meta["terms"])

    def of_epoch(state, images, labels, order):
        def step(state, chosen):
            found = exported.call(images[chosen], labels[chosen], *state)
            return list(found[terms:]), jnp.stack(found[:terms])

        state, values = jax.lax.scan(step, state, order)
        return state, jnp.mean(values, axis=0)

    examples = meta["train_examples"]
    images = jax.ShapeDtypeStruct((examples, *batch.shape[1:]), batch.dtype)
    labels = jax.ShapeDtypeStruct((examples,), np.int32)
    order = jax.ShapeDtypeStruct((meta["steps"], batch.shape[0]), np.int32)
    # The state is overwritten.
    return jax.jit(of_epoch, donate_argnums=0).lower(state, images, labels, order).compile()


def compiled_validation(directory: pathlib.Path, meta: dict, state: list[np.ndarray]) -> Callable:
    """(weights, images, labels) -> sums over the validation examples of `FIGURES`."""
    exported = export.deserialize((directory / "validate.bin").read_bytes())
    batch, *_ = exported.in_avals
    batches = meta["validation_examples"] // batch.shape[0]

    def of_split(weights, images, labels):
        def of_batch(total, number):
            first = number * batch.shape[0]
            cut = [jax.lax.dynamic_slice_in_dim(x, first, batch.shape[0]) for x in (images, labels)]
            return total + jnp.stack(exported.call(*cut, number, *weights)), None

        numbers = jnp.arange(batches, dtype=np.int32)
        return jax.lax.scan(of_batch, jnp.zeros(len(FIGURES)), numbers)[0]

    weights = [state[place] for place in meta["deployed"]]
    examples = meta["validation_held"]
    images = jax.ShapeDtypeStruct((examples, *batch.shape[1:]), batch.dtype)
    labels = jax.ShapeDtypeStruct((examples,), np.int32)
    return jax.jit(of_split).lower(weights, images, labels).compile()


def say(given: argparse.Namespace, text: str) -> None:
    """Prints a line with the name of the export, for several processes print to one place."""
    print(f"{given.directory.name}: {text}", flush=True)


def since(moment: float) -> float:
    """Seconds."""
    return time.monotonic() - moment


def flat(arrays: list) -> np.ndarray:
    """All numbers of some arrays, in one row, float32."""
    return np.concatenate([np.zeros(0, np.float32), *(np.ravel(array) for array in arrays)])


def read_history(path: pathlib.Path) -> list[dict[str, float]]:
    """The rows of a history.csv."""
    with open(path, newline="") as file:
        return [
            {name: int(value) if name == "epoch" else float(value) for name, value in row.items()}
            for row in csv.DictReader(file)
        ]


def load_arrays(path: pathlib.Path) -> list[np.ndarray]:
    """The arrays of a file that `save_arrays` wrote, in their order."""
    with np.load(path) as held:
        return [held[name] for name in sorted(held.files)]


def save_arrays(path: pathlib.Path, arrays: list) -> None:
    """Writes arrays in an order, whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{f"{i:05d}": np.asarray(array) for i, array in enumerate(arrays)})
    replace(path, buffer.getvalue())


def save(out: pathlib.Path, state: list, rows: list[dict], gates: list, best: list) -> None:
    """Writes all that `import` and `--resume` read."""
    save_arrays(out / "state.npz", state)
    save_arrays(out / "best.npz", best)
    save_arrays(out / "gates.npz", [np.array(gates)])
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["epoch"])
    writer.writeheader()
    writer.writerows(rows)
    replace(out / "history.csv", text.getvalue().encode())


def replace(path: pathlib.Path, content: bytes) -> None:
    """Writes a file, whole or not at all."""
    beside = path.with_suffix(".tmp")
    beside.write_bytes(content)
    beside.replace(path)


def load_data(path: pathlib.Path, meta: dict) -> list[np.ndarray]:
    """Images, uint8 [examples, H, W, C], and labels, int32 [examples]: training, validation.

    Raises:
        ValueError: they are not those that were exported.
    """
    with np.load(path) as held:
        if "images" in held:
            images = unpacked(held["images"])
        else:
            images = decoded(unpacked(held["jpeg"]), held["lengths"]).reshape(-1)
            images += unpacked(held["correction"])
        of_validation = unpacked(held["validation_images"])
        images, of_validation = (x.reshape(-1, *held["shape"]) for x in (images, of_validation))
        data = [images, held["labels"], of_validation, held["validation_labels"]]
    if digest(*data) != meta["data_sha256"]:
        raise ValueError(
            f"{path} holds other examples than those of the export (another export's, or this "
            "machine decodes JPEG to other bits)"
        )
    return data


def decoded(content: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The images of JPEG files that lie one after the other, uint8 [files, H, W, C]."""
    from PIL import Image

    files = np.split(content, np.cumsum(lengths)[:-1])
    return np.stack([np.asarray(Image.open(io.BytesIO(file.tobytes()))) for file in files])


def packed(array: np.ndarray) -> np.ndarray:
    """The bytes of a uint8 array, compressed."""
    return np.frombuffer(bz2.compress(array.tobytes()), np.uint8)


def unpacked(content: np.ndarray) -> np.ndarray:
    """The bytes that `packed` was given, uint8 [bytes]."""
    return np.frombuffer(bz2.decompress(content.tobytes()), np.uint8)


def digest(*arrays: np.ndarray) -> str:
    """SHA-256 of arrays."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array))
    return found.hexdigest()


if __name__ == "__main__":
    main()
