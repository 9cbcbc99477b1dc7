"""Datasets of TFDS by name: a small one is prepared here, in several files."""

import shutil

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath

from anpvs_tf.common.errors import UsageError
from anpvs_tf.data import loading, pipelines, sources
from anpvs_tf.data.tfds import Records
from anpvs_tf.runs import resolution

SIZES = {"train": 37, "validation": 5, "test": 11}


def example(split, i):
    """The image is as large and as dark as its number says; PNG keeps it exactly."""
    image = np.full((6 + i % 3, 7, 3), 5 * i, np.uint8)
    return {"image": image, "label": i % 4, "name": f"{split} {i}"}


class NumberedGreys(tfds.core.GeneratorBasedBuilder):
    """As its configurations say; "unlabelled" is the test set, as of a competition."""

    VERSION = tfds.core.Version("1.2.3")
    pkg_dir_path = epath.Path(__file__).parent  # TFDS looks for citations there.
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name="all"),
        tfds.core.BuilderConfig(name="untested"),
        tfds.core.BuilderConfig(name="alone"),
        tfds.core.BuilderConfig(name="ordered"),
        tfds.core.BuilderConfig(name="unlabelled"),
    ]

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=["ash", "birch", "cedar", "date"]),
            "name": tfds.features.Text(),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            disable_shuffling=self.builder_config.name == "ordered",
        )

    def _split_generators(self, dl_manager):
        held = {"untested": ("train", "validation"), "alone": ("train",), "ordered": ("train",)}
        names = held.get(self.builder_config.name, SIZES)
        return {name: self._generate_examples(name) for name in names}

    def _generate_examples(self, split):
        for i in range(SIZES[split]):
            found = example(split, i)
            if self.builder_config.name == "unlabelled" and split == "test":
                found["label"] = -1
            yield i, found


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    root = str(tmp_path_factory.mktemp("tfds"))
    for config in NumberedGreys.BUILDER_CONFIGS:
        builder = tfds.builder(f"numbered_greys/{config.name}", data_dir=root)
        how = tfds.download.DownloadConfig(num_shards=3)
        builder.download_and_prepare(download_config=how)
    return root


def numbers(split):
    """Which example each image is."""
    return (np.asarray(split.images)[:, 0, 0, 0] // 5).tolist()


def load(data_dir, config="all", **kwargs):
    source = sources.describe(f"tfds:numbered_greys/{config}", (8, 8), data_dir=data_dir)
    return loading.load(source, data_dir, download=False, **kwargs)


def test_a_description_needs_no_data(tmp_path):
    source = sources.describe("tfds:numbered_greys", data_dir=str(tmp_path))
    assert source.image_shape == (32, 32, 3)
    assert source.class_names == ("ash", "birch", "cedar", "date")
    assert source.version == "numbered_greys/all/1.2.3"
    chosen = resolution.resolve(
        {"dataset": "tfds:numbered_greys", "channels": 1}, "published", None
    )
    assert (chosen.image_size, chosen.classes, chosen.network) == ((28, 28), 4, "lenet5")
    with pytest.raises(UsageError, match=r"numbered_greys is not in .*; pass --data_dir"):
        loading.load("tfds:numbered_greys", str(tmp_path), download=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stream", [False, True])
def test_splits_and_labels(data_dir, stream):
    data = load(data_dir, stream=stream)
    for role, size in SIZES.items():
        split = getattr(data, role)
        assert split.images.shape == (size, 8, 8, 3)
        assert sorted(numbers(split)) == list(range(size))
        assert [n % 4 for n in numbers(split)] == split.labels.tolist()
    assert numbers(load(data_dir, stream=stream, train_examples=9).train) == numbers(data.train)[:9]
    data = load(data_dir, "untested", stream=stream)
    assert sorted(numbers(data.test)) == list(range(5))  # validation tests
    assert sorted(numbers(data.train) + numbers(data.validation)) == list(range(37))
    for config in ("alone", "ordered"):
        data = load(data_dir, config, stream=stream)
        test, rest = numbers(data.test), numbers(data.train) + numbers(data.validation)
        assert [len(data.test), len(data.train), len(data.validation)] == [7, 27, 3]
        assert sorted(test + rest) == list(range(37))
        assert test != list(range(7))  # mixed, although "ordered" lies in order


@pytest.mark.parametrize("config", ["all", "ordered"])
def test_streamed_batches_are_those_in_memory(data_dir, config):
    streamed, held = (load(data_dir, config, stream=stream) for stream in (True, False))
    assert not isinstance(streamed.train.images, np.ndarray)
    choice = {"batch_size": 4, "seed": 1, "epochs": 2, "first_step": 3}
    whole = list(pipelines.train_batches(held, **choice))
    assert len(whole) > 8
    for expected, found in zip(whole, pipelines.train_batches(streamed, **choice), strict=True):
        np.testing.assert_array_equal(expected[0], found[0])
        np.testing.assert_array_equal(expected[1], found[1])
    for expected, found in zip(
        pipelines.evaluation_batches(held.test, 4),
        pipelines.evaluation_batches(streamed.test, 4),
        strict=True,
    ):
        np.testing.assert_array_equal(expected[0], found[0])
        np.testing.assert_array_equal(expected[1], found[1])


@pytest.mark.parametrize("stream", [False, True])
def test_damaged_files_and_missing_labels_are_said(data_dir, tmp_path, stream):
    with pytest.raises(UsageError, match=r"split test of .* has labels from -1 to -1; 0 to 3"):
        load(data_dir, "unlabelled", stream=stream)
    shutil.copytree(data_dir, tmp_path / "copy")
    (file, *_) = (tmp_path / "copy").glob("numbered_greys/all/*/*train*-00001-of-*")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(UsageError, match=r"numbered_greys.* cannot be read"):
        load(str(tmp_path / "copy"), stream=stream)
    file.write_bytes(whole[:40] + bytes([whole[40] ^ 1]) + whole[41:])
    with pytest.raises(UsageError, match=r"numbered_greys.* cannot be read"):
        load(str(tmp_path / "copy"), stream=stream)


def test_what_is_no_image_classification(tmp_path):
    for name, message in (
        ("tfds:no_such_dataset", "TFDS has no dataset 'no_such_dataset'"),
        ("tfds:coco", "coco is no image classification dataset"),
    ):
        with pytest.raises(UsageError, match=message):
            sources.describe(name, data_dir=str(tmp_path))


def test_records_are_read_by_number(data_dir):
    builder = tfds.builder("numbered_greys/all", data_dir=data_dir)
    paths = [str(path) for path in builder.info.splits["train"].filepaths]
    assert len(paths) == 3
    records = Records(paths)
    expected = list(tf.data.TFRecordDataset(paths).as_numpy_iterator())
    assert len(records) == len(expected) == 37
    assert records[np.arange(37)].tolist() == expected
    assert records[np.array([36, 0, 20])].tolist() == [expected[36], expected[0], expected[20]]
