"""The page of --format=web: what is in it, its check, and what it does in a browser."""

import base64
import html.parser
import json
import re
import shutil
import time

import browser
import fake_runs
import numpy as np
import pytest
import tensorflow as tf

from anpvs_tf.attacks import threat_model
from anpvs_tf.attacks.projected_gradient import pgd
from anpvs_tf.common.errors import TrainingError, UsageError
from anpvs_tf.data.loading import Split, load
from anpvs_tf.programs import export as program
from anpvs_tf.runs.finished_run import open_run
from anpvs_tf.serving import exporting, verification, web_page

TEST = load("digits").test
has_node = shutil.which("node") is not None


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """An untrained network, half of its features pruned, and a dense one."""
    path = tmp_path_factory.mktemp("runs")
    chosen = {"weights": path / "weights", "eval_attack_steps": 6}
    return [open_run(fake_runs.make(path / name, name, **chosen).path) for name in ("anpvs", "at")]


@pytest.fixture(scope="module")
def exported(runs, tmp_path_factory):
    """The page of both, checked on few images if Node.js is there."""
    base = tmp_path_factory.mktemp("exports") / "digits"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(web_page, "_CHECK", 1e8)
        return exporting.export(runs[0], base, format="web", rival=runs[1])


@pytest.fixture(scope="module")
def page(exported):
    return exported.path / "index.html"


