"""Splits, order, augmentation, and what happens without data."""

import hashlib

import numpy as np
import pytest
import tensorflow as tf

from anpvs_tf import datasets, noise
from anpvs_tf.datasets import Dataset, Split
from anpvs_tf.errors import UsageError


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits")


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
    batches = list(datasets.train_batches(toy(), 5, seed=3, epochs=3))
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
        return [b[0].numpy() for b in datasets.train_batches(dataset, 5, **kwargs)]

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
    plain = datasets.train_batches(toy(40), 8, seed=3, epochs=2)
    augmented = datasets.train_batches(toy(40, augment=True), 8, seed=3, epochs=2)
    assert (digest(plain), digest(augmented)) == ("0785e4a9bc250d53", "783a42b5bd66e70c")


@pytest.mark.parametrize(("epoch", "step"), [(0, 1), (1, 3), (1, 4), (2, 0)])
def test_what_is_left_of_an_epoch_is_the_tail_of_the_whole(epoch, step):
    choice = {"batch_size": 4, "seed": 3, "epochs": 3, "steps_per_epoch": 4}
    whole = list(datasets.train_batches(toy(20, augment=True), **choice))
    left = list(
        datasets.train_batches(toy(20, augment=True), **choice, first_epoch=epoch, first_step=step)
    )
    assert len(left) == 12 - 4 * epoch - step
    for expected, found in zip(whole[-len(left) :], left, strict=True):
        np.testing.assert_array_equal(expected[0], found[0])
        np.testing.assert_array_equal(expected[1], found[1])


def test_incomplete_batches_are_dropped_and_steps_are_limited():
    assert len(list(datasets.train_batches(toy(), 4, 0, 1))) == 2
    assert len(list(datasets.train_batches(toy(), 4, 0, 2, steps_per_epoch=1))) == 2


def test_every_evaluation_example_counts_once():
    batches = list(datasets.evaluation_batches(toy().test, 4))
    assert [len(b[1]) for b in batches] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate([b[1] for b in batches]), np.arange(10))


def test_crop_and_flip_is_a_shifted_and_mirrored_window():
    images = tf.constant(np.random.default_rng(0).integers(1, 255, (64, 6, 6, 2)), tf.float32)
    augmented = datasets.random_crop_and_flip(images, noise.seed_of(0), padding=2).numpy()
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
        datasets.load("mnist", str(tmp_path), download=False)
    assert not list(tmp_path.iterdir())


def test_a_data_directory_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match=r"mnist in .*file cannot be read"):
        datasets.load("mnist", str(tmp_path / "file"))


def test_a_failed_download_is_one_clear_line_and_leaves_nothing(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def fail(self, **kwargs):
        (tmp_path / "new" / "downloads").mkdir(parents=True)
        raise OSError("no\nnetwork")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(UsageError, match=r"could not be downloaded \(no network\)"):
        datasets.load("mnist", str(tmp_path / "new"))
    assert not list(tmp_path.iterdir())


def test_tfds_splits_reach_the_arrays(monkeypatch):
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data(num_examples=40):
        dataset = datasets.load("cifar10", train_examples=30)
    assert dataset.image_shape == (32, 32, 3)
    assert [len(s) for s in (dataset.train, dataset.validation, dataset.test)] == [30, 4, 40]
    assert dataset.augment


def test_bad_choices():
    with pytest.raises(UsageError, match=r"unknown dataset 'svhn'; choose one of digits, mnist"):
        datasets.load("svhn")
    with pytest.raises(UsageError, match=r"train_examples=5000 is more than the 1295"):
        datasets.load("digits", train_examples=5000)
