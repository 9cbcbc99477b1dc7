"""Datasets with their splits, in memory or on disk, and tf.data pipelines over them.

The order of the training examples and their augmentation are functions of
(seed, epoch) and (seed, step); a run that is continued sees what it would have
seen, in memory or streamed. Images leave the pipelines as float32 in [0, 1].
"""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np
import tensorflow as tf

from anpvs_tf import folders, noise, tfds_data
from anpvs_tf.errors import TrainingError, UsageError, one_line
from anpvs_tf.sources import SOURCES, Source, describe
from anpvs_tf.splits import Split, StoredSplit

# Examples held out of a training set that has no validation split, at most a tenth of it.
VALIDATION_EXAMPLES = 5_000


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Three disjoint splits, in memory or to be read from disk.

    Attributes:
        augment: as in `Source`.
    """

    name: str
    classes: int
    train: Split | StoredSplit
    validation: Split | StoredSplit
    test: Split | StoredSplit
    augment: bool

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.train.image_shape


def load(
    source: Source | str,
    data_dir: str | None = None,
    download: bool = True,
    train_examples: int | None = None,
    stream: bool = False,
    check: bool = True,
) -> Dataset:
    """Loads a dataset into memory, or opens it.

    A dataset without a validation split gives the end of its training set, which is in
    a mixed order: `VALIDATION_EXAMPLES`, and at most a tenth.

    Args:
        source: the dataset, or its name, as for `sources.describe`.
        data_dir: where TFDS keeps its data; None for `TFDS_DATA_DIR` or its default.
        download: let TFDS fetch a dataset that is absent.
        train_examples: keep only the first of the training split.
        stream: leave the images on disk, but for `digits`.
        check: of what stays on disk: read it once, so that damaged files are found now.

    Raises:
        UsageError: unknown name, absent or damaged data, too many `train_examples`.
    """
    if isinstance(source, str):
        source = describe(source, data_dir=data_dir)
    found = _splits(source, {"train", "validation", "test"}, data_dir, download, stream, check)
    train, validation, held_out = found["train"], found.get("validation"), 0
    if validation is None:
        held_out = min(VALIDATION_EXAMPLES, max(1, len(train) // 10))
        available = len(train) - held_out
        train, validation = train.part(0, available), train.part(available)
    if train_examples is not None and train_examples > len(train):
        raise UsageError(
            f"--train_examples={train_examples} is more than the {len(train)} training "
            f"examples of {source.name} ({held_out} are held out for validation)"
        )
    return Dataset(
        name=source.name,
        classes=source.classes,
        train=train.take(train_examples),
        validation=validation,
        test=found["test"],
        augment=source.augment,
    )


def load_test(
    source: Source | str, data_dir: str | None = None, download: bool = True, stream: bool = False
) -> Split | StoredSplit:
    """The test split alone; else as `load`."""
    if isinstance(source, str):
        source = describe(source, data_dir=data_dir)
    return _splits(source, {"test"}, data_dir, download, stream, True)["test"]


def _splits(
    source: Source,
    wanted: set[str],
    data_dir: str | None,
    download: bool,
    stream: bool,
    check: bool,
) -> dict[str, Split | StoredSplit]:
    if source.name == "digits":
        return _digits()
    kind, _, rest = source.name.partition(":")
    if kind == "folder":
        folder = folders.survey(rest)
        # Whoever trains wants the very files; whoever evaluates, the classes.
        if folder.class_names != source.class_names or (
            "train" in wanted and folder.version != source.version
        ):
            raise UsageError(f"folder {rest} has other files now than when it was first looked at")
        kind, parts = folders, folder.files
    else:
        kind, parts = tfds_data, tfds_data.survey(rest or kind, data_dir, download)
    found, errors = {}, []
    for role in sorted(wanted & parts.keys()):
        try:
            if stream:
                found[role] = kind.stored(parts[role], source.image_shape)
                if check:
                    found[role].check()
            else:
                found[role] = kind.in_memory(parts[role], source.image_shape)
            if not len(found[role]):
                raise UsageError(f"dataset {source.name} has no examples to {role} on")
        except UsageError as error:
            errors.append(str(error))
    if errors:
        raise UsageError("; ".join(errors))
    return found


def _digits() -> dict[str, Split]:
    """scikit-learn's 1,797 handwritten digits, enlarged from 8 x 8; a fifth is the test set."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = pixels.reshape(-1, 8, 8, 1) / 16.0
    images = tf.image.resize(images, SOURCES["digits"].image_shape[:2], "bicubic").numpy()
    images = np.round(np.clip(images, 0.0, 1.0) * 255.0).astype(np.uint8)
    # The file is ordered by writer; the published order would put writers apart.
    order = np.random.default_rng(0).permutation(len(labels))
    whole = Split(images[order], labels[order].astype(np.int64))
    test = len(whole) // 5
    return {"train": whole.part(test), "test": whole.part(0, test)}


def readable(batches: Iterable, split: Split | StoredSplit) -> Iterator:
    """`batches`, as long as the examples of `split`, which are behind them, can be read.

    Raises:
        UsageError: with the names of files that cannot.
        TrainingError: none of them is damaged now.
    """
    try:
        yield from batches
    except tf.errors.OpError as error:
        if isinstance(split, StoredSplit):
            split.check()
        raise TrainingError(
            f"the training data could not be read for a moment: {one_line(error)}; give "
            "the same command again to go on"
        ) from error


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
    read, examples = dataset.train.reader(), len(dataset.train)
    steps = min(examples // batch_size, steps_per_epoch or examples)

    def epoch_indices(epoch):
        order = tf.random.experimental.stateless_shuffle(
            tf.range(examples), seed=noise.seed_of(seed, "order", epoch)
        )
        batches = tf.reshape(order[: steps * batch_size], [steps, batch_size])
        done = tf.where(tf.equal(epoch, first_epoch), first_step, 0)
        return tf.data.Dataset.from_tensor_slices(batches[done:])

    def batch(step, indices):
        pixels, labels = read(indices)
        if dataset.augment:
            pixels = random_crop_and_flip(pixels, noise.seed_of(seed, "augment", step))
        return to_float(pixels), labels

    return (
        tf.data.Dataset.range(first_epoch, epochs)
        .flat_map(epoch_indices)
        .enumerate(first_epoch * steps + first_step)
        .map(batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .prefetch(tf.data.AUTOTUNE)
    )


def evaluation_batches(split: Split | StoredSplit, batch_size: int) -> tf.data.Dataset:
    """Every example of a split once, in order; the last batch may be smaller."""
    read = split.reader()

    def batch(indices):
        images, labels = read(indices)
        return to_float(images), labels

    return tf.data.Dataset.range(len(split)).batch(batch_size).map(batch).prefetch(1)
