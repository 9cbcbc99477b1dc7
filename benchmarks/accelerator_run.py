"""Trains an exported run where neither TensorFlow nor this package is installed.

  python accelerator_run.py DIR --seconds=300 --out=TRAINED

DIR is what `python -m benchmarks.accelerator export` wrote. Needs JAX 0.10 or newer, NumPy and,
for data that is kept as JPEG, Pillow. All steps of an epoch are one call of the device; the
images stay in its memory. Several processes can share a GPU.

After each epoch OUT holds the state (state.npz) and a row for each epoch (history.csv), which
`python -m benchmarks.accelerator import DIR --trained=OUT --run_dir=RUN` makes a run of.
"""

import argparse
import bz2
import csv
import hashlib
import io
import json
import os
import pathlib
import sys
import time

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

BEGAN = time.monotonic()
# Seconds between two writes of the state.
SAVE_EVERY = 20.0


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
    images, labels = load_data(given.data or given.directory / meta["data"], meta)
    steps, batch_size = meta["steps"], meta["settings"]["batch_size"]
    with np.load(given.directory / meta["order"]) as held:
        order = held["order"][: meta["settings"]["epochs"], : steps * batch_size]
    order = order.reshape(-1, steps, batch_size)
    before = given.resume or given.directory
    with np.load(before / "state.npz") as held:
        state = [jnp.asarray(held[f"{i:04d}"]) for i in range(len(meta["variables"]))]
    rows = read_history(given.resume / "history.csv") if given.resume else []
    gates = list(np.load(given.resume / "gates.npz")["gates"]) if given.resume else []

    step = export.deserialize((given.directory / "step.bin").read_bytes()).call
    terms = meta["terms"]

    def one(state, chosen):
        found = step(jnp.take(images_on, chosen, axis=0), jnp.take(labels_on, chosen), *state)
        return list(found[len(terms) :]), jnp.stack(found[: len(terms)])

    def of_epoch(state, images, labels, order):
        nonlocal images_on, labels_on
        images_on, labels_on = images, labels
        state, values = jax.lax.scan(one, state, order)
        return state, jnp.mean(values, axis=0)

    images_on = labels_on = None
    images, labels = jnp.asarray(images), jnp.asarray(labels)
    first = jnp.asarray(order[0].astype(np.int32))
    began = time.monotonic()
    compiled = jax.jit(of_epoch, donate_argnums=0).lower(state, images, labels, first).compile()
    machine = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    replace(out / "machine.json", json.dumps(machine).encode())
    say(given, f"{', '.join(machine.values())}, compiled in {since(began):.1f} s")

    done, saved = len(rows), -np.inf
    last = min(len(order), done + (given.epochs or len(order)))
    slowest = 0.0
    while done < last:
        if given.seconds and since(BEGAN) + 1.1 * slowest + 2.0 > given.seconds:
            say(given, f"stopped after epoch {done} for lack of time")
            break
        began = time.monotonic()
        state, values = compiled(state, images, labels, jnp.asarray(order[done].astype(np.int32)))
        values = np.asarray(values)
        seconds = since(began)
        done, slowest = done + 1, max(slowest, seconds)
        speed = order[0].size / seconds
        row = {"epoch": done, "seconds": round(seconds, 4), "images_per_second": round(speed, 1)}
        row |= {name: float(value) for name, value in zip(terms, values, strict=True)}
        rows.append(row)
        gates.append(flat([state[i] for i in meta["gates"]]))
        shown = " ".join(f"{name} {value:.4g}" for name, value in list(row.items())[3:])
        say(given, f"epoch {done}/{len(order)} {seconds:.2f} s {speed:.0f} images/s {shown}")
        if not np.isfinite(row["loss"]):
            raise ValueError(f"the loss is not finite after epoch {done}")
        if done == last or since(saved) > SAVE_EVERY:
            save(out, state, rows, gates)
            saved = time.monotonic()
    save(out, state, rows, gates)
    say(given, f"{out} holds the state after epoch {done}; {since(BEGAN):.1f} s in all")


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


def save(out: pathlib.Path, state: list, rows: list[dict], gates: list[np.ndarray]) -> None:
    """Writes state.npz, gates.npz and history.csv, each beside and renamed."""
    arrays = {f"{i:04d}": np.asarray(value) for i, value in enumerate(state)}
    for name, held in (("state.npz", arrays), ("gates.npz", {"gates": np.array(gates)})):
        buffer = io.BytesIO()
        np.savez(buffer, **held)
        replace(out / name, buffer.getvalue())
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


def load_data(path: pathlib.Path, meta: dict) -> tuple[np.ndarray, np.ndarray]:
    """Training images, uint8 [examples, H, W, C], and labels, int32 [examples].

    Raises:
        ValueError: they are not those that were exported.
    """
    with np.load(path) as held:
        labels = held["labels"].astype(np.int32)
        if "images" in held:
            images = unpacked(held["images"]).reshape(held["shape"])
        else:
            images = decoded(unpacked(held["jpeg"]), held["lengths"])
            images += unpacked(held["correction"]).reshape(images.shape)
    found = digest(images, labels)
    if found != meta["data_sha256"]:
        raise ValueError(
            f"{path} holds other examples than those of the export (another export's, or this "
            "machine decodes JPEG to other bits)"
        )
    return images, labels


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


def digest(images: np.ndarray, labels: np.ndarray) -> str:
    """SHA-256 of a data set."""
    found = hashlib.sha256(np.ascontiguousarray(images, np.uint8))
    found.update(np.ascontiguousarray(labels, np.int32))
    return found.hexdigest()


if __name__ == "__main__":
    main()
