"""The pages say what is so: their commands, their code, their links."""

import itertools
import json
import os
import pathlib
import re
import runpy
import subprocess
import sys

import command_lines
import documents
import numpy as np
import processes
import pytest
from documents import PAGES, ROOT

TUTORIAL = ROOT / "docs" / "tutorial.md"

# The tutorial's commands are run as they are written, and these flags after them.
_TRAINING = ["--epochs=2", "--steps_per_epoch=3", "--eval_examples=40"]
WHOLE = {
    "bin/train.py": _TRAINING,
    "bin/evaluate.py": ["--examples=20"],
    "bin/report.py": ["--examples=10"],
    "bin/export.py": [],
    "bin/tune.py": [*_TRAINING, "--trials=2"],
}
# In the default run without what other tests run too: AutoAttack, figures of networks (and a
# second network, which they compare with).
SHORT = WHOLE | {
    "bin/evaluate.py": ["--examples=20", "--attack=pgd"],
    "bin/report.py": ["--examples=0"],
    "bin/tune.py": [*_TRAINING, "--trials=1", "--base_run=runs/digits-lenet5-standard-seed0"],
}
NOT_IN_SHORT = "method=at|-at-|epsilon|adversarial_examples|histograms|surfaces"
# What is not run: it installs, starts a server, or asks it (tests/serving/test_servers.py does).
NOT_RUN = ("python3 -m venv", "tensorboard", "docker", "curl")
# What the tutorial makes lies below these, or is the picture.
MADE = r"`((?:runs|report|exports|sweeps|sweep-report)/[^`\s]+|seven\.png)`"


@pytest.fixture(scope="module")
def in_process():
    """Calls a function in a process of its own that need not import TensorFlow."""

    def call(function, *arguments):
        process = processes.context().Process(target=function, args=arguments)
        process.start()
        process.join()
        return process.exitcode

    return call


def run_program(directory, output, program, arguments, small=False):
    """As `python program arguments` in a directory; with a small network as `lenet5`, if so."""
    _enter(directory, output)
    if small:
        import tiny_network

        tiny_network.replace_lenet5()
    sys.argv = [program, *arguments]
    runpy.run_path(str(ROOT / program), run_name="__main__")


def run_code(directory, output, code, names=()):
    """Python of a page."""
    _enter(directory, output)
    exec(compile(code, "page", "exec"), {"__name__": "__main__", **dict(names)})


def run_script(directory, output, code):
    """Python of a page in a process that has imported nothing yet."""
    with open(output, "w") as file:
        found = subprocess.run(
            [sys.executable, "-c", code],
            cwd=directory,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=file,
            stderr=file,
        )
    return found.returncode


def _enter(directory, output):
    os.chdir(directory)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)


# ---- Command lines ----


def test_every_command_is_one_that_its_program_takes(in_process, tmp_path):
    commands = [command for page in PAGES for command in documents.commands(page)]
    assert len(commands) > 50
    answer = tmp_path / "answer.json"
    assert in_process(command_lines.judge, commands, answer) == 0
    assert json.loads(answer.read_text()) == []


WRONG = {
    "python bin/train.py --epoch_count=3": "Unknown command line flag 'epoch_count'",
    "python bin/train.py --epsilon=8": "must be at most 1",
    "python bin/train.py --method=at --beta=2": "--beta is not used by --method=at",
    "python bin/train.py --dataset=tfds:x --network=vgg": "unknown network 'vgg'",
    "the `python bin/evaluate.py --run_dir=R --attack=pdg` here": "unknown attack 'pdg'",
    "python bin/evaluate.py --run_dir=R --attack=pgd --queries=9  # a": "used by square",
    "python bin/export.py --run_dir=R --export_base=B --format=caffe": "value should be one of",
    "cd x && python bin/report.py --out=DIR": "give run directories",
    "python bin/report.py runs": "--out is missing",
    "python bin/tune.py --run_dir=S \\\n  --beta=5:1 --trials=3": "is empty",
    "command: [python, bin/train.py]\nargs:\n  - --epochs=0": "--epochs must be",
    "python -m benchmarks.inference --patterns=all": "--patterns=all",
    "python -m tests.faults.kill --signal=INT": "invalid choice",
    "python -m tests.faults.corruption --kills=3": "takes no arguments",
    "python -m benchmarks.gone": "no such program",
}


def test_wrong_commands_are_found(in_process, tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "ROOT", tmp_path)
    commands = []
    for i, line in enumerate(WRONG):
        page = tmp_path / f"{i}.md"
        page.write_text(f"A title\n\n{line}\n")
        commands += documents.commands(page)
    answer = tmp_path / "answer.json"
    assert in_process(command_lines.judge, commands, answer) == 0
    found = json.loads(answer.read_text())
    assert [place for place, _ in found] == [f"{i}.md:3" for i in range(len(WRONG))]
    for (_, why), expected in zip(found, WRONG.values(), strict=True):
        assert expected in why


# ---- The tutorial, from beginning to end ----


