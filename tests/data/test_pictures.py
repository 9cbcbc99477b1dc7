"""Pictures as they are decoded; Pillow makes the files and says how they stand."""

import io
import pathlib

import numpy as np
import processes
import pytest
import tensorflow as tf
from PIL import ExifTags, Image, ImageOps

from anpvs_tf.common.errors import UsageError
from anpvs_tf.data import folders, loading, pictures, sources

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (5, 8, 3)).astype(np.uint8)
MANY = [Image.fromarray(np.roll(PIXELS, i, 0)) for i in range(3)]


def encoded(image, kind, **options):
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned_jpeg(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = "a camera"  # An entry before it, with a value elsewhere.
    exif[ExifTags.Base.Orientation] = orientation
    return encoded(PIXELS, "jpeg", quality=95, exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("little", [True, False])
def test_a_jpeg_stands_as_its_exif_says(orientation, little):
    content = turned_jpeg(orientation)
    if little:  # Pillow writes big-endian headers; this is the same entry in the other order.
        bare = b"\x49\x49\x2a\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\x01\x00\x00\x00"
        block = b"Exif\x00\x00" + bare + bytes([orientation, 0, 0, 0]) + bytes(4)
        content = encoded(PIXELS, "jpeg", quality=95, exif=block)
    as_stored = tf.io.decode_jpeg(content).numpy()
    seen = Image.open(io.BytesIO(content))
    assert seen.getexif()[ExifTags.Base.Orientation] == orientation
    image = Image.fromarray(as_stored)
    image.getexif()[ExifTags.Base.Orientation] = orientation
    expected = np.asarray(ImageOps.exif_transpose(image))
    assert (orientation == 1) == np.array_equal(expected, as_stored)
    found = tf.function(pictures.decode)(tf.constant(content))
    np.testing.assert_array_equal(found, expected)


def test_training_and_evaluation_read_pictures_upright(tmp_path):
    for split, name in ((s, c) for s in ("train", "test") for c in "ab"):
        for i in range(2):
            path = tmp_path / split / name / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(turned_jpeg(6))
    source = sources.describe(f"folder:{tmp_path}", image_size=(8, 5))
    expected = np.rot90(tf.io.decode_jpeg(turned_jpeg(6)).numpy(), -1)
    for stream in (False, True):
        for image in np.asarray(loading.load(source, stream=stream).test.images):
            np.testing.assert_array_equal(image, expected)


WIDE = RNG.integers(0, 65536, (5, 8)).astype(np.uint16)
KINDS = {
    "palette.png": (encoded(Image.fromarray(PIXELS).quantize(8), "png"), None),
    "grey.png": (encoded(PIXELS[..., 0], "png"), PIXELS[..., :1]),
    "alpha.png": (encoded(np.dstack([PIXELS, PIXELS[..., :1]]), "png"), None),
    "sixteen bits.png": (encoded(WIDE, "png"), (WIDE >> 8).astype(np.uint8)[..., np.newaxis]),
    "dark.png": (encoded((WIDE >> 8).astype(np.uint16), "png"), pictures.DARK),
    "interlaced.gif": (encoded(Image.fromarray(PIXELS).quantize(8), "gif"), None),
    "animated.gif": (encoded(MANY[0], "gif", save_all=True, append_images=MANY[1:]), None),
    "cmyk.jpg": (encoded(Image.fromarray(PIXELS).convert("CMYK"), "jpeg"), None),
    "ending.JPG": (encoded(PIXELS, "jpeg"), None),
    "lossless.webp": (encoded(PIXELS, "webp", lossless=True), PIXELS),
    "lossy.webp": (encoded(PIXELS, "webp"), None),
    "animated.webp": (
        encoded(MANY[0], "webp", save_all=True, append_images=MANY[1:]),
        pictures.ANIMATED,
    ),
    "bitmap.bmp": (encoded(PIXELS, "bmp"), PIXELS),
    "palette.bmp": (encoded(Image.fromarray(PIXELS).quantize(8), "bmp"), pictures.PALETTE),
    "old.bmp": (
        b"BM\x20\0\0\0\0\0\0\0\x1a\0\0\0\x0c\0\0\0\x01\0\x01\0\x01\0\x18\0" + bytes(6),
        pictures.OLD,
    ),
    "größe, ñ.png": (encoded(PIXELS, "png"), PIXELS),
    "large.png": (encoded(np.zeros((5000, 5000), np.uint8), "png"), None),
    "no bytes.png": (b"", "no bytes.png"),
    "cut.png": (encoded(PIXELS, "png")[:60], "cut.png"),
    "a picture of.tiff": (encoded(PIXELS, "tiff"), "a picture of.tiff"),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_picture_is_right_or_refused_by_name(tmp_path, name):
    content, expected = KINDS[name]
    for folder in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "1.png").write_bytes(encoded(PIXELS, "png"))
        (tmp_path / folder / "Thumbs.db").write_bytes(b"no image")
    (tmp_path / "test/b" / name).write_bytes(content)
    source = sources.describe(f"folder:{tmp_path}", image_size=(5, 8), channels=3)
    if isinstance(expected, str):
        with pytest.raises(UsageError) as error:
            loading.load(source)
        assert name in str(error.value) and expected in str(error.value)
        assert "\n" not in str(error.value)
        return
    test = loading.load(source).test
    assert len(test) == 3
    if expected is not None:
        images = [image.tobytes() for image in test.images]
        assert np.broadcast_to(expected, (5, 8, 3)).tobytes() in images


def test_links_class_names_and_files_that_are_left_behind(tmp_path):
    (tmp_path / "elsewhere.png").write_bytes(encoded(PIXELS, "png"))
    for folder in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        (tmp_path / "data" / folder / "link.png").symlink_to(tmp_path / "elsewhere.png")
        (tmp_path / "data" / folder / "desktop.ini").touch()
    (tmp_path / "data/train/.DS_Store").touch()
    source = sources.describe(f"folder:{tmp_path / 'data'}", image_size=(5, 8))
    assert len(loading.load_evaluated(source)) == 2
    loop = tmp_path / "data/test/a/loop.png"
    loop.symlink_to(loop)
    with pytest.raises(UsageError, match=r"a/loop.png \(.*"):
        loading.load_evaluated(sources.describe(f"folder:{tmp_path / 'data'}", image_size=(5, 8)))


def test_a_class_folder_whose_name_is_no_utf8_is_named(tmp_path):
    for name in (b"a", b"\xff\xfe"):
        path = pathlib.Path(tmp_path) / "x"
        folder = bytes(path.parent) + b"/" + name
        try:
            (pathlib.Path(folder.decode("utf-8", "surrogateescape"))).mkdir()
        except OSError:
            pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(UsageError, match=r"class folder \\xff\\xfe in .* is not UTF-8"):
        folders.survey(str(tmp_path))


def test_two_splits_with_bad_files_are_one_list(tmp_path):
    for folder in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "1.png").write_bytes(encoded(PIXELS, "png"))
    for folder in ("train/a", "test/b"):
        (tmp_path / folder / "bad.png").write_bytes(b"no image")
    with pytest.raises(UsageError) as error:
        loading.load(sources.describe(f"folder:{tmp_path}", image_size=(5, 8)))
    assert str(error.value).count("bad.png") == 2
    assert str(error.value).count("replace or delete") == 1


# ---- Nothing that is read ends the process ----

FUZZ = """
import numpy as np, pathlib, sys
import tensorflow as tf
from anpvs_tf.data import pictures

rng = np.random.default_rng(0)
decode = tf.function(pictures.decode)
ok = 0
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    whole = path.read_bytes()
    for i in range(100):
        data = bytearray(whole)
        for place in rng.integers(0, min(len(data), 120 if i % 2 else len(data)), 1 + i % 4):
            data[place] = rng.integers(256)
        if i % 5 == 0:
            data = data[: rng.integers(len(data))]
        try:
            decode(tf.constant(bytes(data)))
            ok += 1
        except tf.errors.OpError:
            pass
print("survived", ok)
"""


def test_damaged_files_of_every_format_end_no_process(tmp_path):
    files = {
        "jpeg": turned_jpeg(6),
        "png": encoded(PIXELS, "png"),
        "deep": KINDS["sixteen bits.png"][0],
        "gif": KINDS["animated.gif"][0],
        "webp": KINDS["lossless.webp"][0],
        "lossy": KINDS["lossy.webp"][0],
        "moving": KINDS["animated.webp"][0],
        "bmp": KINDS["bitmap.bmp"][0],
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    found = processes.call("-c", FUZZ, tmp_path)
    assert found.returncode == 0, found.stderr[-2000:]
    survived = int(found.stdout.split("survived ")[1])
    assert 0 < survived < 100 * len(files)
