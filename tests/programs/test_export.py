"""The lines that bin/export.py ends with."""

import types

import fake_runs
import pytest
from calling import call

from anpvs_tf.programs import export
from anpvs_tf.pruning import efficiency
from anpvs_tf.serving import exporting

HINT = "To show another network beside it, such as a dense one: --rival=OTHER_RUN"


@pytest.fixture
def ended(monkeypatch, tmp_path):
    """(flags) -> the last line of an export that writes nothing."""
    runs = [
        fake_runs.make(tmp_path / name, weights=tmp_path / f"{name}-weights", precision="float32")
        for name in ("run", "other")
    ]
    done = types.SimpleNamespace(path=tmp_path / "1", training_network=None, compact_network=None)
    monkeypatch.setattr(exporting, "export", lambda *_, **__: done)
    monkeypatch.setattr(efficiency, "measure", lambda networks: {})
    monkeypatch.setattr(export, "table", lambda *_: "")

    def last(*flags):
        given = (f"--run_dir={runs[0].path}", f"--export_base={tmp_path / 'base'}", *flags)
        found = call("export", *(flag.format(other=runs[1].path) for flag in given))
        assert found.returncode == 0, found.stderr
        return found.stdout.splitlines()[-1]

    return last


def test_a_page_of_one_network_ends_with_how_to_show_two(ended):
    assert ended("--format=web") == HINT
    assert ended("--format=web", "--rival={other}") != HINT
    assert ended("--format=onnx") != HINT
