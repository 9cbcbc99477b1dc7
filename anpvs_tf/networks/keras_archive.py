"""The contents of a `.keras` file, as far as they can be read without Keras.

Imports no TensorFlow.
"""

import json
import os
import zipfile
from collections.abc import Iterator
from typing import Any

from anpvs_tf.common.errors import UsageError, one_line

SUFFIX = ".keras"
# Classes and functions of these packages need no code of the user's.
_KNOWN = ("keras", "anpvs_tf")


def check(path: str | os.PathLike) -> None:
    """Raises UsageError unless a file holds a functional or sequential model of known layers."""
    config = _config(path)
    if config.get("class_name") not in ("Functional", "Sequential"):
        raise UsageError(
            f"{path} holds a {config.get('class_name')}, a model class of its own, whose layers "
            "cannot be followed; save a functional model, keras.Model(inputs, outputs)"
        )
    del config["class_name"]
    foreign = sorted(set(_foreign(config)))
    if foreign:
        raise UsageError(
            f"{path} needs {', '.join(foreign)}, which Keras does not have; a run is made from "
            "its file alone, so build the model of Keras's own layers and activations"
        )


def _config(path: str | os.PathLike) -> dict[str, Any]:
    """Reads the description of the model in a file."""
    if not os.path.exists(path):
        raise UsageError(
            f"{path} does not exist; give a file of model.save(), or --run_dir alone to resume a "
            "run"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
        # How it was compiled is not part of the network.
        return {name: config[name] for name in ("class_name", "config")}
    except (OSError, zipfile.BadZipFile, ValueError, LookupError, TypeError) as error:
        raise UsageError(
            f"{path} is not a Keras model file: {one_line(error)}; save the model by "
            f'model.save("NAME{SUFFIX}")'
        ) from error


def _foreign(value: Any) -> Iterator[str]:
    """Names the classes and functions of a description that Keras does not have."""
    if isinstance(value, list):
        for one in value:
            yield from _foreign(one)
    if not isinstance(value, dict):
        return
    name, module = value.get("class_name"), value.get("module", "keras")
    if name == "__lambda__":
        yield "a function in a Lambda layer"
    elif name == "function":
        yield f"the function {value.get('config')}"
    elif name is not None and str(module).partition(".")[0] not in (*_KNOWN, "builtins"):
        yield f"the class {name}"
    for one in value.values():
        yield from _foreign(one)
