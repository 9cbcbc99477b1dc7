"""What the programs refuse: one line, exit code 2, nothing left behind."""

import importlib
import os
import re
import socket
import subprocess
import sys
import time

import bad_inputs
import fake_runs
import pytest
from calling import call
from documents import ROOT

import anpvs_tf
from anpvs_tf.attacks import registry
from anpvs_tf.attacks import settings as attack_settings
from anpvs_tf.methods import hyperparameters, optimizer
from anpvs_tf.networks import architectures, names
from anpvs_tf.runs import settings
from anpvs_tf.tuning import names as tuning_names
from anpvs_tf.tuning import oracles

PROGRAMS = ("train", "evaluate", "export", "report", "tune")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("bad")
    run = fake_runs.make(
        tmp_path_factory.mktemp("good") / "run",
        weights=tmp_path_factory.mktemp("weights"),
        precision="float32",
    )
    return bad_inputs.prepare(run.path, tmp)


def files(*roots):
    found = {}
    for root in roots:
        for directory, folders, inside in os.walk(root):
            for name in [*folders, *inside]:
                path = os.path.join(directory, name)
                found[path] = os.path.getsize(path) if os.path.isfile(path) else None
    return found


@pytest.mark.parametrize("program", PROGRAMS)
def test_one_line_and_nothing_left_behind(program, places, tmp_path):
    before = files(places["tmp"], places["run"])
    wrong = []
    for name, arguments, message in bad_inputs.TABLE:
        if name != program:
            continue
        given = [argument.format(**places) for argument in arguments]
        ended = call(program, *given, cwd=tmp_path)
        code, lines = ended.returncode, ended.stderr.strip().splitlines()
        lines = [line for line in lines if not line.startswith("warning: ")]
        good = code == 2 and len(lines) == 1 and lines[0].startswith("error: ")
        if not good or message.format(**places) not in lines[0]:
            wrong.append((given, code, lines[-3:]))
        left = files(places["tmp"], places["run"]).items() ^ before.items()
        if left or list(tmp_path.iterdir()):
            wrong.append((given, "left", sorted(left), list(tmp_path.iterdir())))
            break
    assert not wrong, "\n".join(map(str, wrong))


def test_the_table_is_long():
    assert len(bad_inputs.TABLE) >= 100
    assert {name for name, _, _ in bad_inputs.TABLE} == set(PROGRAMS)


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_and_version_are_no_errors(program):
    # Also beside flags that would be refused.
    for arguments in (["--help"], ["--nonsense", "-h"]):
        shown = call(program, *arguments)
        assert (shown.returncode, shown.stderr) == (0, "")
        usage = importlib.import_module(f"anpvs_tf.programs.{program}").__doc__.strip()
        assert shown.stdout.startswith(usage)
        assert max(map(len, shown.stdout.splitlines())) <= 100
    shown = call(program, "--version")
    assert (shown.returncode, shown.stdout) == (0, f"anpvs_tf {anpvs_tf.__version__}\n")


def test_the_help_of_training_shows_every_setting_once():
    shown = call("train", "--help").stdout
    for name in settings.CHOSEN:
        assert len(re.findall(rf"^  --(?:\[no\])?{name}\b", shown, re.M)) == 1, name
    assert "logical_cpus" not in shown


def test_a_port_that_is_taken(tmp_path, monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
        monkeypatch.setenv("KERASTUNER_ORACLE_PORT", str(port))
        monkeypatch.setenv("KERASTUNER_TUNER_ID", "chief")
        ended = call("tune", "--beta=1:2", "--run_dir=sweep", cwd=tmp_path)
    assert ended.returncode == 2
    assert f"error: cannot serve on 127.0.0.1:{port}: Address already in use" in ended.stderr
    assert not list(tmp_path.iterdir())


def test_names_are_those_of_what_they_name():
    assert tuple(architectures.NETWORKS) == names.NETWORKS
    assert tuple(optimizer.OPTIMIZERS) == hyperparameters.OPTIMIZERS
    assert tuple(oracles._ORACLES) == tuning_names.TUNERS
    assert tuple(attack_settings.USES) == tuple(registry.ATTACKS)


def test_flags_are_checked_before_tensorflow_is_imported(tmp_path):
    script = """
import sys
for program, arguments in {
    "train": ["--beta=-1"], "evaluate": ["--run_dir=x"], "export": ["--run_dir=x"],
    "report": ["x"], "tune": ["--run_dir=x", "--beta=2:1"],
}.items():
    module = __import__(f"anpvs_tf.programs.{program}", fromlist=["run"])
    for given in (arguments, ["--help"]):
        sys.argv = [program, *given]
        try:
            module.run()
        except SystemExit:
            pass
print(sorted({"tensorflow", "keras", "keras_tuner", "scipy", "matplotlib"} & set(sys.modules)))
"""
    begun = time.monotonic()
    found = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=60,
    )
    assert found.stdout.splitlines()[-1] == "[]", found.stderr
    assert found.stderr.count("error: ") == 5
    assert time.monotonic() - begun < 30
