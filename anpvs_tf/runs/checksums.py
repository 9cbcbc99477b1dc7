"""SHA256SUMS, the digests of a finished run's files; `sha256sum -c SHA256SUMS` reads it too."""

import hashlib
import pathlib
from collections.abc import Mapping

from anpvs_tf.common.errors import UsageError

NAME = "SHA256SUMS"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def text(sums: Mapping[str, list[str]]) -> str:
    """Writes the text of SHA256SUMS.

    Args:
        sums: {path below the directory: its digests}; two while it is being replaced.
    """
    return "".join(f"{one}  {name}\n" for name, several in sums.items() for one in several)


def read(directory: pathlib.Path) -> dict[str, list[str]]:
    """Reads the digests of each file from SHA256SUMS; none if it does not exist.

    Raises:
        UsageError: SHA256SUMS cannot be read.
    """
    path, sums = directory / NAME, {}
    if not path.exists():
        return sums
    try:
        for line in path.read_text().splitlines():
            one, name = line.split("  ", 1)
            sums.setdefault(name, []).append(one)
    except (OSError, ValueError) as error:
        raise UsageError(_distrust(path, "cannot be read")) from error
    if not sums:
        raise UsageError(_distrust(path, "is empty"))
    return sums


def check(directory: pathlib.Path) -> None:
    """Raises UsageError if a file is not what was written."""
    for name, several in read(directory).items():
        path = directory / name
        try:
            found = digest(path.read_bytes())
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}") from error
        if found not in several:
            raise UsageError(_distrust(path, f"is not what was written (see {NAME})"))


def _distrust(path: pathlib.Path, what: str) -> str:
    return (
        f"{path} {what}: it is damaged or was changed; copy the run again from where it is "
        f"whole, train it anew with --overwrite, or delete {NAME} if you trust the files"
    )
