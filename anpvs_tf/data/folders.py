"""Image folders: a sub-folder for each class, named like it.

PATH/train and PATH/test with the same classes, optionally PATH/validation (or val);
or the classes directly in PATH, which is split by the names of the files. Images are
PNG, JPEG (turned as its EXIF says), WebP, GIF (the first frame) or BMP. Hidden files and those
that file managers leave behind are no images and do not count.
"""

import dataclasses
import hashlib
import os
import re

import numpy as np
import tensorflow as tf

from anpvs_tf.common.errors import UsageError
from anpvs_tf.common.progress import Progress
from anpvs_tf.data import pictures, splits
from anpvs_tf.data.splits import Split, StoredSplit

ROLES = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
# The files that file managers leave behind; names in lower case.
LEFT_BEHIND = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx")
TEST_SHARE = 0.2
# Number of files, the first in the mixed order, that decide whether a folder is grey.
SAMPLE = 100


@dataclasses.dataclass(frozen=True)
class Files:
    """The files of a split, in the order of `_place`.

    Attributes:
        root: the directory that `names` are relative to.
        names: "<class>/<file>", as bytes.
        labels: int64.
    """

    root: str
    names: list[bytes]
    labels: np.ndarray

    def part(self, begin: int, end: int | None) -> "Files":
        return Files(self.root, self.names[begin:end], self.labels[begin:end])


@dataclasses.dataclass(frozen=True)
class Folder:
    """The content of a folder.

    Attributes:
        files: by split; "validation" where the folder has one.
        version: a digest of the names and sizes of all files.
    """

    path: str
    class_names: tuple[str, ...]
    files: dict[str, Files]
    version: str


class BadFiles(UsageError):
    """Files that are no readable images.

    Args:
        names: of the files, relative to the folders that are the keys.
    """

    def __init__(self, names: dict[str, list[str]]):
        self.names = names
        home = os.path.commonpath(list(names))
        paths = [os.path.join(root, name) for root, held in names.items() for name in held]
        found = [f"{os.path.relpath(path, home)} ({_fault(path)})" for path in paths]
        super().__init__(
            f"{len(found)} file(s) in folder {home} are no readable PNG, JPEG, WebP, GIF or BMP "
            f"images: {', '.join(found)}; replace or delete them"
        )


def survey(path: str) -> Folder:
    """Lists the files of a folder by split; reads no image.

    Raises:
        UsageError: no such folder, or one without two classes of images to train and to test on.
    """
    held = _directories(path)
    named = [name for name in held if name in ROLES]
    roles = {ROLES[name]: name for name in named}
    if len(roles) < len(named):
        raise UsageError(f"folder {path} has two folders for one split: {', '.join(named)}")
    digest = hashlib.sha256()
    if "train" not in roles:
        if roles:
            raise UsageError(f"folder {path} has {'/'.join(roles.values())} but no train")
        class_names, files = _survey_classes(path, held, digest)
        cut = sum(_place(name) < TEST_SHARE for name in files.names)
        found = {"test": files.part(0, cut), "train": files.part(cut, None)}
        if not found["test"].names or not found["train"].names:
            raise UsageError(
                f"folder {path} has {len(files.names)} files, too few to split; make "
                f"{path}/train and {path}/test"
            )
        return Folder(path, class_names, found, digest.hexdigest()[:16])
    if len(roles) == 1:
        raise UsageError(
            f"folder {path} has train but no test; pass folder:{os.path.join(path, 'train')} to "
            "have it split"
        )
    if "test" not in roles:
        roles["test"] = roles.pop("validation")
    found, classes = {}, {}
    for role, name in sorted(roles.items()):
        root = os.path.join(path, name)
        digest.update(f"{role}\n".encode())
        classes[role], found[role] = _survey_classes(root, _directories(root), digest)
    for role, names in classes.items():
        if different := set(names) ^ set(classes["train"]):
            raise UsageError(
                f"folders {path}/{roles['train']} and {path}/{roles[role]} have different "
                f"classes: only one of them has {', '.join(sorted(different))}"
            )
    return Folder(path, classes["train"], found, digest.hexdigest()[:16])


def _entries(path: str) -> list[os.DirEntry]:
    try:
        with os.scandir(path) as entries:
            return sorted(filter(_counts, entries), key=lambda e: e.name)
    except OSError as error:
        raise UsageError(f"folder {path} cannot be read: {error.strerror}") from error


def _counts(entry: os.DirEntry) -> bool:
    return not entry.name.startswith(".") and entry.name.lower() not in LEFT_BEHIND


def _directories(path: str) -> list[str]:
    names = [entry.name for entry in _entries(path) if _is_directory(entry)]
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            shown = os.fsencode(name).decode(errors="backslashreplace")
            raise UsageError(
                f"class folder {shown} in {path} has a name that is not UTF-8; rename it"
            ) from None
    return names


