"""Files and directories appear whole or not at all, and say why."""

import pytest

from anpvs_tf.common import files
from anpvs_tf.common.errors import Interrupted, TrainingError, UsageError


def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path):
    path = tmp_path / "notes.weights.h5"
    files.replace_atomically(path, lambda beside: beside.write_text("first"))

    def half(beside):
        assert beside.name.endswith(".weights.h5")
        beside.write_text("sec")
        raise OSError(28, "No space left on device")

    with pytest.raises(TrainingError, match=r"notes.weights.h5 could not be written.*No space"):
        files.replace_atomically(path, half)
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [(path.name, "first")]


@pytest.mark.parametrize("error", [TrainingError("the gates collapsed"), Interrupted(2, "kept")])
def test_what_says_itself_what_happened_is_not_called_a_full_disk(tmp_path, error):
    def write(beside):
        raise error

    with pytest.raises(type(error)) as raised:
        files.replace_atomically(tmp_path / "a", write)
    assert raised.value is error


def test_places_that_cannot_be_written_are_named(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    files.check_directory(tmp_path / "a/b/c", "run directory a", "--run_dir")
    assert not (tmp_path / "a").exists()
    for path, message in (
        (file, "run directory a is a file; choose another --run_dir"),
        (file / "below", "cannot be written: .*file is a file; choose another --run_dir"),
        (tmp_path / ("a" * 300), "name too long; choose another --run_dir"),
    ):
        with pytest.raises(UsageError, match=f"(?i){message}"):
            files.check_directory(path, "run directory a", "--run_dir")


def test_a_staged_directory_that_is_not_renamed_leaves_nothing_of_its_own(tmp_path):
    path = tmp_path / "new/base/1"
    with pytest.raises(TrainingError), files.staging(path, "export base", "--export_base") as made:
        (made / "model").write_text("")
        raise TrainingError("it disagrees")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TrainingError), files.staging(path, "export base", "--export_base"):
        (path.parent / "2").mkdir()  # Another process's; it must stay.
        raise TrainingError("it disagrees")
    assert list(path.parent.iterdir()) == [path.parent / "2"]
    with files.staging(path, "export base", "--export_base") as made:
        made.rename(path)
    assert sorted(one.name for one in path.parent.iterdir()) == ["1", "2"]