class Scripts(html.parser.HTMLParser):
    """The scripts of a page, and what it would load."""

    def __init__(self, text):
        super().__init__()
        self.inside, self.scripts, self.loads, self.policy = None, {}, [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        held = dict(attributes)
        self.loads += [held[n] for n in ("src", "href", "srcset", "action", "data") if n in held]
        if held.get("http-equiv") == "Content-Security-Policy":
            self.policy = held["content"]
        self.inside = held["id"] if tag == "script" else None

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside is not None:
            self.scripts[self.inside] = self.scripts.get(self.inside, "") + data


@pytest.fixture(scope="module")
def parsed(page):
    return Scripts(page.read_text())


def test_the_page_is_one_file_that_loads_nothing(exported, page, parsed):
    assert {path.name for path in exported.path.iterdir()} == {"index.html", "README.md"}
    assert list(parsed.scripts) == ["content", "tfjs", "network", "page"]
    assert parsed.loads == []
    assert parsed.policy.startswith("default-src 'none';") and "http" not in parsed.policy
    own = "".join(parsed.scripts[name] for name in ("network", "page"))
    assert not re.search(
        r"fetch|XMLHttp|WebSocket|import\(|https?:", own.replace("http://www.w3.org/2000/svg", "")
    )
    assert "Apache License" in page.read_text()


def test_the_content_is_what_was_exported(exported, runs, parsed):
    content = json.loads(parsed.scripts["content"])
    compact = exported.compact_network
    held = [np.frombuffer(base64.b64decode(n["weights"]), "<f4") for n in content["networks"]]
    assert [len(one) for one in held] == [compact.count_params(), 431_080]
    kernel = compact.layers[1].get_weights()[0].ravel()
    np.testing.assert_array_equal(held[0][: kernel.size], kernel)
    assert content["epsilon"] == 0.13 and content["norm"] == "linf" and content["steps"] == 6
    rows = content["images"]["rows"]
    assert TEST.labels[rows].tolist() == content["images"]["labels"]
    pixels = np.frombuffer(base64.b64decode(content["images"]["pixels"]), np.uint8)
    np.testing.assert_array_equal(pixels, TEST.images[rows].ravel())


def test_the_first_image_of_each_class_is_chosen():
    labels = np.array([3, 3, 1, 0, 1, 2, 2])
    assert web_page.chosen(labels).tolist() == [3, 2, 5, 0, 1, 4, 6]
    many = np.arange(100)[::-1]
    assert web_page.chosen(many).tolist() == [99 - i for i in range(web_page.IMAGES)]


def test_a_rival_has_the_same_data(runs, tmp_path):
    other = open_run(fake_runs.make(tmp_path / "other", "at", dataset="mnist").path)
    with pytest.raises(UsageError, match=r"same data, digits \(28 x 28 x 1, 10 classes\); .*mnist"):
        exporting.export(runs[0], tmp_path / "base", format="web", rival=other)
    with pytest.raises(UsageError, match="--rival belongs to --format=web; got --format=keras"):
        exporting.export(runs[0], tmp_path / "base", format="keras", rival=runs[1])
    assert not (tmp_path / "base").exists()


# ---- The check ----


@pytest.mark.skipif(not has_node, reason="Node.js is not installed")
def test_the_networks_of_the_page_are_checked(exported, runs):
    report = exported.report
    assert report.examples == web_page._FEWEST and report.unchecked == ""
    assert list(report.exported) == ["index.html", "rival"]
    for found in report.exported.values():
        assert found.equal_classes == report.examples and found.difference < 1e-6
    images = TEST.images[: report.examples]
    for name, run in zip(report.exported, runs, strict=True):
        logits = run.network()(images.astype(np.float32) / 255.0, training=False)["logits"]
        right = np.mean(logits.numpy().argmax(axis=-1) == TEST.labels[: report.examples])
        assert report.exported[name].accuracy == right


@pytest.mark.skipif(not has_node, reason="Node.js is not installed")
def test_a_page_that_computes_something_else_is_refused(exported, page, tmp_path):
    few = Split(TEST.images[:2], TEST.labels[:2])
    text = page.read_text()
    for wrong, message in (
        ("tf.matMul(kernel, x)", "node: Error"),
        ("tf.matMul(x, tf.neg(kernel))", "disagrees"),
    ):
        (tmp_path / "index.html").write_text(text.replace("tf.matMul(x, kernel)", wrong))
        with pytest.raises(TrainingError, match=message):
            verification.verify(exported.training_network, few, None, tmp_path)


def test_without_node_the_page_is_written_and_said_to_be_unchecked(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    done = exporting.export(runs[0], tmp_path / "base", format="web")
    assert done.report.exported == {} and done.report.unchecked == "node is not installed"
    card = (done.path / "README.md").read_text()
    assert "The export was not checked: node is not installed" in card
    measured = {"parameters": 1, "saved_model_bytes": 1, "latency": {}, "peak_memory": {}}
    table = program.table(done, dict.fromkeys(("training network", "exported"), measured))
    assert "not checked: node is not installed" in table


# ---- In a browser ----

needs_browser = pytest.mark.skipif(browser.find() is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    one = browser.Browser(tmp_path_factory.mktemp("profile"))
    yield one
    one.close()


def wait_for(chromium, state="done"):
    deadline = time.monotonic() + 60
    while chromium.evaluate("document.body.dataset.state") != state:
        assert time.monotonic() < deadline, chromium.events
        time.sleep(0.02)


def shown(chromium, number):
    """(label, what the network says, pixels of the attacked image) of a network's card."""
    card = f"document.querySelector('article[data-number=\"{number}\"]')"
    label, says = chromium.evaluate(f"[{card}.dataset.label, {card}.dataset.says].map(Number)")
    canvas = f"{card}.querySelector('.attacked')"
    context = f"{canvas}.getContext('2d').getImageData(0, 0, 28, 28)"
    red = np.array(chromium.evaluate(f"[...{context}.data].filter((_, i) => i % 4 === 0)"))
    return label, says, red.reshape(1, 28, 28, 1)


def move(chromium, slider, value):
    element = f"document.getElementById('{slider}')"
    event = f"{element}.dispatchEvent(new Event('input'))"
    chromium.evaluate(f"{element}.value = {value}; {event}; 1")


@needs_browser
def test_a_chosen_image_is_attacked_as_the_library_does(page, runs, chromium):
    chromium.open(page)
    wait_for(chromium)
    assert all(event["method"] not in WRONG for event in chromium.events)
    asked = [e for e in chromium.events if e["method"] == "Network.requestWillBeSent"]
    assert [one["params"]["request"]["url"] for one in asked] == [page.resolve().as_uri()]
    row = json.loads(Scripts(page.read_text()).scripts["content"])["images"]["rows"][3]
    chromium.evaluate("document.querySelector('#images button[data-number=\"3\"]').click()")
    wait_for(chromium)
    move(chromium, "epsilon", 60)
    wait_for(chromium)
    assert chromium.evaluate("document.getElementById('epsilon_value').innerText") == "ε = 0.195"
    image = TEST.images[row : row + 1].astype(np.float32) / 255.0
    epsilon = 0.13 * 60 / 40
    for number, run in enumerate(runs):
        network = run.network()
        attacked = pgd(
            lambda x, network=network: network(x, training=False)["logits"],
            tf.constant(image),
            tf.constant([3]),
            seed=[0, 0],
            epsilon=epsilon,
            step_size=2.5 * epsilon / 6,
            steps=6,
            random_start=False,
        ).numpy()
        threat_model.assert_in_threat_model(image, attacked, epsilon, "linf")
        label, says, pixels = shown(chromium, number)
        assert label == 3
        assert says == network(attacked, training=False)["logits"].numpy().argmax()
        np.testing.assert_allclose(pixels / 255.0, attacked, atol=0.51 / 255.0)
    # Back to the image itself.
    move(chromium, "at", 0)
    np.testing.assert_array_equal(shown(chromium, 0)[2], TEST.images[row : row + 1])


WRONG = ("Runtime.exceptionThrown", "Log.entryAdded")


@needs_browser
def test_a_drawing_is_attacked(page, chromium):
    chromium.open(page, "dark", width=400)
    wait_for(chromium)
    pressed = "document.querySelectorAll('#images [aria-pressed=\"true\"]').length"
    assert chromium.evaluate(pressed) == 1
    chromium.evaluate("document.getElementById('pad').scrollIntoView()")
    box = "(({left, top}) => [left, top])(document.getElementById('pad').getBoundingClientRect())"
    left, top = chromium.evaluate(box)
    for kind, x, y in (("Pressed", 70, 20), ("Moved", 70, 120), ("Released", 70, 120)):
        held = {"button": "left", "buttons": 0 if kind == "Released" else 1, "clickCount": 1}
        chromium.call(
            "Input.dispatchMouseEvent", type=f"mouse{kind}", x=left + x, y=top + y, **held
        )
    wait_for(chromium)
    assert chromium.evaluate(pressed) == 0
    move(chromium, "at", 0)
    label, says, pixels = shown(chromium, 0)
    assert label == says  # Its right class is not known.
    # A vertical stroke, in the middle and as high as the digits are.
    assert pixels[0, :, 13:15].min() > 150
    assert pixels[0, :, :6].max() == pixels[0, :, -6:].max() == 0
    assert all(event["method"] not in WRONG for event in chromium.events)
    assert chromium.evaluate("document.documentElement.scrollWidth") <= 400


@needs_browser
def test_all_images_are_attacked_at_once(page, runs, chromium):
    chromium.open(page)
    wait_for(chromium)
    move(chromium, "steps", 1)
    move(chromium, "epsilon", 0)
    wait_for(chromium)
    chromium.evaluate("document.getElementById('all').click()")
    assert chromium.evaluate("document.body.dataset.state") == "running"
    wait_for(chromium)
    # At a radius of 0, those hold that are right.
    rows = json.loads(Scripts(page.read_text()).scripts["content"])["images"]["rows"]
    right = [
        run.network()(TEST.images[rows].astype(np.float32) / 255.0, training=False)["logits"]
        .numpy()
        .argmax(axis=-1)
        == TEST.labels[rows]
        for run in runs
    ]
    counts = [int(one.sum()) for one in right]
    tally = chromium.evaluate("document.getElementById('tally').innerText")
    assert tally == f"Held of 12: anpvs {counts[0]}, at {counts[1]}"
    marks = (
        "[...document.querySelectorAll('.marks')].map((one) => one.innerText.replace(/\\s/g, ''))"
    )
    signs = ["".join("✗✓"[int(held)] for held in pair) for pair in zip(*right, strict=True)]
    assert chromium.evaluate(marks) == signs
