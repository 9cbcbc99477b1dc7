"""Image classification datasets of TensorFlow Datasets: in memory, or at random from its files."""

import contextlib
import dataclasses
import mmap
import os
import shutil
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from anpvs_tf.common.errors import UsageError, one_line
from anpvs_tf.data import splits
from anpvs_tf.data.splits import Split, StoredSplit

# A TFRecord: uint64 length, uint32 checksum of it, the bytes, uint32 checksum of them.
_HEADER, _FRAME = 12, 16


def builder_of(name: str, data_dir: str | None) -> Any:
    """Makes TFDS's builder of a dataset, which need not be on this machine yet.

    Raises:
        UsageError: TFDS knows no dataset of this name, or its files cannot be read.
    """
    import tensorflow_datasets as tfds

    root = os.path.expanduser(data_dir or str(tfds.core.constants.DATA_DIR))
    try:
        return tfds.builder(name, data_dir=root)
    except tfds.core.registered.DatasetNotFoundError as error:
        raise UsageError(
            f"TFDS has no dataset {name!r}, and {root} holds none; see "
            "https://www.tensorflow.org/datasets/catalog/overview"
        ) from error
    except Exception as error:  # Damaged files end in errors of TFDS, TensorFlow or the system.
        raise UsageError(f"dataset {name} in {root} cannot be read: {one_line(error)}") from error


@dataclasses.dataclass(frozen=True)
class Description:
    """channels: 1, or 3 where images have colour or may have it; version: "name/version"."""

    channels: int
    class_names: tuple[str, ...]
    version: str


def describe(name: str, data_dir: str | None) -> Description:
    """Reads TFDS's description of a dataset, without its data.

    Raises:
        UsageError: an unknown dataset, or no classification of uint8 images with integer labels.
    """
    import tensorflow_datasets as tfds

    info = builder_of(name, data_dir).info
    keys = info.supervised_keys or ()
    if len(keys) == 2 and all(key in info.features for key in keys):
        image, label = (info.features[key] for key in keys)
        if (
            isinstance(image, tfds.features.Image)
            and isinstance(label, tfds.features.ClassLabel)
            and image.np_dtype == np.uint8
            and label.num_classes
        ):
            channels = 1 if image.shape[-1] == 1 else 3
            return Description(channels, tuple(label.names), info.full_name)
    raise UsageError(
        f"tfds:{name} is no image classification dataset: uint8 images and one class label "
        f"as TFDS's supervised keys were expected; it has {keys or 'none'}"
    )


def prepared(name: str, data_dir: str | None, download: bool) -> Any:
    """Returns the builder of a dataset; downloads the data if it is not on this machine.

    Raises:
        UsageError: the data is absent, and cannot or may not be downloaded.
    """
    import tensorflow_datasets as tfds

    root = os.path.expanduser(data_dir or str(tfds.core.constants.DATA_DIR))
    try:
        existed = os.path.exists(root)
        held_before = set(os.listdir(root)) if existed else set()
    except OSError as error:
        raise UsageError(f"dataset {name} in {root} cannot be read: {one_line(error)}") from error
    builder = builder_of(name, data_dir)
    if not builder.data_path.exists():
        if not download:
            raise UsageError(
                f"dataset {name} is not in {root}; pass --data_dir (or set TFDS_DATA_DIR) "
                "to a directory that TFDS prepared, or allow --download"
            )
        _download(builder, root, existed, held_before)
    return builder


@dataclasses.dataclass(frozen=True)
class Part:
    """The rows of one of TFDS's splits; None for all."""

    builder: Any
    split: str
    rows: np.ndarray | None

    def features(self, *keys: str) -> Any:
        """Returns a parser of these features, and no others, of a record."""
        import tensorflow_datasets as tfds

        return tfds.features.FeaturesDict({key: self.builder.info.features[key] for key in keys})


def survey(name: str, data_dir: str | None, download: bool) -> dict[str, Part]:
    """Finds the rows of "train", "test" and, if there is one, "validation"; prepares the data.

    Without a test split, "validation" is the test set, and without that, the first fifth
    of the training examples, in a mixed order.

    Args:
        data_dir: where TFDS keeps its data; None for `TFDS_DATA_DIR` or its default.
        download: fetch a dataset that is absent.

    Raises:
        UsageError: the data is absent and cannot or may not be downloaded, or has no training
            split.
    """
    builder = prepared(name, data_dir, download)
    held = builder.info.splits
    if "train" not in held:
        raise UsageError(f"dataset {name} has no split train, only {', '.join(held)}")

    def part(split):
        # TFDS mixes the examples when it prepares them, but for some datasets.
        ordered, count = builder.info.disable_shuffling, held[split].num_examples
        rows = np.random.default_rng(0).permutation(count) if ordered else None
        return Part(builder, split, rows)

    found = {role: part(role) for role in ("train", "validation", "test") if role in held}
    if "test" not in found and "validation" in found:
        found["test"] = found.pop("validation")
    if "test" not in found:
        rows = found["train"].rows
        rows = np.arange(held["train"].num_examples) if rows is None else rows
        cut = len(rows) // 5
        found = {
            "test": Part(builder, "train", rows[:cut]),
            "train": Part(builder, "train", rows[cut:]),
        }
    return found


