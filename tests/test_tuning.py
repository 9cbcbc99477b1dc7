"""Sweeps: what is swept, what is maximised, and that no trial is lost or run twice."""

import collections
import json
import multiprocessing
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import keras_tuner
import pytest

from anpvs_tf import loop, resolving, runs
from anpvs_tf.errors import Interrupted, TrainingError, UsageError
from anpvs_tf.methods import METHODS
from anpvs_tf.reporting import reading
from anpvs_tf.runs import RunDirectory
from anpvs_tf.tuning import objectives, search, space, sweep, table
from anpvs_tf.tuning.sweep import Definition, Sweep

ROOT = pathlib.Path(__file__).parent.parent
TINY = {
    "epochs": "2",
    "steps_per_epoch": "2",
    "base_epochs": "1",
    "eval_examples": "20",
    "attack_steps": "1",
    "eval_attack_steps": "1",
}
BETA = {"beta": "0.5:16:log"}

# ---- What is swept ----


def declared(swept, seeds=range(200)):
    hyperparameters = keras_tuner.HyperParameters()
    swept.declare("x", hyperparameters)
    (one,) = hyperparameters.space
    return [swept.value(one.random_sample(seed)) for seed in seeds]


def test_a_range_is_drawn_on_its_scale():
    parsed = space.parse({"beta": "0.01:100:log", "lambda_vs": "0:10", "epochs": "2:9:log"}).swept
    drawn = declared(parsed["beta"])
    assert min(drawn) >= 0.01 and max(drawn) <= 100
    assert 0.4 < sum(value < 1 for value in drawn) / 200 < 0.6
    drawn = declared(parsed["lambda_vs"])
    assert 0.4 < sum(value < 5 for value in drawn) / 200 < 0.6
    assert all(float(f"{value:.3e}") == value for value in drawn)
    drawn = declared(parsed["epochs"])
    assert set(map(type, drawn)) == {int} and set(drawn) <= set(range(2, 10))


def test_steps_and_choices_are_values_of_the_setting():
    parsed = space.parse(
        {
            "beta": "0.5:8:log:5",
            "epochs": "2:4:9",
            "decay_at": "0.5,0.8|0.6",
            "shrink": "true|false",
            "network": "lenet5|vgg16",
            "seed": "3|1",
            "augment": "False",
        }
    )
    ends = {name: swept.ends for name, swept in parsed.swept.items()}
    assert ends["beta"] == (0.5, 1, 2, 4, 8)
    assert ends["epochs"] == (2, 3, 4)
    assert ends["decay_at"] == (("0.5", "0.8"), ("0.6",))
    assert ends["shrink"] == (True, False)
    assert ends["seed"] == (3, 1)
    assert parsed.constants == {"augment": False}
    for name, swept in parsed.swept.items():
        assert set(declared(swept)) == set(swept.ends), name
    values = parsed.values(
        {"beta": 2.0, "epochs": 3, "seed": 1}
        | dict.fromkeys(["tuner/x"], 5)
        | {"decay_at": "0.6", "shrink": "false", "network": "vgg16"}
    )
    assert resolving.resolve(values | {"dataset": "cifar10"}).decay_at == (0.6,)
    assert values["shrink"] is False and "tuner/x" not in values


@pytest.mark.parametrize(
    ("texts", "more", "message"),
    [
        ({"beta": "4:1"}, {}, "empty"),
        ({"beta": "2:2"}, {}, "empty"),
        ({"beta": "0:1:log"}, {}, "log range"),
        ({"beta": "a:b"}, {}, "--beta must be of kind float; got 'a'"),
        ({"beta": "nan:2"}, {}, "kind float"),
        ({"beta": "1:inf"}, {}, "kind float"),
        ({"beta": "1:2:cubic"}, {}, "low:high"),
        ({"beta": "1:2:1"}, {}, "at least 2 steps"),
        ({"beta": "1|"}, {}, "kind float"),
        ({"epochs": "1.5:4"}, {}, "kind int"),
        ({"shrink": "true|maybe"}, {}, "kind bool"),
        ({"seed": "0|0"}, {}, "twice"),
        ({"beta": "1"}, {}, "nothing is swept"),
        ({}, {}, "nothing is swept"),
        ({"beta": "-1:2"}, {}, "at least 0"),
        ({"network": "lenet5|alexnet"}, {}, "alexnet"),
        ({"method": "at", "beta": "1:2"}, {}, "--beta is not used by --method=at"),
        ({"method": "anpvs|at", "beta": "1:2"}, {}, "--beta is not used by --method=at"),
        (BETA, {"tuner": "magic"}, "unknown --tuner"),
        (BETA, {"tuner": "grid"}, "needs steps"),
        (BETA, {"tuner": "hyperband", "trials": 3}, "not used"),
        ({"epochs": "2:9"}, {"tuner": "hyperband"}, "varies --epochs"),
        (BETA, {"trials": 0}, "at least 1"),
        (BETA, {"objective": "speed"}, "unknown --objective"),
        (BETA, {"objective": "robust@speed>=1"}, "unknown --objective"),
        (BETA, {"objective": "robust@sparsity"}, "unknown --objective"),
        (BETA, {"objective": "robust@sparsity>=much"}, "must be a number"),
        (
            {"method": "at", "learning_rate": "1e-3:1e-2:log"},
            {"objective": "robust@sparsity>=0.5"},
            "--method=at prunes nothing",
        ),
    ],
)
def test_what_cannot_be_swept_is_said_and_nothing_is_written(texts, more, message, tmp_path):
    with pytest.raises(UsageError, match=message) as caught:
        Sweep(tmp_path / "s", Definition(texts, **more)).check()
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


