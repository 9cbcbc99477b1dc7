"""Sweeps: no trial is lost, none is run twice; training is a stand-in here."""

import collections
import json
import os
import signal
import socket
import time
import types

import processes
import pytest

from anpvs_tf.common import files
from anpvs_tf.common.errors import Interrupted, TrainingError, UsageError
from anpvs_tf.data import loading
from anpvs_tf.runs import directory
from anpvs_tf.training import trainer
from anpvs_tf.tuning import oracles, remaining, role, score, search, table
from anpvs_tf.tuning.sweep import Definition, Sweep

BETA = {"beta": "0.5:16:log"}


def stand_in(chosen, run, data_dir=None, download=True, command=(), **_):
    """Trains nothing, but owns, refuses and leaves files like `trainer.train`."""
    if run.finished:
        return
    run.check(chosen)
    with run.owned():
        run.begin(chosen, [])
        note(run, "begin")
        if run.path.name.startswith("trial"):
            time.sleep(float(os.environ.get("STAND_IN_SECONDS", 0)))
        if chosen.method == "anpvs" and chosen.beta > 4:
            note(run, "end")
            raise TrainingError("the gates collapsed in epoch 1")
        row = dict.fromkeys(score.FIGURES.values(), 0.5) | {"epoch": 1}
        run.write_metrics([row | {"sparsity": chosen.beta / 16}], [])
        latency = {"measured": {"compact": {"latency": {"1": 1e-3}}}}
        run.write_results([{"efficiency": latency, "epoch": 1}])
        note(run, "end")


def note(run, what):
    if run.path.name.startswith("trial"):
        with open(run.path.parent / "log.txt", "a") as file:
            file.write(f"{run.path.name} {what} {os.getpid()}\n")


def log_of(path):
    return [line.split() for line in (path / "log.txt").read_text().splitlines()]


def search_here(definition, path):
    """For other processes too: they get what pickles."""
    trainer.train = stand_in
    search.run(Sweep(path, definition))


@pytest.fixture
def untrained(monkeypatch):
    monkeypatch.setattr(trainer, "train", stand_in)
    monkeypatch.setattr(loading, "load", lambda *_, **__: None)
    monkeypatch.setattr(directory, "versions", dict)
    monkeypatch.setattr(search.gc, "collect", lambda: None)
    monkeypatch.setattr(search.keras.backend, "clear_session", lambda: None)


def ended(path):
    return collections.Counter(name for name, what, _ in log_of(path) if what == "end")


def outcome(path):
    return [
        (row["name"], row["values"], row["state"], row.get("score"))
        for row in json.loads((path / "sweep.json").read_text())["trials"]
    ]


class Died(BaseException):
    pass


SWEEPS = {
    "random": Definition(BETA, trials=3),
    "grid": Definition({"beta": "1:16:log:2", "lambda_vs": "1|2"}, tuner="grid"),
    "hyperband": Definition(BETA | {"epochs": "3"}, tuner="hyperband"),
}


@pytest.mark.parametrize("tuner", SWEEPS)
def test_a_sweep_that_dies_before_any_write_ends_like_one_that_does_not(
    tuner, tmp_path, untrained, monkeypatch
):
    definition = SWEEPS[tuner]
    search.run(Sweep(tmp_path / "whole", definition))
    wanted = outcome(tmp_path / "whole")
    assert {state for _, _, state, _ in wanted} == {"done", "failed"}
    if tuner == "grid":
        grid = [{"beta": beta, "lambda_vs": vs} for beta in (1, 16) for vs in (1, 2)]
        assert [values for _, values, _, _ in wanted] == grid
    write = files.write_atomically
    for step in range(1, 200):
        path, left = tmp_path / str(step), [step]

        def dying(where, text, left=left):
            left[0] -= 1
            if not left[0]:
                raise Died
            write(where, text)

        with monkeypatch.context() as patch:
            for module in (directory, search.oracles, search):
                patch.setattr(module, "write_atomically", dying)
            try:
                search.run(Sweep(path, definition))
                break  # It has fewer writes.
            except Died:
                pass
        search.run(Sweep(path, definition))
        found = outcome(path)
        assert found == wanted
        done = {name for name, _, state, _ in found if state == "done"}
        times = ended(path)
        # Failures of which keras-tuner was not told yet happen once more.
        # None if it died between its results and its word that it had ended.
        assert {times[name] for name in done} <= {0, 1}
        assert max(times.values()) <= 2
    assert step > 15


def test_the_planned_trials_are_those_that_come(tmp_path, untrained):
    sweeps = SWEEPS | {
        "first of a grid": Definition({"beta": "1|2|3"}, tuner="grid", trials=2),
        "hyperband": Definition({"beta": "1:2", "epochs": "9"}, tuner="hyperband"),
    }
    for name, definition in sweeps.items():
        sweep = Sweep(tmp_path / name, definition)
        search.run(sweep)
        oracle = search._tuner(sweep).oracle
        found = [oracles.work(trial) for trial in oracle.trials.values()]
        assert sorted(found) == sorted(oracle.planned()), name


def test_the_time_left_is_by_the_trials_that_ended_here(monkeypatch):
    def trial(status, epochs):
        values = {"tuner/epochs": epochs}
        return types.SimpleNamespace(
            status=status, hyperparameters=types.SimpleNamespace(values=values)
        )

    clock = types.SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(remaining, "time", clock)
    trials = {"0": trial("COMPLETED", 5), "1": trial("RUNNING", 10)}
    oracle = types.SimpleNamespace(trials=trials, planned=lambda: [5, 10, 3, 12])
    left = remaining.Remaining(oracle)
    clock.now += 1000
    assert left.text() == "1 of 4 trials"  # How long that took is not known here.
    trials["1"].status = "FAILED"
    # 1,000 seconds for ten epochs; 15 are left.
    assert left.text().startswith("2 of 4 trials, about 25:00 to go, until ")
    trials |= {"2": trial("COMPLETED", 3), "3": trial("COMPLETED", 12)}
    assert left.text() == "4 of 4 trials" and left.ended() == 4


