"""Splits, order, augmentation, and what happens without data."""

import dataclasses
import gc
import hashlib
import os

import numpy as np
import pytest
import tensorflow as tf
from image_files import noise_image, write

from anpvs_tf.common import randomness
from anpvs_tf.common.errors import UsageError
from anpvs_tf.data import folders, loading, pipelines, sources
from anpvs_tf.data.loading import Dataset, Split


@pytest.fixture(scope="module")
def digits():
    return loading.load("digits")


def toy(examples=10, augment=False):
    images = np.arange(examples * 64, dtype=np.uint8).reshape(examples, 8, 8, 1)
    split = Split(images, np.arange(examples))
    return Dataset("toy", examples, split, split, split, augment)


def test_digits_is_split_without_overlap(digits):
    sizes = [len(s) for s in (digits.train, digits.validation, digits.test)]
    assert sum(sizes) == 1797
    assert sizes[2] == 359
    assert digits.image_shape == (28, 28, 1)
    assert digits.train.images.dtype == np.uint8
    assert digits.train.images.max() == 255
    splits = (digits.train, digits.validation, digits.test)
    train, validation, test = ({image.tobytes() for image in s.images} for s in splits)
    assert not train & test
    assert not (train | test) & validation
    assert np.bincount(digits.test.labels).min() >= 20  # every class, in about equal shares


def test_each_epoch_visits_every_example_once_in_an_order_of_its_own():
    batches = list(pipelines.train_batches(toy(), 5, seed=3, epochs=3))
    labels = np.stack([b[1] for b in batches]).reshape(3, 10)
    for epoch in labels:
        assert sorted(epoch) == list(range(10))
    assert not np.array_equal(labels[0], labels[1])
    images, _ = batches[0]
    assert images.dtype == tf.float32
    expected = toy().train.images[labels[0][:5]] / np.float32(255)
    np.testing.assert_array_equal(images, expected)


def test_order_and_augmentation_are_functions_of_seed_and_epoch():
    def pixels(**kwargs):
        dataset = toy(augment=True)
        return [b[0].numpy() for b in pipelines.train_batches(dataset, 5, **kwargs)]

    all_epochs = pixels(seed=3, epochs=3)
    np.testing.assert_array_equal(all_epochs[4:], pixels(seed=3, epochs=3, first_epoch=2))
    assert not np.array_equal(all_epochs, pixels(seed=4, epochs=3))


def digest(batches):
    found = hashlib.sha256()
    for images, labels in batches:
        found.update(images.numpy().tobytes() + labels.numpy().tobytes())
    return found.hexdigest()[:16]


def test_batches_are_the_ones_of_earlier_versions():
    """A run that an earlier version began goes on with the batches that it would have seen."""
    plain = pipelines.train_batches(toy(40), 8, seed=3, epochs=2)
    augmented = pipelines.train_batches(toy(40, augment=True), 8, seed=3, epochs=2)
    assert (digest(plain), digest(augmented)) == ("0785e4a9bc250d53", "783a42b5bd66e70c")