# ---- What is maximised ----


def figures(clean=0.9, robust=0.6, sparsity=0.8, vulnerability=0.02):
    return dict(clean=clean, robust=robust, sparsity=sparsity, vulnerability=vulnerability)


def test_scores_by_hand():
    assert objectives.parse("robust").score(figures()) == 0.6
    assert objectives.parse("pareto").score(figures()) == pytest.approx((0.9 + 0.6 + 0.8) / 3)
    limited = objectives.parse("robust@sparsity>=0.75")
    assert limited.score(figures()) == 0.6
    assert limited.score(figures(sparsity=0.75, robust=0.0)) == 0.0
    assert limited.score(figures(sparsity=0.5, robust=0.9)) == pytest.approx(-0.25)
    assert limited.score(figures(sparsity=0.7, robust=0.1)) == pytest.approx(-0.05)
    upper = objectives.parse("clean@vulnerability<=0.01")
    assert upper.score(figures()) == pytest.approx(-0.01)
    assert upper.score(figures(vulnerability=0.01)) == 0.9


def test_a_score_is_that_of_the_epoch_that_was_kept(tmp_path):
    run = RunDirectory(tmp_path)
    row = {"validation_clean_accuracy": 0.5, "validation_vulnerability": 0.1, "sparsity": 0.2}
    rows = [row | {"epoch": e, "validation_robust_accuracy": e / 10} for e in (1, 2, 3)]
    run.write_metrics(rows, [])
    # The test set says otherwise, and an evaluation came first.
    run.write_results([{"robust_accuracy": 1.0}, {"efficiency": {}, "epoch": 2}])
    assert objectives.validation_figures(run) == figures(0.5, 0.2, 0.2, 0.1)


def test_the_front_is_what_nothing_beats():
    points = [(1, 1), (2, 0), (0, 2), (0.5, 0.5), (1, 0.5), (1, 1)]
    assert table.front(points) == [True, True, True, False, False, True]
    assert table.front([]) == []


def test_a_shorter_trial_is_the_same_recipe():
    whole = resolving.resolve({"epochs": 26})
    short = sweep.shortened(whole, 9)
    changed = {
        name: (value, getattr(short, name))
        for name, value in vars(whole).items()
        if value != getattr(short, name)
    }
    warm = {f"{name}_epochs": (4, 1) for name in ("kl_warmup", "kl_ramp", "epsilon_warmup")}
    assert changed == warm | {"epochs": (26, 9), "admm_epochs": (14, 5)}
    pruned = resolving.resolve({"method": "admm", "epochs": 26})
    assert sweep.shortened(pruned, 2).admm_epochs == 1


# ---- No trial is lost, none is run twice; training is a stand-in here ----


def stand_in(chosen, run, data_dir=None, download=True, command=(), execution=None):
    """Trains nothing, but owns, refuses and leaves files like `loop.train`."""
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
        row = dict.fromkeys(objectives.FIGURES.values(), 0.5) | {"epoch": 1}
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
    loop.train = stand_in
    search.run(Sweep(path, definition))


@pytest.fixture
def untrained(monkeypatch):
    monkeypatch.setattr(loop, "train", stand_in)
    monkeypatch.setattr(sweep.datasets, "load", lambda *_, **__: None)
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
    write = runs.write_atomically
    for step in range(1, 200):
        path, left = tmp_path / str(step), [step]

        def dying(where, text, left=left):
            left[0] -= 1
            if not left[0]:
                raise Died
            write(where, text)

        with monkeypatch.context() as patch:
            for module in (runs, search.oracles, search):
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
            patch.setattr(loop, "train", stops)
            with pytest.raises((Interrupted, TrainingError), match=r"kept|No space"):
                search.run(whole)
        assert [row["state"] for row in table.trials(whole)] == ["unfinished"]
    search.run(whole)
    assert len(outcome(tmp_path / "s")) == 2
    assert set(ended(tmp_path / "s").values()) == {1}


