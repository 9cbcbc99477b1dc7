"""One process at a time works in a directory."""

import pytest

from anpvs_tf.common import lock
from anpvs_tf.common.errors import InUse, UsageError


def test_a_directory_is_held_until_it_is_let_go(tmp_path):
    place = tmp_path / "a/b"
    assert not lock.in_use(place) and not place.exists()
    message = f"another process works in {place}; wait for it, or choose another --sweep_dir"
    with lock.owned(place, "--run_dir"):
        assert lock.in_use(place)
        with pytest.raises(InUse, match=message), lock.owned(place, "--sweep_dir"):
            pass
    assert not lock.in_use(place)


def test_a_directory_that_cannot_be_made_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UsageError, match="file/run cannot be made: Not a directory"),
        lock.owned(tmp_path / "file/run", "--run_dir"),
    ):
        pass