@pytest.mark.parametrize(("epoch", "step"), [(0, 1), (1, 3), (1, 4), (2, 0)])
def test_what_is_left_of_an_epoch_is_the_tail_of_the_whole(epoch, step):
    choice = {"batch_size": 4, "seed": 3, "epochs": 3, "steps_per_epoch": 4}
    whole = list(pipelines.train_batches(toy(20, augment=True), **choice))
    left = list(
        pipelines.train_batches(toy(20, augment=True), **choice, first_epoch=epoch, first_step=step)
    )
    assert len(left) == 12 - 4 * epoch - step
    for expected, found in zip(whole[-len(left) :], left, strict=True):
        np.testing.assert_array_equal(expected[0], found[0])
        np.testing.assert_array_equal(expected[1], found[1])


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_make_their_own_parts_of_a_batch_and_no_more(workers):
    data = toy(20, augment=True)
    choice = {"batch_size": 6, "seed": 3, "epochs": 2}
    read, sizes = data.train.reader(), set()

    def counted(indices):
        sizes.add(indices.shape[0])
        return read(indices)

    split = type("Counted", (), {"reader": lambda _: counted, "__len__": lambda _: 20})()
    counting = dataclasses.replace(data, train=split)
    parts = [
        pipelines.train_batches(counting, **choice, worker=worker, workers=workers)
        for worker in range(workers)
    ]
    whole = list(pipelines.train_batches(data, **choice))
    assert len(whole) == 6
    for expected, *found in zip(whole, *parts, strict=True):
        for i in range(2):
            joined = np.concatenate([batch[i] for batch in found])
            np.testing.assert_array_equal(joined, expected[i])
    assert sizes == {6 // workers}


def test_incomplete_batches_are_dropped_and_steps_are_limited():
    assert len(list(pipelines.train_batches(toy(), 4, 0, 1))) == 2
    assert len(list(pipelines.train_batches(toy(), 4, 0, 2, steps_per_epoch=1))) == 2


def test_every_evaluation_example_counts_once():
    batches = list(pipelines.evaluation_batches(toy().test, 4))
    assert [len(b[1]) for b in batches] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate([b[1] for b in batches]), np.arange(10))


def test_crop_and_flip_is_a_shifted_and_mirrored_window():
    images = tf.constant(np.random.default_rng(0).integers(1, 255, (64, 6, 6, 2)), tf.float32)
    augmented = pipelines.random_crop_and_flip(images, randomness.seed_of(0), padding=2).numpy()
    padded = np.pad(images, [(0, 0), (2, 2), (2, 2), (0, 0)])
    found = set()
    for i in range(64):
        for dy in range(5):
            for dx in range(5):
                window = padded[i, dy : dy + 6, dx : dx + 6]
                for mirrored in (False, True):
                    if np.array_equal(augmented[i], window[:, ::-1] if mirrored else window):
                        found.add((i, dy, dx, mirrored))
    assert len(found) == 64  # each image is exactly one window
    assert {f[3] for f in found} == {False, True}
    assert {f[1] for f in found} == {f[2] for f in found} == set(range(5))


def test_absent_data_is_one_clear_line_and_leaves_nothing(tmp_path):
    with pytest.raises(UsageError, match=r"mnist is not in .*; pass --data_dir.*TFDS_DATA_DIR"):
        loading.load("mnist", str(tmp_path), download=False)
    assert not list(tmp_path.iterdir())


def test_a_data_directory_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match=r"mnist in .*file cannot be read"):
        loading.load("mnist", str(tmp_path / "file"))


