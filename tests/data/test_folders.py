"""Image folders: what is found in them, how they are split, and what cannot be used."""

import numpy as np
import pytest
import tensorflow as tf
from image_files import noise_image, touch, write

from anpvs_tf.common.errors import UsageError
from anpvs_tf.data import folders, loading, sources, splits
from anpvs_tf.runs import resolution


def names_of(folder, role):
    return {name.decode() for name in folder.files[role].names}


def test_images_keep_their_pixels_and_get_the_label_of_their_folder(tmp_path):
    written = {}
    for split, count in (("train", 6), ("test", 3)):
        for label, name in enumerate(("ant", "bee", "wasp")):
            for i in range(count):
                image = write(tmp_path / split / name / f"{i}.png", noise_image(20, 18, 3))
                written[image.tobytes()] = (split, label)
    source = sources.describe(f"folder:{tmp_path}", image_size=(20, 18))
    assert source.image_shape == (20, 18, 3)
    assert source.class_names == ("ant", "bee", "wasp")
    data = loading.load(source)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [17, 1, 9]
    found = {}
    for role in ("train", "validation", "test"):
        split = getattr(data, role)
        for image, label in zip(split.images, split.labels, strict=True):
            found[image.tobytes()] = ("train" if role == "validation" else role, int(label))
    assert found == written
    assert sorted(data.train.labels) != data.train.labels.tolist()  # the order is mixed
    assert loading.load_evaluated(source).images.tobytes() == data.test.images.tobytes()


@pytest.mark.parametrize("name", ["validation", "val"])
def test_a_validation_folder_is_used_and_tests_where_there_is_no_test(tmp_path, name):
    touch(tmp_path, *(f"{s}/{c}/{i}" for s in ("train", name) for c in "ab" for i in range(3)))
    test = {"a/0", "a/1", "a/2", "b/0", "b/1", "b/2"}
    assert names_of(folders.survey(str(tmp_path)), "test") == test
    touch(tmp_path, "test/a/x", "test/b/y")
    folder = folders.survey(str(tmp_path))
    assert set(folder.files) == {"train", "validation", "test"}
    assert names_of(folder, "test") == {"a/x", "b/y"}
    touch(tmp_path, *(f"{s}/{c}/{i}" for s in ("validation", "val") for c in "ab" for i in "12"))
    with pytest.raises(UsageError, match=r"two folders for one split: .*val"):
        folders.survey(str(tmp_path))


def test_few_images_leave_one_to_validate_on(tmp_path):
    for split, label in ((s, c) for s in ("train", "test") for c in "ab"):
        for i in range(2):
            write(tmp_path / split / label / f"{i}.png", noise_image(8, 8, 1))
    data = loading.load(sources.describe(f"folder:{tmp_path}", image_size=(8, 8)))
    assert [len(s) for s in (data.train, data.validation, data.test)] == [3, 1, 4]


def test_a_single_level_is_split_by_names_alone(tmp_path):
    early = [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(200)]
    touch(tmp_path, *early[::-1])
    before = folders.survey(str(tmp_path))
    train, test = names_of(before, "train"), names_of(before, "test")
    assert train | test == set(early)
    assert not train & test
    assert 48 <= len(test) <= 112  # a fifth of 400, four standard deviations
    again = folders.survey(str(tmp_path))
    assert again.files["train"].names == before.files["train"].names
    assert again.version == before.version
    # More files move none of the earlier ones between training and test.
    touch(tmp_path, *(f"cat/new{i}.png" for i in range(100)))
    after = folders.survey(str(tmp_path))
    assert train < names_of(after, "train")
    assert test < names_of(after, "test")
    assert after.version != before.version


def test_a_changed_size_is_another_version(tmp_path):
    touch(tmp_path, *(f"{s}/{c}/1" for s in ("train", "test") for c in "ab"))
    before = folders.survey(str(tmp_path)).version
    (tmp_path / "test/a/1").write_text("other")
    assert folders.survey(str(tmp_path)).version != before


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"has 0 sub-folder\(s\)"),
        (["a/1", "a/2"], r"has 1 sub-folder\(s\); a folder for each class, at least two"),
        (["a/1", "b/2"], r"has 2 files, too few to split; make .*/train and .*/test"),
        (["train/a/1", "train/b/1"], r"has train but no test; pass folder:.*/train"),
        (["test/a/1", "test/b/1"], r"has test but no train"),
        (["train/a/1", "train/b/1", "test/a/1", "test/c/1"], r"different classes: .* has b, c"),
        (["a/1", "b/1", "b/more/1"], r"class folder .*/b has a folder in it, more"),
        (["a/1", "b/1", "loose.JPG"], r"has images beside the class folders, loose.JPG"),
        (["a/1", "b/.hidden"], r"class folder .*/b is empty"),
    ],
)
def test_what_is_no_folder_of_classes_is_refused(tmp_path, names, message):
    touch(tmp_path, *names)
    with pytest.raises(UsageError, match=message):
        folders.survey(str(tmp_path))


