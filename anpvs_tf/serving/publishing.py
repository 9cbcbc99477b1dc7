"""Publishes an export for Keras on the Hugging Face Hub.

The folder that is uploaded is what `keras.saving.load_model("hf://USER/NAME")` reads: the content
of model.keras, unpacked, and the model card.
"""

import pathlib
import re
import zipfile
from typing import TYPE_CHECKING

from anpvs_tf.common.errors import TrainingError, UsageError, one_line

if TYPE_CHECKING:
    from huggingface_hub import HfApi

SCHEME = "hf://"


def repository_of(address: str) -> str:
    """Reads the repository USER/NAME off an address hf://USER/NAME.

    Raises:
        UsageError: the address has another form.
    """
    name = address.removeprefix(SCHEME)
    if name == address or not re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII):
        raise UsageError(f"--push_to must be {SCHEME}USER/NAME; got {address}")
    return name


def check_format(format: str) -> None:
    """Raises UsageError for a format of exports that is not published."""
    if format != "keras":
        raise UsageError(f"--push_to belongs to --format=keras; got {format}")


def check(repository: str, dry_run: bool) -> None:
    """Checks that a repository can be pushed to, before anything is written.

    Args:
        dry_run: nothing will be uploaded, so that no login is needed.

    Raises:
        UsageError: the package is not installed, the Hub takes no such name, no user is logged in,
            or the Hub cannot be reached.
    """
    try:
        from huggingface_hub import errors, utils
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--push_to needs the package {error.name}: pip install 'anpvs_tf[hf]'"
        ) from error
    try:
        utils.validate_repo_id(repository)
        if not dry_run:
            _api().whoami()
    except errors.HFValidationError as error:
        raise UsageError(f"--push_to={SCHEME}{repository}: {one_line(error)}") from error
    except errors.LocalTokenNotFoundError as error:
        raise UsageError(
            "--push_to needs a login: `hf auth login`, or a token that may write in HF_TOKEN; "
            "--dry_run needs none"
        ) from error
    except Exception as error:  # Of the network, or of a token that is not valid.
        raise UsageError(
            f"--push_to={SCHEME}{repository}: the Hub cannot be used: {one_line(error)}"
        ) from error


def write_folder(model_file: pathlib.Path, card: str, folder: pathlib.Path) -> None:
    """Writes the folder that is uploaded.

    Args:
        model_file: a .keras file.
        card: the model card.
        folder: made here.
    """
    with zipfile.ZipFile(model_file) as packed:
        packed.extractall(folder)
    (folder / "README.md").write_text(card)


def push(folder: pathlib.Path, repository: str, message: str) -> str:
    """Uploads a folder as a commit; makes the repository if it is absent.

    Returns:
        The address of the repository in the web.

    Raises:
        TrainingError: the folder could not be uploaded; it is kept.
    """
    api = _api()
    try:
        made = api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    except Exception as error:
        raise TrainingError(
            f"{repository} was not uploaded: {one_line(error)}; the export is complete, and "
            f"`hf upload {repository} {folder}` tries it again"
        ) from error
    return str(made)


def _api() -> "HfApi":
    import keras
    from huggingface_hub import HfApi

    return HfApi(library_name="keras", library_version=keras.__version__)