def test_a_failed_download_is_one_clear_line_and_leaves_nothing(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def fail(self, **kwargs):
        (tmp_path / "new" / "downloads").mkdir(parents=True)
        raise OSError("no\nnetwork")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(UsageError, match=r"could not be downloaded \(no network\)"):
        loading.load("mnist", str(tmp_path / "new"))
    assert not list(tmp_path.iterdir())


def test_bad_choices():
    with pytest.raises(UsageError, match=r"unknown dataset 'svhn'; choose one of digits, mnist"):
        loading.load("svhn")
    with pytest.raises(UsageError, match=r"train_examples=5000 is more than the 1295"):
        loading.load("digits", train_examples=5000)


# ---- Streamed ----


@pytest.fixture
def folder(tmp_path):
    """70 coloured images in two classes; some have to be resized. Returns its source."""
    for i in range(70):
        shape = (12, 12, 3) if i % 3 else (9, 15, 3)
        write(
            tmp_path / ("train", "test")[i % 7 == 0] / "ab"[i % 2] / f"{i}.png", noise_image(*shape)
        )
    return sources.describe(f"folder:{tmp_path}", (12, 12))


def assert_same_batches(some, others):
    for expected, found in zip(some, others, strict=True):
        np.testing.assert_array_equal(expected[0], found[0])
        np.testing.assert_array_equal(expected[1], found[1])


def test_streamed_batches_are_those_in_memory(folder):
    held, streamed = (loading.load(folder, stream=stream) for stream in (False, True))
    assert held.augment
    choice = {"batch_size": 8, "seed": 3, "epochs": 3}
    whole = list(pipelines.train_batches(held, **choice))
    assert len(whole) == 18
    assert_same_batches(whole, pipelines.train_batches(streamed, **choice))
    tail = pipelines.train_batches(streamed, **choice, first_epoch=1, first_step=4)
    assert_same_batches(whole[10:], tail)
    assert_same_batches(
        pipelines.evaluation_batches(held.test.take(7), 3),
        pipelines.evaluation_batches(streamed.test.take(7), 3),
    )


def test_a_streamed_split_is_indexed_like_arrays(folder):
    held, streamed = (loading.load_evaluated(folder, stream=stream) for stream in (False, True))
    assert streamed.images.shape == held.images.shape
    np.testing.assert_array_equal(streamed.labels, held.labels)
    for rows in (slice(None), slice(2, 5), np.array([4, 0, 4]), slice(0, 0)):
        np.testing.assert_array_equal(streamed.images[rows], held.images[rows])
    np.testing.assert_array_equal(np.asarray(streamed.images), held.images)


def test_the_validation_split_alone_is_the_one_of_training(folder):
    for source, stream in (("digits", False), (folder, False), (folder, True)):
        of_training = loading.load(source, stream=stream).validation
        alone = loading.load_evaluated(source, stream=stream, split="validation")
        assert len(alone) == len(of_training) < len(loading.load_evaluated(source))
        np.testing.assert_array_equal(alone.images[:], of_training.images[:])
        np.testing.assert_array_equal(alone.labels, of_training.labels)


def test_what_is_skipped_is_not_read(folder, tmp_path):
    data = dataclasses.replace(loading.load(folder, stream=True), augment=False)
    choice = {"batch_size": 8, "seed": 3, "epochs": 1}
    whole = list(pipelines.train_batches(data, **choice))
    needed = {image.tobytes() for images, _ in whole[4:] for image in images.numpy()}
    images = pipelines.to_float(data.train.images[:]).numpy()
    names = folders.survey(str(tmp_path)).files["train"].names
    for name, image in zip(names, images, strict=False):
        if image.tobytes() not in needed:
            (tmp_path / "train" / name.decode()).unlink()
    assert_same_batches(whole[4:], pipelines.train_batches(data, **choice, first_step=4))
    with pytest.raises(tf.errors.NotFoundError):
        list(pipelines.train_batches(data, **choice, first_step=3))


def test_a_file_that_is_damaged_meanwhile_is_named(folder, tmp_path):
    data = loading.load(folder, stream=True)
    batches = pipelines.readable(pipelines.train_batches(data, 8, 0, epochs=1), data.train)
    next(batches)
    for file in (tmp_path / "train" / "a").iterdir():
        file.write_bytes(b"not any more")
    with pytest.raises(UsageError, match=r"file\(s\) in folder .*train are no readable.*a/16.png"):
        list(pipelines.readable(pipelines.train_batches(data, 8, 0, epochs=1), data.train))


def test_a_folder_that_has_changed_is_not_trained_on(folder, tmp_path):
    write(tmp_path / "train" / "a" / "more.png", noise_image(12, 12, 3))
    with pytest.raises(UsageError, match=r"has other files now"):
        loading.load(folder)
    assert len(loading.load_evaluated(folder)) == 10


def test_streaming_leaves_nothing_behind(folder):
    data = loading.load(folder, stream=True)
    batches = iter(pipelines.train_batches(data, 8, 0, epochs=40))
    held = []
    for epoch in range(1, 41):
        for _ in range(6):
            next(batches)
        if epoch in (10, 40):
            gc.collect()
            held.append((len(gc.get_objects()), len(os.listdir("/proc/self/fd"))))
    assert held[1][0] - held[0][0] < 30
    assert held[1][1] <= held[0][1]