def test_no_such_folder(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere cannot be read: No such file"):
        sources.describe(f"folder:{tmp_path}/nowhere")


# ---- Images that fit ----


def test_halving_the_size_is_a_triangle_filter():
    row = np.array([0, 80, 160, 240, 240, 160, 80, 0], np.uint8)
    image = np.tile(row[None, :, None], (4, 1, 1))
    # A triangle of half-width 2 around the middle between two pixels weighs the four pixels in it
    # 1/8, 3/8, 3/8, 1/8; at the edge, the three that exist 3/7, 3/7, 1/7.
    edge = (3 * 0 + 3 * 80 + 160) / 7
    inner = (80 + 3 * 160 + 3 * 240 + 240) / 8
    expected = np.round([edge, inner, inner, edge])
    found = splits.fit(tf.constant(image), (2, 4, 1)).numpy()[..., 0]
    np.testing.assert_array_equal(found[0], expected)
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_channels_are_made_to_fit(channels):
    image = noise_image(5, 6, channels)
    in_colour = splits.fit(tf.constant(image), (5, 6, 3)).numpy()
    grey = splits.fit(tf.constant(image), (5, 6, 1)).numpy()
    if channels >= 3:
        np.testing.assert_array_equal(in_colour, image[..., :3])
        luma = image[..., :3] @ np.array([0.299, 0.587, 0.114])
        np.testing.assert_allclose(grey[..., 0], luma, atol=0.501)
    else:
        np.testing.assert_array_equal(grey, image[..., :1])
        np.testing.assert_array_equal(in_colour, np.repeat(image[..., :1], 3, axis=-1))


def test_grey_or_colour_is_found_in_the_files_and_decides_the_defaults(tmp_path):
    for i in range(8):
        write(tmp_path / "grey" / "ab"[i % 2] / f"{i}.png", noise_image(9, 9, 2))
        write(tmp_path / "mixed" / "ab"[i % 2] / f"{i}.png", noise_image(9, 9, 3 if i == 3 else 1))
    grey = resolution.resolve({"dataset": f"folder:{tmp_path}/grey"})
    mnist, cifar = (resolution.resolve({"dataset": name}) for name in ("mnist", "cifar10"))
    assert (grey.image_size, grey.channels, grey.classes) == ((28, 28), 1, 2)
    assert (grey.network, grey.epsilon, grey.augment) == ("lenet5", mnist.epsilon, False)
    mixed = resolution.resolve({"dataset": f"folder:{tmp_path}/mixed"})
    assert (mixed.image_size, mixed.channels, mixed.class_names) == ((32, 32), 3, ("a", "b"))
    assert (mixed.network, mixed.epsilon, mixed.augment) == ("vgg16", cifar.epsilon, True)
    chosen = {"dataset": f"folder:{tmp_path}/mixed", "image_size": ["24"], "augment": False}
    chosen = resolution.resolve(chosen)
    assert (chosen.image_size, chosen.network, chosen.augment) == ((24, 24), "lenet5", False)
    for bad, message in (
        ({"channels": 2}, r"--channels must be 1 \(grey\) or 3"),
        ({"image_size": ["8", "x"]}, r"--image_size must be height,width or one number"),
        ({"image_size": ["1", "2", "3"]}, r"--image_size must be height,width or one number"),
    ):
        with pytest.raises(UsageError, match=message):
            resolution.resolve({"dataset": f"folder:{tmp_path}/mixed"} | bad)


# ---- Images that cannot be read ----


@pytest.mark.parametrize("stream", [False, True])
def test_all_damaged_files_are_named_in_one_error(tmp_path, stream):
    for i in range(10):
        for split in ("train", "test"):
            write(tmp_path / split / "ab"[i % 2] / f"{i}.png", noise_image(9, 9, 1))
    whole = (tmp_path / "train/a/0.png").read_bytes()
    (tmp_path / "train/a/0.png").write_bytes(whole[:60])
    (tmp_path / "train/b/1.png").write_bytes(b"")
    (tmp_path / "train/b/notes.txt").write_text("no image")
    (tmp_path / "test/a/gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "test/b/old.bmp").write_bytes(b"BM" + bytes(12) + b"\x28" + bytes(60))
    with pytest.raises(UsageError) as error:
        loading.load(f"folder:{tmp_path}", stream=stream)
    message = str(error.value)
    for part in (
        f"5 file(s) in folder {tmp_path} ",
        "train/a/0.png (Invalid PNG data)",
        "train/b/1.png (Input is empty)",
        "train/b/notes.txt (Unknown image file format)",
        "test/a/gone.png (No such file or directory)",
        "test/b/old.bmp (a BMP with a palette)",
    ):
        assert part in message
    assert "\n" not in message
