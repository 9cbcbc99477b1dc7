"""Datasets with their splits, in memory or on disk, and tf.data pipelines over them.

The order of the training examples and their augmentation are functions of
(seed, epoch) and (seed, step); a resumed run sees the batches that it would have
seen uninterrupted, in memory or streamed. Images leave the pipelines as float32 in [0, 1].
"""

import dataclasses

import numpy as np
import tensorflow as tf

from anpvs_tf.common.errors import UsageError
from anpvs_tf.data import folders, tfds
from anpvs_tf.data.sources import SOURCES, Source, describe
from anpvs_tf.data.splits import Split, StoredSplit

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

    If a dataset has no validation split, the end of its training set, which is in a mixed
    order, is held out: `VALIDATION_EXAMPLES`, and at most a tenth.

    Args:
        source: the dataset, or its name, as for `sources.describe`.
        data_dir: where TFDS keeps its data; None for `TFDS_DATA_DIR` or its default.
        download: let TFDS fetch a dataset that is absent.
        train_examples: keep only the first of the training split.
        stream: leave the images on disk, but for `digits`.
        check: read the data that stays on disk once, so that damaged files are found now.

    Raises:
        UsageError: unknown name, absent or damaged data, too many `train_examples`.
    """
    if isinstance(source, str):
        source = describe(source, data_dir=data_dir)
    found = _splits(source, {"train", "validation", "test"}, data_dir, download, stream, check)
    held_out = 0 if "validation" in found else _held_out(found["train"])
    train, validation = _with_validation(found)
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


def load_evaluated(
    source: Source | str,
    data_dir: str | None = None,
    download: bool = True,
    stream: bool = False,
    split: str = "test",
) -> Split | StoredSplit:
    """Loads one split alone, of `sources.EVALUATED`; else as `load`."""
    if isinstance(source, str):
        source = describe(source, data_dir=data_dir)
    wanted = {"test"} if split == "test" else {"train", "validation"}
    found = _splits(source, wanted, data_dir, download, stream, True)
    return found["test"] if split == "test" else _with_validation(found)[1]


def _held_out(train: Split | StoredSplit) -> int:
    return min(VALIDATION_EXAMPLES, max(1, len(train) // 10))


def _with_validation(found: dict[str, Split | StoredSplit]) -> tuple[Split | StoredSplit, ...]:
    """Returns the training and the validation split, which is held out of training if absent."""
    train = found["train"]
    if "validation" in found:
        return train, found["validation"]
    available = len(train) - _held_out(train)
    return train.part(0, available), train.part(available)


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
        # Training needs the same files as when the run began; evaluation needs the same classes.
        if folder.class_names != source.class_names or (
            "train" in wanted and folder.version != source.version
        ):
            raise UsageError(f"folder {rest} has other files now than when it was first looked at")
        kind, parts = folders, folder.files
    else:
        kind, parts = tfds, tfds.survey(rest or kind, data_dir, download)
    found, bad = {}, {}
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
        except folders.BadFiles as error:
            bad |= error.names
    if bad:
        raise folders.BadFiles(bad)
    return found


def _digits() -> dict[str, Split]:
    """Loads scikit-learn's 1,797 handwritten digits, enlarged from 8 x 8, a fifth as test set."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = pixels.reshape(-1, 8, 8, 1) / 16.0
    images = tf.image.resize(images, SOURCES["digits"].image_shape[:2], "bicubic").numpy()
    images = np.round(np.clip(images, 0.0, 1.0) * 255.0).astype(np.uint8)
    # The file is ordered by writer: in that order, the splits would have different writers.
    order = np.random.default_rng(0).permutation(len(labels))
    whole = Split(images[order], labels[order].astype(np.int64))
    test = len(whole) // 5
    return {"train": whole.part(test), "test": whole.part(0, test)}