def _is_directory(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # A link to itself: reading it will say so.


def _survey_classes(root: str, class_names: list[str], digest) -> tuple[tuple[str, ...], Files]:
    if len(class_names) < 2:
        raise UsageError(
            f"folder {root} has {len(class_names)} sub-folder(s); a folder for each class, at "
            "least two, was expected"
        )
    loose = [e.name for e in _entries(root) if e.name.lower().endswith(IMAGES)]
    if loose:
        raise UsageError(
            f"folder {root} has images beside the class folders, {loose[0]} for one; move them "
            "into class folders"
        )
    names, labels = [], []
    for label, class_name in enumerate(class_names):
        entries = _entries(os.path.join(root, class_name))
        if not entries:
            raise UsageError(f"class folder {os.path.join(root, class_name)} is empty; delete it")
        for entry in entries:
            if _is_directory(entry):
                raise UsageError(
                    f"class folder {os.path.join(root, class_name)} has a folder in it, "
                    f"{entry.name}; only images were expected"
                )
            name = os.fsencode(f"{class_name}/{entry.name}")
            digest.update(name + f"\n{_size(entry)}\n".encode())
            names.append(name)
            labels.append(label)
    order = sorted(range(len(names)), key=lambda i: _place(names[i]))
    mixed = [names[i] for i in order]
    return tuple(class_names), Files(root, mixed, np.asarray(labels, np.int64)[order])


def _size(entry: os.DirEntry) -> int:
    try:
        return entry.stat().st_size
    except OSError:
        return -1  # A link to nowhere: reading it will say so.


def _place(name: bytes) -> float:
    """Computes a number in [0, 1) from "<class>/<file>" alone.

    So a file's place, and whether it is in the test set, depends neither on the system
    nor on which other files there are.
    """
    return int.from_bytes(hashlib.sha256(name).digest()[:8], "big") / 2**64


def is_grey(folder: Folder) -> bool:
    """Says whether the first `SAMPLE` training images are all grey; skips unreadable ones."""
    files = folder.files["train"]
    for name in files.names[:SAMPLE]:
        try:
            if _decoded(os.path.join(os.fsencode(files.root), name)).shape[-1] >= 3:
                return False
        except tf.errors.OpError:
            continue
    return True


def _decoded(path: tf.Tensor) -> tf.Tensor:
    return pictures.decode(tf.io.read_file(path))


def stored(files: Files, image_shape: tuple[int, int, int]) -> StoredSplit:
    """Makes a split that is read from disk, its images made to fit `image_shape`."""
    root, names = os.fsencode(files.root), tf.constant(files.names)
    labels = tf.constant(files.labels)
    image = tf.TensorSpec(image_shape, tf.uint8)

    def read(rows):
        paths = tf.strings.join([root, tf.gather(names, rows)], "/")
        images = tf.map_fn(
            lambda path: splits.fit(_decoded(path), image_shape), paths, fn_output_signature=image
        )
        return images, tf.gather(labels, rows)

    def check():
        _refuse(files, _damaged(files, image_shape))

    return StoredSplit(read, np.arange(len(files.names)), image_shape, check)


def in_memory(files: Files, image_shape: tuple[int, int, int]) -> Split:
    """Reads a split into memory, its images made to fit `image_shape`.

    Raises:
        UsageError: files that are no readable images, by name.
    """
    images = np.zeros((len(files.names), *image_shape), np.uint8)
    _refuse(files, _damaged(files, image_shape, images))
    return Split(images, files.labels)


def _damaged(
    files: Files, image_shape: tuple[int, int, int], images: np.ndarray | None = None
) -> np.ndarray:
    """Reads every image, into `images` if given; returns the rows that cannot be read."""
    root, names = os.fsencode(files.root), tf.constant(files.names)

    def read(row):
        path = tf.strings.join([root, names[row]], "/")
        return row, splits.fit(_decoded(path), image_shape)

    rows = tf.data.Dataset.range(len(files.names)).map(read, num_parallel_calls=tf.data.AUTOTUNE)
    damaged = np.ones(len(files.names), bool)
    progress = Progress(f"reading {files.root}: image", len(files.names))
    for batch, pixels in rows.ignore_errors().batch(splits.READ_AT_ONCE).as_numpy_iterator():
        damaged[batch] = False
        if images is not None:
            images[batch] = pixels
        progress.update(int(batch[-1]))
    progress.done()
    return np.flatnonzero(damaged)


def _refuse(files: Files, rows: np.ndarray) -> None:
    """Raises BadFiles if there are any damaged rows."""
    if rows.size:
        names = sorted(os.fsdecode(files.names[row]) for row in rows)
        raise BadFiles({files.root: names})


def _fault(path: str) -> str:
    try:
        _decoded(os.fsencode(path))
    except tf.errors.OpError as error:
        for refused in (pictures.ANIMATED, pictures.PALETTE, pictures.OLD, pictures.DARK):
            if refused in error.message:
                return refused
        # "{{node}} Invalid PNG data, size 7 [Op:DecodeImage]", "{{node}} <path>; Not found [Op..."
        text = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", error.message, flags=re.DOTALL).strip()
        text = text.removeprefix(f"{path}; ")
        return re.split("[.,]", text)[0]
    return "readable now"
