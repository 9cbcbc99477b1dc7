"""The part of a sweep that this process does; imports no TensorFlow."""

import dataclasses
import os
import pathlib

from anpvs_tf.common.errors import UsageError

# How long a worker looks for its chief, which may have to start first.
CHIEF_SECONDS = 300.0
_VARIABLES = ("KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT", "KERASTUNER_TUNER_ID")


@dataclasses.dataclass(frozen=True)
class Role:
    """The part of this process in a sweep.

    Attributes:
        name: "alone", "chief" or "worker".
        tuner_id, ip, port: of a chief or a worker.
    """

    name: str
    tuner_id: str = ""
    ip: str = ""
    port: int = 0


def own_role() -> Role:
    """Reads the role of this process from the environment.

    Raises:
        UsageError: a variable is missing, or is no port or no name.
    """
    ip, port, tuner_id = (os.environ.get(name, "") for name in _VARIABLES)
    if not ip:
        return Role("alone")
    for name in _VARIABLES:
        if not os.environ.get(name):
            raise UsageError(f"KERASTUNER_ORACLE_IP is set, {name} is not")
    if not (port.isdecimal() and 0 < int(port) < 2**16):
        raise UsageError(f"KERASTUNER_ORACLE_PORT must be a port number; got {port!r}")
    if pathlib.PurePath(tuner_id).name != tuner_id:
        raise UsageError(f"KERASTUNER_TUNER_ID must be a name without '/'; got {tuner_id!r}")
    return Role("chief" if "chief" in tuner_id else "worker", tuner_id, ip, int(port))
