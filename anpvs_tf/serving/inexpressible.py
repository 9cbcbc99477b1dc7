"""The error that says which part of a network a file format cannot express."""

import re
from collections.abc import Iterable

import keras

from anpvs_tf.common.errors import UsageError, one_line

# So many operations are named.
NAMED = 3


def of_operations(
    format: str, frozen: keras.Model, operations: Iterable[tuple[str, str]]
) -> UsageError:
    """Makes the error that names the operations that a format lacks, and their layers.

    Args:
        format: its name in a sentence.
        frozen: the network.
        operations: (type, name of the node in TensorFlow's graph) of each, at least one.
    """
    parts = list(dict.fromkeys(kind + _place(frozen, node) for kind, node in operations))
    named = ", ".join(parts[:NAMED])
    more = f" and {len(parts) - NAMED} more" if len(parts) > NAMED else ""
    return UsageError(f"{format} has no operation {named}{more}; use another --format")


def of_converter(format: str, error: Exception) -> UsageError:
    """Makes the error of a converter that failed without naming an operation."""
    return UsageError(
        f"{format} cannot express this network ({one_line(error)}); use another --format"
    )


def _place(frozen: keras.Model, node: str) -> str:
    """Names the layer of a node, " (layer ...)"; "" if its name tells none.

    A node is named after its layers, from the outermost on, each with a number behind if
    TensorFlow has seen that name before. So a name may be that of two layers.
    """
    for part in node.split("/"):
        found = [
            one for one in frozen.layers if re.fullmatch(rf"{re.escape(one.name)}(_\d+)?", part)
        ]
        if found:
            names = " or ".join(f"{one.name}, {type(one).__name__}" for one in found)
            return f" (layer {names})"
    return ""
