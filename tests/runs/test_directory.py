"""The run directory on disk."""

import pytest

from anpvs_tf.common.errors import UsageError
from anpvs_tf.runs.directory import RunDirectory


def test_a_directory_that_cannot_be_made_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UsageError, match="file/run cannot be made: Not a directory"),
        RunDirectory(tmp_path / "file/run").owned(),
    ):
        pass