# ---- Other processes ----


@pytest.fixture(scope="module")
def processes():
    """Processes that need not import TensorFlow each."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["anpvs_tf.tuning.search"])
    started = []

    def start(definition, path, seconds=0.0, **variables):
        environment = {"STAND_IN_SECONDS": str(seconds)} | variables
        process = context.Process(target=_in_process, args=(definition, path, environment))
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


def test_kill_9_within_a_trial(tmp_path, processes):
    path, definition = tmp_path / "s", Definition({"beta": "1:2"}, trials=3)
    first = processes(definition, path, seconds=5)
    wait_for(lambda: begun(path) == 1)
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    second = processes(definition, path)
    second.join(60)
    assert second.exitcode == 0
    assert ended(path) == {"trial-0000": 1, "trial-0001": 1, "trial-0002": 1}
    assert [state for _, _, state, _ in outcome(path)] == ["done"] * 3


def test_two_workers_share_a_sweep_and_a_third_dies(tmp_path, processes):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path, definition = tmp_path / "s", Definition({"beta": "1:2"}, trials=7)

    def start(tuner_id, seconds):
        return processes(
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
        search.role()
    for name, value in good.items():
        monkeypatch.setenv(name, value)
    assert search.role().name == "chief"


# ---- With real training ----


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two trials, of which the second cannot be trained, by the program itself."""
    path = tmp_path_factory.mktemp("real") / "sweep"
    flags = {"batch_size": "16|4096", "method": "anp", "gate_scope": "dense"} | TINY
    result = program("--tuner=grid", "--noshrink", run_dir=path, **flags)
    assert result.returncode == 0, result.stderr
    return path, result.stdout


def program(*arguments, **flags):
    flags = [f"--{name}={value}" for name, value in flags.items()]
    return subprocess.run(
        [sys.executable, str(ROOT / "bin/tune.py"), *arguments, *flags],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=900,
    )


def test_trials_are_runs(trained):
    path, output = trained
    found, skipped = reading.collect([str(path)])
    by_name = {pathlib.Path(run.path).name: run for run in found}
    assert not skipped
    assert {name for name in by_name if name.startswith("trial")} == {"trial-0000"}
    run = by_name["trial-0000"]
    assert run.settings.batch_size == 16 and run.settings.method == "anp"
    base = RunDirectory(run.settings.base_run)
    assert base.finished and base.settings().method == METHODS["anp"].base
    assert base.settings().batch_size == 16  # It decides the weights of the base too.
    run.directory.load_network()
    state = json.loads((path / "sweep.json").read_text())
    rows = {row["name"]: row for row in state["trials"]}
    assert rows["trial-0001"]["state"] == "failed"
    assert "--batch_size=4096" in rows["trial-0001"]["reason"]
    for name, run in by_name.items():
        if name in rows:
            last = run.metrics[-1]
            assert rows[name]["score"] == rows[name]["robust"] == last["validation_robust_accuracy"]
            assert rows[name]["sparsity"] == last["sparsity"]
            assert rows[name]["latency"] > 0
    assert state["chosen"] in by_name and state["chosen"] in state["front"]
    assert f"--run_dir={path / state['chosen']}" in output
    assert "failed: --batch_size=4096" in output


def test_a_finished_sweep_is_shown_again(trained, monkeypatch):
    path, output = trained
    definition = sweep.read_definition(path)
    assert definition.settings["shrink"] == "false"
    monkeypatch.setattr(loop, "train", None)
    again = Sweep(path, definition)
    search.run(again)
    assert table.text(again) in output


def test_trials_that_agree_share_a_base(tmp_path, monkeypatch):
    made = Sweep(tmp_path / "s", Definition({"beta": "1|2", "seed": "0|1"} | TINY, tuner="grid"))
    chosen = []

    def stand_in(settings, run, *_, **__):
        chosen.append((settings, run.path.name))
        run.path.mkdir(parents=True)
        run.results_path.write_text("[]")

    monkeypatch.setattr(loop, "train", stand_in)
    for i, seed in enumerate((0, 0, 1, 1)):
        made.train(made.settings_of({"beta": 1 + i % 2, "seed": seed}), made.run_of(str(i)))
    bases = [(one, name) for one, name in chosen if name.startswith("base")]
    assert [one.seed for one, _ in bases] == [0, 1]
    trials = [one for one, name in chosen if name.startswith("trial")]
    assert [pathlib.Path(one.base_run).name for one in trials] == [
        bases[0][1],
        bases[0][1],
        bases[1][1],
        bases[1][1],
    ]
    assert {one.epochs for one, _ in bases} == {1}
