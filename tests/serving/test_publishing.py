"""What is uploaded to the Hugging Face Hub, and what keeps it from being uploaded; no network."""

import sys
import types
import zipfile

import fake_runs
import pytest
from calling import call

from anpvs_tf.common.errors import TrainingError, UsageError
from anpvs_tf.programs import export
from anpvs_tf.pruning import efficiency
from anpvs_tf.serving import exporting, publishing


@pytest.fixture
def hub():
    return pytest.importorskip("huggingface_hub")


@pytest.fixture
def uploads(hub, monkeypatch):
    """What the Hub gets."""
    found = []

    def upload(self, *, repo_id, folder_path, commit_message):
        files = {path.name for path in folder_path.rglob("*") if path.is_file()}
        found.append((repo_id, files, commit_message))

    def create(self, repo_id, exist_ok):
        assert exist_ok  # A second version goes into the same repository.
        return f"https://huggingface.co/{repo_id}"

    monkeypatch.setattr(hub.HfApi, "whoami", lambda self: {"name": "me"})
    monkeypatch.setattr(hub.HfApi, "create_repo", create)
    monkeypatch.setattr(hub.HfApi, "upload_folder", upload)
    return found


def test_names_that_the_hub_does_not_take(hub):
    for name in ("me/..", "a--b/c", "me/x.git", "me/" + 97 * "x"):
        with pytest.raises(UsageError, match=f"--push_to=hf://{name}"):
            publishing.check(publishing.repository_of(f"hf://{name}"), dry_run=True)


def test_an_upload_needs_a_login_and_a_dry_run_does_not(hub, monkeypatch, tmp_path):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    publishing.check("me/it", dry_run=True)
    with pytest.raises(UsageError, match="--push_to needs a login"):
        publishing.check("me/it", dry_run=False)

    def away(self):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(hub.HfApi, "whoami", away)
    with pytest.raises(UsageError, match="the Hub cannot be used: no route to host"):
        publishing.check("me/it", dry_run=False)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match=r"huggingface_hub: pip install 'anpvs_tf\[hf\]'"):
        publishing.check("me/it", dry_run=True)


def test_the_program_uploads_what_it_exported(uploads, hub, monkeypatch, tmp_path):
    run = fake_runs.make(tmp_path / "run", weights=tmp_path / "weights", precision="float32")
    version = tmp_path / "base" / "3"

    def exported(*_, hub, **__):
        assert hub == "me/it"
        (version / exporting.HUB).mkdir(parents=True)
        (version / exporting.HUB / "README.md").write_text("a card")
        return types.SimpleNamespace(path=version, training_network=None, compact_network=None)

    def program(*flags):
        given = (f"--run_dir={run.path}", f"--export_base={tmp_path / 'base'}", "--format=keras")
        return call("export", *given, "--push_to=hf://me/it", *flags)

    monkeypatch.setattr(exporting, "export", exported)
    monkeypatch.setattr(efficiency, "measure", lambda networks: {})
    monkeypatch.setattr(export, "table", lambda *_: "")
    ended = program("--dry_run")
    assert ended.returncode == 0, ended.stderr
    assert f"{version / 'hub'} would be uploaded to hf://me/it" in ended.stdout
    assert not uploads
    (version / exporting.HUB / "README.md").unlink()
    (version / exporting.HUB).rmdir()
    ended = program()
    assert ended.returncode == 0, ended.stderr
    assert uploads == [("me/it", {"README.md"}, "Version 3")]
    assert "https://huggingface.co/me/it" in ended.stdout
    assert 'keras.saving.load_model("hf://me/it")' in ended.stdout

    def refused(self, **_):
        raise PermissionError("403 Forbidden")

    monkeypatch.setattr(hub.HfApi, "upload_folder", refused)
    with pytest.raises(TrainingError, match=r"403 Forbidden; .*`hf upload me/it .*hub`"):
        publishing.push(version / exporting.HUB, "me/it", "Version 3")


def test_the_folder_is_the_file_unpacked_and_a_card(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as packed:
        packed.writestr("config.json", "{}")
    publishing.write_folder(tmp_path / "model.keras", "a card", tmp_path / "hub")
    found = {path.name: path.read_text() for path in (tmp_path / "hub").iterdir()}
    assert found == {"config.json": "{}", "README.md": "a card"}