def test_more_trials_go_on_and_other_definitions_are_refused(tmp_path, untrained):
    search.run(Sweep(tmp_path / "s", Definition(BETA, trials=2)))
    before = outcome(tmp_path / "s")
    search.run(Sweep(tmp_path / "s", Definition(BETA, trials=11)))
    after = outcome(tmp_path / "s")
    assert after[:2] == before and len(after) == 11
    assert set(ended(tmp_path / "s").values()) == {1}
    for changed in (Definition({"beta": "1:2"}), Definition(BETA, objective="clean")):
        with pytest.raises(UsageError, match="holds a sweep of other"):
            search.run(Sweep(tmp_path / "s", changed))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds no sweep"):
        search.run(Sweep(tmp_path / "full", Definition(BETA)))


def test_a_bayesian_search_finds_the_limit(tmp_path, untrained):
    # Of the stand-in, sparsity is beta / 16, and above beta = 4 it fails.
    definition = Definition(
        {"beta": "0.1:4"}, tuner="bayesian", trials=6, objective="sparsity@sparsity<=0.2"
    )
    search.run(Sweep(tmp_path / "s", definition))
    rows = json.loads((tmp_path / "s/sweep.json").read_text())["trials"]
    assert max(row["score"] for row in rows[3:]) > max(row["score"] for row in rows[:3])
    assert max(row["score"] for row in rows) > 0.17
    assert json.loads((tmp_path / "s/sweep.json").read_text())["chosen"]


def test_an_interruption_or_a_full_disk_ends_the_sweep_and_fails_no_trial(
    tmp_path, untrained, monkeypatch
):
    whole = Sweep(tmp_path / "s", Definition(BETA, trials=2))
    for error in (Interrupted(15, "kept"), OSError(28, "No space left on device")):

        def stops(*_, error=error, **__):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(trainer, "train", stops)
            with pytest.raises((Interrupted, TrainingError), match=r"kept|No space"):
                search.run(whole)
        assert [row["state"] for row in table.trials(whole)] == ["unfinished"]
    search.run(whole)
    assert len(outcome(tmp_path / "s")) == 2
    assert set(ended(tmp_path / "s").values()) == {1}


# ---- Other processes ----


@pytest.fixture(scope="module")
def launch():
    """Starts searches in processes of their own, and ends them with the tests."""
    started = []

    def start(definition, path, seconds=0.0, **variables):
        environment = {"STAND_IN_SECONDS": str(seconds)} | variables
        process = processes.context().Process(
            target=_in_process, args=(definition, path, environment)
        )
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()


def _in_process(definition, path, environment):
    os.environ.update(environment)
    search_here(definition, path)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def begun(path):
    return len(log_of(path)) if (path / "log.txt").exists() else 0


def test_kill_9_within_a_trial(tmp_path, launch):
    path, definition = tmp_path / "s", Definition({"beta": "1:2"}, trials=3)
    first = launch(definition, path, seconds=5)
    wait_for(lambda: begun(path) == 1)
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    second = launch(definition, path)
    second.join(60)
    assert second.exitcode == 0
    assert ended(path) == {"trial-0000": 1, "trial-0001": 1, "trial-0002": 1}
    assert [state for _, _, state, _ in outcome(path)] == ["done"] * 3


def test_two_workers_share_a_sweep_and_a_third_dies(tmp_path, launch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path, definition = tmp_path / "s", Definition({"beta": "1:2"}, trials=7)

    def start(tuner_id, seconds):
        return launch(
            definition,
            path,
            seconds,
            KERASTUNER_ORACLE_IP="127.0.0.1",
            KERASTUNER_ORACLE_PORT=str(port),
            KERASTUNER_TUNER_ID=tuner_id,
        )

    dying = start("worker-9", 300)  # Before its chief.
    chief = start("chief", 0)
    wait_for(lambda: begun(path) == 1)
    workers = [start(f"worker-{i}", 0.3) for i in (1, 2)]
    wait_for(lambda: begun(path) > 4)
    os.kill(dying.pid, signal.SIGKILL)
    for process in (chief, *workers):
        process.join(90)
        assert process.exitcode == 0
    assert ended(path) == {f"trial-{i:04d}": 1 for i in range(7)}
    owners = {pid for _, what, pid in log_of(path) if what == "end"}
    assert len(owners) == 2
    assert [state for _, _, state, _ in outcome(path)] == ["done"] * 7
    assert json.loads((path / "sweep.json").read_text())["finished"]
    # Who comes late finds all done, and no chief.
    late = start("worker-1", 0)
    late.join(60)
    assert late.exitcode == 0


@pytest.mark.parametrize(
    "variables",
    [
        {"KERASTUNER_ORACLE_PORT": ""},
        {"KERASTUNER_ORACLE_PORT": "http"},
        {"KERASTUNER_TUNER_ID": ""},
        {"KERASTUNER_TUNER_ID": "a/b"},
    ],
)
def test_half_a_role_is_refused(variables, monkeypatch):
    good = {
        "KERASTUNER_ORACLE_IP": "127.0.0.1",
        "KERASTUNER_ORACLE_PORT": "8000",
        "KERASTUNER_TUNER_ID": "chief",
    }
    for name, value in (good | variables).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=next(iter(variables))):
        role.own_role()
    for name, value in good.items():
        monkeypatch.setenv(name, value)
    assert role.own_role().name == "chief"
