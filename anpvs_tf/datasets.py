"""Named datasets: uint8 images in memory, and tf.data pipelines over them.

The order of the training examples and their augmentation are functions of
(seed, epoch) and (seed, step); a run that is continued sees what it would have
seen. Images leave the pipelines as float32 in [0, 1].
"""

import dataclasses
import os
import shutil
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from anpvs_tf import noise
from anpvs_tf.errors import UsageError

DIGITS_SIZE = 28


@dataclasses.dataclass(frozen=True)
class Split:
    """images: uint8 [examples, H, W, C]; labels: int64 [examples]."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, examples: int | None) -> "Split":
        """The first `examples` (all if None)."""
        return Split(self.images[:examples], self.labels[:examples])


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Three disjoint splits; `validation` was taken from the published training set.

    Attributes:
        augment: random crop (pad 4) and horizontal flip in training.
    """

    name: str
    classes: int
    train: Split
    validation: Split
    test: Split
    augment: bool

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.train.images.shape[1:]


def _digits(data_dir: str | None, download: bool) -> tuple[Split, Split]:
    """scikit-learn's 1,797 handwritten digits, enlarged from 8 x 8; a fifth is the test set."""
    del data_dir, download  # The images come with scikit-learn.
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = pixels.reshape(-1, 8, 8, 1) / 16.0
    images = tf.image.resize(images, [DIGITS_SIZE, DIGITS_SIZE], "bicubic").numpy()
    images = np.round(np.clip(images, 0.0, 1.0) * 255.0).astype(np.uint8)
    # The file is ordered by writer; the published order would put writers apart.
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = images[order], labels[order].astype(np.int64)
    test = len(labels) // 5
    return Split(images[test:], labels[test:]), Split(images[:test], labels[:test])


def _tfds(name: str) -> Callable[[str | None, bool], tuple[Split, Split]]:
    def load_splits(data_dir: str | None, download: bool) -> tuple[Split, Split]:
        import tensorflow_datasets as tfds

        root = os.path.expanduser(data_dir or str(tfds.core.constants.DATA_DIR))
        try:
            existed = os.path.exists(root)
            held_before = set(os.listdir(root)) if existed else set()
            builder = tfds.builder(name, data_dir=root)
            if not builder.data_path.exists():
                if not download:
                    raise UsageError(
                        f"dataset {name} is not in {root}; pass --data_dir (or set TFDS_DATA_DIR) "
                        "to a directory that TFDS prepared, or allow --download"
                    )
                _download(builder, root, existed, held_before)
            return tuple(_arrays(builder, split) for split in ("train", "test"))
        except UsageError:
            raise
        except Exception as error:  # Damaged files end in errors of TFDS, TensorFlow or the system.
            raise UsageError(f"dataset {name} in {root} cannot be read: {_line(error)}") from error

    return load_splits


def _arrays(builder, split: str) -> Split:
    batches = builder.as_dataset(split=split, as_supervised=True).batch(1000).as_numpy_iterator()
    images, labels = zip(*batches, strict=True)
    return Split(np.concatenate(images), np.concatenate(labels).astype(np.int64))


def _download(builder, root: str, existed: bool, held_before: set[str]) -> None:
    """Downloads and prepares; a failure leaves `root` as it was."""
    try:
        builder.download_and_prepare()
    except Exception as error:  # TFDS raises many kinds: network, checksum, disk.
        for entry in {builder.name, "downloads"} - held_before:
            shutil.rmtree(os.path.join(root, entry), ignore_errors=True)
        if not existed:
            shutil.rmtree(root, ignore_errors=True)
        raise UsageError(
            f"dataset {builder.name} is not in {root} and could not be downloaded "
            f"({_line(error)}); connect, or pass --data_dir (or set TFDS_DATA_DIR) to a directory "
            "that TFDS prepared"
        ) from error


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


@dataclasses.dataclass(frozen=True)
class _Source:
    image_shape: tuple[int, int, int]
    classes: int
    load: Callable[[str | None, bool], tuple[Split, Split]]
    validation: int
    augment: bool = False


SOURCES: dict[str, _Source] = {
    "digits": _Source((DIGITS_SIZE, DIGITS_SIZE, 1), 10, _digits, validation=143),
    "mnist": _Source((28, 28, 1), 10, _tfds("mnist"), validation=5_000),
    "cifar10": _Source((32, 32, 3), 10, _tfds("cifar10"), validation=5_000, augment=True),
    "cifar100": _Source((32, 32, 3), 100, _tfds("cifar100"), validation=5_000, augment=True),
}