def in_memory(part: Part, image_shape: tuple[int, int, int]) -> Split:
    """Reads a split into memory, its images made to fit `image_shape`.

    Raises:
        UsageError: the data is damaged, or has labels that are no classes.
    """
    import tensorflow_datasets as tfds

    # In the order of the files, as `stored`.
    config = tfds.ReadConfig(interleave_cycle_length=1)
    with _readable(part):
        examples = part.builder.as_dataset(
            split=part.split, as_supervised=True, read_config=config
        ).map(lambda image, label: (splits.fit(image, image_shape), label), tf.data.AUTOTUNE)
        images, labels = zip(*examples.batch(1000).as_numpy_iterator(), strict=True)
        whole = Split(np.concatenate(images), np.concatenate(labels).astype(np.int64))
        _check_labels(part, whole.labels)
    return whole if part.rows is None else Split(whole.images[part.rows], whole.labels[part.rows])


def stored(part: Part, image_shape: tuple[int, int, int]) -> StoredSplit:
    """Makes a split of the examples of `in_memory`, in the same order, to be read from disk.

    Only its `check` compares checksums.
    """
    info = part.builder.info
    if info.file_format.value != "tfrecord":
        raise UsageError(
            f"--stream reads TFDS's tfrecord files only, and {info.full_name} is prepared as "
            f"{info.file_format.value}; leave --stream out, or prepare it again"
        )
    with _readable(part):
        paths = info.splits[part.split].filepaths
        records = Records([os.fspath(path) for path in paths])
    rows = np.arange(len(records)) if part.rows is None else part.rows
    signature = (tf.TensorSpec(image_shape, tf.uint8), tf.TensorSpec([], tf.int64))

    image, label = info.supervised_keys
    both, label_alone = part.features(image, label), part.features(label)

    def one(record):
        example = both.deserialize_example(record)
        return splits.fit(example[image], image_shape), tf.cast(example[label], tf.int64)

    def read(numbers):
        found = tf.numpy_function(records.__getitem__, [numbers], tf.string, stateful=False)
        return tf.map_fn(one, tf.ensure_shape(found, numbers.shape), fn_output_signature=signature)

    def check():
        with _readable(part):
            parsed = tf.data.TFRecordDataset(records.paths).map(label_alone.deserialize_example)
            for batch in parsed.batch(1000).as_numpy_iterator():
                _check_labels(part, batch[label])

    return StoredSplit(read, rows, image_shape, check)


def _check_labels(part: Part, labels: np.ndarray) -> None:
    label = part.builder.info.supervised_keys[1]
    classes = part.builder.info.features[label].num_classes
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise UsageError(
            f"split {part.split} of {part.builder.info.full_name} has labels from {labels.min()} "
            f"to {labels.max()}; 0 to {classes - 1} were expected"
        )


@contextlib.contextmanager
def _readable(part: Part) -> Iterator[None]:
    try:
        yield
    except UsageError:
        raise
    except Exception as error:  # Damaged files end in errors of TFDS, TensorFlow or the system.
        name = part.builder.name
        raise UsageError(f"dataset {name} cannot be read: {one_line(error)}") from error


class Records:
    """TFRecord files whose records are read by number.

    Indexing takes an array of numbers and returns an array of bytes.

    Raises:
        OSError: a file is absent, or does not end where a record ends.
    """

    def __init__(self, paths: list[str]):
        self.paths = paths
        self.files = [open(path, "rb", buffering=0) for path in paths]  # noqa: SIM115
        begins = [_begins(file) for file in self.files]
        self.file_of = np.repeat(
            np.arange(len(paths), dtype=np.int32), [len(b) - 1 for b in begins]
        )
        self.begins = np.concatenate([b[:-1] for b in begins])
        self.lengths = np.concatenate([np.diff(b) - _FRAME for b in begins])

    def __len__(self) -> int:
        return len(self.begins)

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
        found = np.empty(len(numbers), object)
        for i, number in enumerate(numbers):
            file = self.files[self.file_of[number]].fileno()
            found[i] = os.pread(file, self.lengths[number], self.begins[number] + _HEADER)
        return found


def _begins(file) -> np.ndarray:
    """Finds where each record of a TFRecord file begins, and the end of the last."""
    size = os.fstat(file.fileno()).st_size
    found = [0]
    if size:
        with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as content:
            length_at = struct.Struct("<Q").unpack_from
            while found[-1] + _FRAME <= size:
                found.append(found[-1] + _FRAME + length_at(content, found[-1])[0])
    if found[-1] != size:
        raise OSError(f"{file.name} is cut off")
    return np.asarray(found, np.int64)


def _download(builder, root: str, existed: bool, held_before: set[str]) -> None:
    """Downloads and prepares a dataset; a failure leaves `root` as it was."""
    try:
        builder.download_and_prepare()
    except Exception as error:  # TFDS raises many kinds: network, checksum, disk.
        for entry in {builder.name, "downloads"} - held_before:
            shutil.rmtree(os.path.join(root, entry), ignore_errors=True)
        if not existed:
            shutil.rmtree(root, ignore_errors=True)
        raise UsageError(
            f"dataset {builder.name} is not in {root} and could not be downloaded "
            f"({one_line(error)}); connect, or pass --data_dir (or set TFDS_DATA_DIR) to a "
            "directory that TFDS prepared"
        ) from error
