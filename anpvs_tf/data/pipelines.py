"""tf.data pipelines of training and evaluation batches.

Their functions are written for graphs; to let AutoGraph convert them first takes half a second.
"""

from collections.abc import Iterable, Iterator

import tensorflow as tf

from anpvs_tf.common import randomness
from anpvs_tf.common.errors import TrainingError, one_line
from anpvs_tf.data.loading import Dataset
from anpvs_tf.data.splits import Split, StoredSplit


def readable(batches: Iterable, split: Split | StoredSplit) -> Iterator:
    """Yields `batches`, as long as the examples of `split`, from which they come, can be read.

    Raises:
        UsageError: files cannot be read; the message names them.
        TrainingError: an example could not be read, but no file is found damaged.
    """
    try:
        yield from batches
    except tf.errors.OpError as error:
        if isinstance(split, StoredSplit):
            split.check()
        raise TrainingError(
            f"the training data could not be read for a moment: {one_line(error)}; give "
            "the same command again to resume"
        ) from error


def to_float(images: tf.Tensor) -> tf.Tensor:
    """Converts uint8 pixels to float32 in [0, 1]."""
    return tf.cast(images, tf.float32) / 255.0


def random_crop_and_flip(
    images: tf.Tensor, seed: tf.Tensor, padding: int = 4, first: int = 0
) -> tf.Tensor:
    """Shifts each image by up to `padding` pixels (zeros enter) and mirrors half of them.

    Args:
        images: [batch, H, W, C], any dtype.
        seed: int32 [2].
        first: the images of the batch that come before these, of which they are a part.
    """
    batch, height, width = (images.shape[i] for i in range(3))
    padded = tf.pad(images, [[0, 0], [padding, padding], [padding, padding], [0, 0]])
    offsets = randomness.integers(
        [batch, 2], randomness.fold(seed, "crop"), 0, 2 * padding + 1, first
    )
    rows = offsets[:, :1] + tf.range(height)
    columns = offsets[:, 1:] + tf.range(width)
    mirrored = randomness.uniform([batch, 1], randomness.fold(seed, "flip"), first=first) < 0.5
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
    worker: int = 0,
    workers: int = 1,
) -> tf.data.Dataset:
    """Makes batches of (float32 images, int64 labels) of all epochs from `first_epoch` on.

    Each epoch visits the examples in an order of its own and drops the incomplete
    batch at its end, which has other examples in every epoch.

    Args:
        steps_per_epoch: at most this many batches an epoch; None for all.
        first_epoch: epochs that are done.
        first_step: steps that are done of the epoch after those; their batches are
            left out, and not read.
        worker, workers: which equal part of each batch to make, of how many; the parts in order
            are the batch, bit by bit.
    """
    read, examples = dataset.train.reader(), len(dataset.train)
    steps = min(examples // batch_size, steps_per_epoch or examples)
    part = batch_size // workers
    first = worker * part

    @tf.autograph.experimental.do_not_convert
    def epoch_indices(epoch):
        order = randomness.permutation(examples, randomness.seed_of(seed, "order", epoch))
        batches = tf.reshape(order[: steps * batch_size], [steps, batch_size])
        batches = batches[:, first : first + part]
        done = tf.where(tf.equal(epoch, first_epoch), first_step, 0)
        return tf.data.Dataset.from_tensor_slices(batches[done:])

    @tf.autograph.experimental.do_not_convert
    def batch(step, indices):
        pixels, labels = read(indices)
        if dataset.augment:
            drawn = randomness.seed_of(seed, "augment", step)
            pixels = random_crop_and_flip(pixels, drawn, first=first)
        return to_float(pixels), labels

    return (
        tf.data.Dataset.range(first_epoch, epochs)
        .flat_map(epoch_indices)
        .enumerate(first_epoch * steps + first_step)
        .map(batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .prefetch(tf.data.AUTOTUNE)
    )


def evaluation_batches(split: Split | StoredSplit, batch_size: int) -> tf.data.Dataset:
    """Makes batches of every example of a split once, in order; the last may be smaller."""
    read = split.reader()

    @tf.autograph.experimental.do_not_convert
    def batch(indices):
        images, labels = read(indices)
        return to_float(images), labels

    return tf.data.Dataset.range(len(split)).batch(batch_size).map(batch).prefetch(1)
