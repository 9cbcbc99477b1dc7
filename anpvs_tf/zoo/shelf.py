"""The networks of the zoo: their facts and their files.

NETWORK.keras beside this module is the file of `bin/export.py --format=keras`, NETWORK.md its model
card, and networks.json says of each what `Entry` holds.
"""

import dataclasses
import hashlib
import json
import pathlib
from typing import TYPE_CHECKING

from anpvs_tf.common.errors import UsageError

if TYPE_CHECKING:
    import keras

HERE = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Entry:
    """A network of the zoo.

    Attributes:
        dataset: that it classifies, as of bin/train.py.
        norm, epsilon: the threat model; the radius in pixel units of [0, 1].
        sha256: of its file.
        parameters: numbers in its weights.
        pruned: share of the gated features that is pruned, in [0, 1].
        clean_accuracy, autoattack_accuracy: in [0, 1], of the first `examples` test images.
        command: that trained it.
        made: the day on which its file was made.
    """

    dataset: str
    norm: str
    epsilon: float
    sha256: str
    parameters: int
    pruned: float
    clean_accuracy: float
    autoattack_accuracy: float
    examples: int
    command: str
    made: str


def names() -> tuple[str, ...]:
    """Lists the names of the networks."""
    return tuple(_entries())


def entry(name: str) -> Entry:
    """Returns the facts about a network.

    Raises:
        UsageError: no network of this name.
    """
    held = _entries()
    if name not in held:
        raise UsageError(f"no network {name!r} in the zoo; choose one of {', '.join(held)}")
    return Entry(**held[name])


def file_of(name: str) -> pathlib.Path:
    """Finds the Keras file of a network.

    Raises:
        UsageError: no network has this name, or the file is not the package's.
    """
    known, path = entry(name), HERE / f"{name}.keras"
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error}); install the package again") from error
    if found != known.sha256:
        raise UsageError(f"{path} is not the file of this package; install the package again")
    return path


def card(name: str) -> str:
    """Reads the model card of a network, Markdown.

    Raises:
        UsageError: no network of this name.
    """
    entry(name)
    return (HERE / f"{name}.md").read_text()


def load(name: str) -> "keras.Model":
    """Loads a network: float32 images [batch, H, W, C] in [0, 1] -> logits [batch, classes].

    Raises:
        UsageError: as of `file_of`.
    """
    import keras

    return keras.saving.load_model(file_of(name))


def _entries() -> dict[str, dict]:
    return json.loads((HERE / "networks.json").read_text())
