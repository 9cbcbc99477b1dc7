"""The facts about a dataset, by its name, found out without loading it."""

import dataclasses
import pathlib
import re

from anpvs_tf.common.errors import UsageError

KINDS = ("folder:PATH", "tfds:NAME")
# The splits that networks are evaluated on: for results, and to choose settings by.
EVALUATED = ("test", "validation")

# The names of the classes, in the order of the labels.
_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree
orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum
rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train
trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""

CLASS_NAMES: dict[str, tuple[str, ...]] = {
    "cifar10": tuple(_CIFAR10.split()),
    "cifar100": tuple(_CIFAR100.split()),
}


@dataclasses.dataclass(frozen=True)
class Source:
    """The facts about a dataset that a network and its settings depend on.

    Attributes:
        name: a key of `SOURCES`, or "folder:PATH" or "tfds:NAME".
        image_shape: (height, width, channels).
        class_names: in the order of the labels; None where they are numbers.
        augment: random crop (pad 4) and horizontal flip in training.
        version: identifies this state of a folder or TFDS dataset.
    """

    name: str
    image_shape: tuple[int, int, int]
    classes: int
    class_names: tuple[str, ...] | None = None
    augment: bool = False
    version: str | None = None


SOURCES: dict[str, Source] = {
    "digits": Source("digits", (28, 28, 1), 10),
    "mnist": Source("mnist", (28, 28, 1), 10),
    "cifar10": Source("cifar10", (32, 32, 3), 10, CLASS_NAMES["cifar10"], True),
    "cifar100": Source("cifar100", (32, 32, 3), 100, CLASS_NAMES["cifar100"], True),
}


def describe(
    name: str,
    image_size: tuple[int, int] | None = None,
    channels: int | None = None,
    data_dir: str | None = None,
) -> Source:
    """Finds out the facts about a dataset without loading it.

    Args:
        name: a key of `SOURCES`, or "folder:PATH" or "tfds:NAME".
        image_size: (height, width) that images are resized to; None for 28 x 28 if they
            are grey and 32 x 32 if they are in colour: the sizes of the networks here.
        channels: 1 for grey, 3 for colour; None for what the dataset has.
        data_dir: where TFDS keeps its data.

    Raises:
        UsageError: an unknown dataset, one that cannot be used, or another shape for a key of
            `SOURCES`.
    """
    if name in SOURCES:
        source = SOURCES[name]
        height, width, own_channels = source.image_shape
        if image_size not in (None, (height, width)) or channels not in (None, own_channels):
            raise UsageError(
                f"images of {name} are {height} x {width} x {own_channels}; --image_size and "
                f"--channels are for {' and '.join(KINDS)}"
            )
        return source
    check_name(name)
    # They need TensorFlow, which takes seconds to import.
    from anpvs_tf.data import folders, tfds

    if channels not in (None, 1, 3):
        raise UsageError(f"--channels must be 1 (grey) or 3 (colour); got {channels}")
    kind, _, rest = name.partition(":")
    if kind == "folder":
        folder = folders.survey(rest)
        class_names, version = folder.class_names, folder.version
        channels = channels or (1 if folders.is_grey(folder) else 3)
    else:
        found = tfds.describe(rest, data_dir)
        class_names, version = found.class_names, found.version
        channels = channels or found.channels
    if len(class_names) < 2:
        raise UsageError(f"dataset {name} has {len(class_names)} class(es); two were expected")
    height, width = image_size or ((28, 28) if channels == 1 else (32, 32))
    shape = (height, width, channels)
    return Source(name, shape, len(class_names), class_names, channels == 3, version)


def check_name(name: str) -> None:
    """Raises UsageError unless `name` can be the name of a dataset."""
    kind, _, rest = name.partition(":")
    if name not in SOURCES and not (kind in ("folder", "tfds") and rest):
        raise UsageError(f"unknown dataset {name!r}; choose one of {', '.join([*SOURCES, *KINDS])}")


def file_name(name: str) -> str:
    """Turns a dataset's name into a part of a file name; of a folder's path, the last part."""
    kind, _, rest = name.partition(":")
    if kind == "folder":
        name = f"folder-{pathlib.Path(rest).resolve().name}"
    return re.sub(r"[^\w.-]+", "-", name)