@pytest.fixture(scope="module", params=["short", pytest.param("whole", marks=pytest.mark.slow)])
def followed(request, in_process, tmp_path_factory):
    """The directory in which the tutorial was followed, and what of a list is to be in it."""
    home, outputs = tmp_path_factory.mktemp("tutorial"), tmp_path_factory.mktemp("outputs")
    short = request.param == "short"
    added = SHORT if short else WHOLE

    def kept(names):
        return [name for name in names if not (short and re.search(NOT_IN_SHORT, name))]

    steps = []
    for language, text in documents.blocks(TUTORIAL):
        if language == "python":
            steps.append(("python", text))
        elif language == "sh":
            lines = text.replace("\\\n", " ").splitlines()
            steps += [("sh", line) for line in kept(lines) if not line.startswith(NOT_RUN)]
    for i, (language, step) in enumerate(steps):
        output = outputs / str(i)
        if language == "python":
            code = run_script(home, output, step)
        else:
            python, program, *arguments = documents.words(step)
            assert python == "python", f"{step!r} is neither run nor listed in NOT_RUN"
            code = in_process(run_program, home, output, program, arguments + added[program], short)
        assert code == 0, f"{step}\n{output.read_text()[-3000:]}"
    assert {documents.words(step)[1] for language, step in steps if language == "sh"} == set(added)
    return home, kept


def test_the_tutorial_makes_the_files_that_it_names(followed):
    home, kept = followed
    named = kept(sorted(set(re.findall(MADE, TUTORIAL.read_text()))))
    assert len(named) > 6
    assert [path for path in named if not (home / path).exists()] == []


def test_the_tutorials_figures_are_those_that_its_reports_make(followed):
    home, kept = followed
    made = {p.name for report in ("report", "sweep-report") for p in (home / report).rglob("*.png")}
    shown = [link.split("/")[-1] for link in documents.links(TUTORIAL) if link.endswith(".png")]
    assert len(shown) > 4
    assert set(kept(shown)) <= made


def test_serving_without_a_server(followed, in_process, tmp_path):
    """docs/serving.md, on what the tutorial exports."""
    home, _ = followed
    blocks = documents.blocks(ROOT / "docs" / "serving.md")
    (code,) = [text for language, text in blocks if language == "python" and "saved_model" in text]
    output = tmp_path / "output"
    assert in_process(run_code, home, output, code) == 0, output.read_text()
    assert "probabilities" in output.read_text()


# ---- Python ----


def shorter(code, changes):
    for long, short in changes.items():
        assert long in code, long
        code = code.replace(long, short)
    return code


def test_the_api_page(in_process, tmp_path):
    blocks = documents.blocks(ROOT / "docs" / "api.md")
    code = "\n".join(text for language, text in blocks if language == "python")
    changes = {
        "EPOCHS, IMAGES = 20, None": "EPOCHS, IMAGES = 2, 40",
        '"method": "anpvs"}': '"method": "standard", "epochs": 1, "eval_examples": 20}',
    }
    output = tmp_path / "output"
    code = shorter(code, changes)
    assert in_process(run_code, tmp_path, output, code) == 0, output.read_text()[-3000:]


def test_the_readmes_python(in_process, tmp_path):
    ((_, code),) = [one for one in documents.blocks(ROOT / "README.md") if one[0] == "python"]
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(8, 28, 28, 1)).astype(np.float32)
    names = {"images": images, "labels": np.arange(8)}
    data = "import tensorflow as tf\n"
    data += "train_dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(4)\n"
    output = tmp_path / "output"
    code = shorter(data + code, {"epochs=10": "epochs=1"})
    assert in_process(run_code, tmp_path, output, code, names) == 0, output.read_text()[-3000:]


# ---- Links ----


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_head_of_every_table_has_as_many_cells_as_its_rule(page):
    lines = page.read_text().splitlines()
    for head, rule in itertools.pairwise(lines):
        if re.fullmatch(r"\|( *:?-+:? *\|)+", rule):
            assert len(re.findall(r"(?<!\\)\|", head)) == rule.count("|"), head


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    wrong = []
    for link in documents.links(page):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in documents.anchors(target)):
            wrong.append(link)
    assert wrong == []


def test_every_page_is_in_the_readme_and_every_image_on_a_page():
    linked = {(ROOT / link.split("#")[0]).resolve() for link in documents.links(ROOT / "README.md")}
    assert [page for page in PAGES[1:] if page not in linked] == []
    shown = {(page.parent / link).resolve() for page in PAGES for link in documents.links(page)}
    images = list((ROOT / "docs" / "images").iterdir())
    assert [image for image in images if image not in shown] == []
    assert sum(image.stat().st_size for image in images) < 750_000


def test_anchors_are_those_of_headings(tmp_path):
    page = pathlib.Path(tmp_path / "page.md")
    page.write_text("# A page\n\n## What `x` is: 8 & 64\n\n```sh\n# no heading\n```\n\n[a](#b)\n")
    assert documents.anchors(page) == {"a-page", "what-x-is-8--64"}
    assert documents.links(page) == ["#b"]