def load(
    name: str,
    data_dir: str | None = None,
    download: bool = True,
    train_examples: int | None = None,
) -> Dataset:
    """Loads a dataset into memory.

    The validation split is the end of the published training set (TFDS's order
    is shuffled): `SOURCES` says how many examples, and at most a tenth, should the
    data directory hold a part of the dataset only.

    Args:
        name: a key of `SOURCES`.
        data_dir: where TFDS keeps its data; None for `TFDS_DATA_DIR` or its default.
        download: fetch a dataset that is absent.
        train_examples: keep only the first of the training split.

    Raises:
        UsageError: unknown name, absent data, too many `train_examples`.
    """
    if name not in SOURCES:
        raise UsageError(f"unknown dataset {name!r}; choose one of {', '.join(SOURCES)}")
    source = SOURCES[name]
    published, test = source.load(data_dir, download)
    held_out = min(source.validation, len(published) // 10)
    available = len(published) - held_out
    train = Split(published.images[:available], published.labels[:available])
    if train_examples is not None and train_examples > available:
        raise UsageError(
            f"--train_examples={train_examples} is more than the {available} training "
            f"examples of {name} ({held_out} are held out for validation)"
        )
    return Dataset(
        name=name,
        classes=source.classes,
        train=train.take(train_examples),
        validation=Split(published.images[available:], published.labels[available:]),
        test=test,
        augment=source.augment,
    )


def to_float(images: tf.Tensor) -> tf.Tensor:
    """uint8 pixels -> float32 in [0, 1]."""
    return tf.cast(images, tf.float32) / 255.0


def random_crop_and_flip(images: tf.Tensor, seed: tf.Tensor, padding: int = 4) -> tf.Tensor:
    """Shifts each image by up to `padding` pixels (zeros enter) and mirrors half of them.

    Args:
        images: [batch, H, W, C], any dtype.
        seed: int32 [2].
    """
    batch, height, width = (images.shape[i] for i in range(3))
    padded = tf.pad(images, [[0, 0], [padding, padding], [padding, padding], [0, 0]])
    offsets = tf.random.stateless_uniform(
        [batch, 2], noise.fold(seed, "crop"), 0, 2 * padding + 1, tf.int32
    )
    rows = offsets[:, :1] + tf.range(height)
    columns = offsets[:, 1:] + tf.range(width)
    mirrored = tf.random.stateless_uniform([batch, 1], noise.fold(seed, "flip")) < 0.5
    columns = tf.where(mirrored, tf.reverse(columns, [1]), columns)
    cropped = tf.gather(padded, rows, axis=1, batch_dims=1)
    return tf.gather(cropped, columns, axis=2, batch_dims=1)


def train_batches(
    dataset: Dataset,
    batch_size: int,
    seed: int,
    epochs: int,
    steps_per_epoch: int | None = None,
    first_epoch: int = 0,
    first_step: int = 0,
) -> tf.data.Dataset:
    """Batches of (float32 images, int64 labels) of all epochs from `first_epoch` on.

    Each epoch visits the examples in an order of its own and drops the
    incomplete batch at its end, another one every epoch.

    Args:
        steps_per_epoch: at most this many batches an epoch; None for all.
        first_epoch: epochs that are done.
        first_step: steps that are done of the epoch after those; their batches are
            left out, and not read.
    """
    images, labels = tf.constant(dataset.train.images), tf.constant(dataset.train.labels)
    examples = len(dataset.train)
    steps = min(examples // batch_size, steps_per_epoch or examples)

    def epoch_indices(epoch):
        order = tf.random.experimental.stateless_shuffle(
            tf.range(examples), seed=noise.seed_of(seed, "order", epoch)
        )
        batches = tf.reshape(order[: steps * batch_size], [steps, batch_size])
        done = tf.where(tf.equal(epoch, first_epoch), first_step, 0)
        return tf.data.Dataset.from_tensor_slices(batches[done:])

    def batch(step, indices):
        pixels = tf.gather(images, indices)
        if dataset.augment:
            pixels = random_crop_and_flip(pixels, noise.seed_of(seed, "augment", step))
        return to_float(pixels), tf.gather(labels, indices)

    return (
        tf.data.Dataset.range(first_epoch, epochs)
        .flat_map(epoch_indices)
        .enumerate(first_epoch * steps + first_step)
        .map(batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .prefetch(tf.data.AUTOTUNE)
    )


def evaluation_batches(split: Split, batch_size: int) -> tf.data.Dataset:
    """Every example of a split once, in order; the last batch may be smaller."""
    return (
        tf.data.Dataset.from_tensor_slices((split.images, split.labels))
        .batch(batch_size)
        .map(lambda images, labels: (to_float(images), labels))
        .prefetch(1)
    )
