"""The report as a whole: its files, its page, and the page in a browser."""

import dataclasses
import html.parser
import json
import shutil

import browser
import fake_runs
import processes
import pytest

from anpvs_tf.common.errors import UsageError
from anpvs_tf.reporting import (
    grouping,
    page,
    robustness_figures,
    style,
    tables,
    training_figures,
)
from anpvs_tf.reporting.report import write

COMMAND = ["bin/report.py", "runs", "--out=report"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three methods, two seeds of two of them, evaluations of one; one run unfinished."""
    path = tmp_path_factory.mktemp("runs")
    fast = {"eval_attack_steps": 2, "weights": path.with_name("weights")}
    for seed in (0, 1):
        for method, robust in (("at", 0.7), ("anpvs", 0.6)):
            robust += 0.01 * seed
            name = f"{method} <{seed}>" if method == "at" else f"{method}{seed}"
            run = fake_runs.make(path / name, method, seed=seed, robust=robust, **fast)
            for epsilon, accuracy in ((0.05, 0.9), (0.3, 0.01)):
                attack = {"steps": 40, "step_size": epsilon / 16}
                fake_runs.evaluate(run, accuracy=accuracy, epsilon=epsilon, **attack)
            fake_runs.evaluate(run, accuracy=0.5, steps=40, step_size=0.02)
            fake_runs.evaluate(run, accuracy=0.6, steps=2, step_size=0.02, reliable=seed == 0)
    fake_runs.make(path / "standard", "standard", robust=0.02, eval_attack_steps=2)
    fake_runs.make(path / "unfinished", "anp").results_path.unlink()
    return path


@pytest.fixture(scope="module")
def report(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "report"
    write([str(runs)], out, examples=12, command=COMMAND)
    return out


class Page(html.parser.HTMLParser):
    """What there is in a page."""

    EMPTY = ("meta", "img", "source", "br")

    def __init__(self, path):
        super().__init__()
        self.ids, self.sources, self.images, self.classes = [], [], [], []
        self.open, self.texts = [], {}
        self.feed(path.read_text())
        self.close()

    def handle_starttag(self, tag, attributes):
        held = dict(attributes)
        self.classes += (held.get("class") or "").split()
        self.ids += [held["id"]] if "id" in held else []
        self.sources += [held[n] for n in ("src", "href", "srcset", "action") if n in held]
        if tag == "img":
            self.images.append(held)
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in {*self.open[-1:], *({"code"} & set(self.open))}:
            self.texts[tag] = self.texts.get(tag, "") + data


@pytest.fixture(scope="module")
def parsed(report):
    return Page(report / "report.html")


FIGURES = {
    "trade_off",
    "training",
    "loss_terms",
    "active_features",
    "accuracy_against_epsilon",
    "accuracy_against_steps",
    "vulnerability_histograms",
    "vulnerability_on_the_input",
    "loss_surfaces",
    "adversarial_examples",
}


def test_every_file_is_there_and_listed(report):
    manifest = json.loads((report / "report.json").read_text())
    found = {str(p.relative_to(report)) for p in report.rglob("*") if p.is_file()}
    assert found == {*manifest["files"], "report.json"}
    assert {path.stem for path in (report / "figures").glob("*.png")} == FIGURES
    assert {path.stem for path in (report / "figures").glob("*.svg")} == FIGURES
    tables = {path.name for path in (report / "tables").iterdir()}
    assert tables == {
        f"table{n}.{ending}" for n in ("1", "2a", "2b", "3") for ending in ("md", "csv", "tex")
    }
    (reason,) = manifest["left_out"].values()
    assert reason == "is not finished; resume it with bin/train.py"
    assert len(manifest["runs"]) == 5
    for path in (report / "figures").glob("*.png"):
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    for path in (report / "figures").glob("*.svg"):
        assert "dc:date" not in path.read_text()
    assert not list(report.parent.glob(".report*"))
    assert report.stat().st_mode & 0o777 == 0o755


def test_the_page_needs_nothing_but_itself(report, parsed):
    assert parsed.open == []
    assert all(source.startswith(("data:image/", "#")) for source in parsed.sources)
    assert {s[1:] for s in parsed.sources if s.startswith("#")} <= set(parsed.ids)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert set(parsed.ids) >= FIGURES
    assert len(parsed.images) == len(FIGURES)
    assert all(len(image["alt"]) > 30 for image in parsed.images)
    text = (report / "report.html").read_text()
    assert "http-equiv=" in text and "://" not in text.replace("http-equiv", "")
    assert "function sortTable" in parsed.texts["script"] and "sort" in parsed.classes


def test_the_page_says_what_a_reader_needs(report, parsed):
    text = (report / "report.html").read_text()
    assert "at &lt;0&gt;" in text and "at <0>" not in text
    assert "unfinished: is not finished" in text
    for command in (
        "python bin/train.py --dataset=digits",
        "python bin/evaluate.py --run_dir=",
        "python bin/report.py runs --out=report",
    ):
        assert command in parsed.texts["code"]
    assert "71.00" not in parsed.texts["td"] and "70.50" in parsed.texts["td"]
    for term in ("Clean accuracy", "Memory", "†"):
        assert term in parsed.texts["dt"]
    assert "Black box" not in parsed.texts["dt"]  # No column has it.
    assert "chance" in parsed.texts["span"] and "†" in parsed.texts["span"]
    for name in ("standard", "at", "anpvs"):
        assert name in parsed.texts["code"]
    assert "AutoAttack: python bin/evaluate.py" in parsed.texts["li"]


HOSTILE = """"><script>alert('x')<b class='&amp;'>{{ 7 * 7 }}"""


def test_names_are_text_whatever_they_hold(tmp_path):
    run = fake_runs.make(tmp_path / HOSTILE, "at", eval_attack_steps=2)
    fake_runs.evaluate(run, accuracy=0.4, epsilon=0.05, reliable=False)
    fake_runs.evaluate(run, accuracy=0.2, epsilon=0.3, reliable=True)
    held = run.results()
    held[1]["checks"][0] |= dict.fromkeys(("name", "meaning", "found"), HOSTILE)
    run.write_results(held)
    ((one,), _) = grouping.collect([str(run.path)])
    trained = one.trained | {"versions": {HOSTILE: HOSTILE}}
    settings = dataclasses.replace(one.settings, dataset=HOSTILE)
    command = ["bin/train.py", HOSTILE]
    one = dataclasses.replace(one, trained=trained, settings=settings, command=command)
    group = grouping.Group(HOSTILE, (one,))
    (table, *_) = tables.build([group])
    rows = [dataclasses.replace(row, published={"clean_accuracy": 1.0}) for row in table.rows]
    table = dataclasses.replace(table, title=HOSTILE, rows=rows, notes=(HOSTILE,))
    picture = style.Picture(*["name"], *[HOSTILE] * 3, draw=None, commands=(HOSTILE,))
    text = page.render(
        [group],
        [grouping.Skipped(HOSTILE, HOSTILE)],
        [table],
        [page.Figure(picture, "data:,", "data:,", 10)],
        [HOSTILE],
        HOSTILE,
    )
    (tmp_path / "page.html").write_text(text)
    found = Page(tmp_path / "page.html")
    assert found.open == [] and "b" not in found.texts
    assert "alert" not in found.texts["script"] and "7 * 7" in found.texts["code"]
    assert found.images[0]["alt"] == HOSTILE
    for tag in ("title", "h1", "caption", "h3", "code", "li", "span", "summary", "th", "td"):
        assert HOSTILE in found.texts[tag] or HOSTILE.replace("/", "\u2044") in found.texts[tag], (
            tag
        )


def test_the_same_runs_give_the_same_bytes_and_replace_an_earlier_report(runs, report, tmp_path):
    out = tmp_path / "again"
    shutil.copytree(report, out)
    (out / "tables/table1.md").write_text("stale")
    write([str(runs)], out, examples=0, command=COMMAND)
    kept = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert "figures/loss_surfaces.png" not in kept and "figures/training.svg" in kept
    for name in kept - {"report.html", "report.json"}:
        assert (out / name).read_bytes() == (report / name).read_bytes(), name


def test_a_failure_leaves_what_was_there(runs, tmp_path, monkeypatch):
    out = tmp_path / "report"
    monkeypatch.setattr(page, "render", lambda *_: 1 / 0)
    monkeypatch.setattr(training_figures, "build", lambda _: [])
    monkeypatch.setattr(robustness_figures, "build", lambda _: [])
    with pytest.raises(ZeroDivisionError):
        write([str(runs)], out, examples=0)
    assert list(tmp_path.iterdir()) == []


def test_never_writes_over_what_is_not_a_report(runs, report, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").write_text("mine")
    (tmp_path / "file").write_text("")
    shutil.copytree(report, tmp_path / "with_notes")
    (tmp_path / "with_notes/figures/mine.txt").write_text("mine")
    for name, held in (("notes", "mine.txt"), ("with_notes", "figures/mine.txt")):
        with pytest.raises(UsageError, match=f"holds other things .*{held}"):
            write([str(runs)], tmp_path / name, examples=0)
    for name in ("file", "file/below"):
        with pytest.raises(UsageError, match="is a file"):
            write([str(runs)], tmp_path / name, examples=0)
    with pytest.raises(UsageError, match="holds other things"):
        write([str(runs)], runs / "standard", examples=0)
    assert (tmp_path / "with_notes/figures/mine.txt").read_text() == "mine"


def test_a_network_that_cannot_be_loaded_is_named(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(training_figures, "build", lambda _: [])
    shutil.copytree(runs / "standard", tmp_path / "runs/standard")  # It has no weights.
    write([str(tmp_path / "runs")], tmp_path / "out", examples=5)
    text = (tmp_path / "out/report.html").read_text()
    assert "Figures of the network of standard" in text
    assert not (tmp_path / "out/figures/loss_surfaces.png").exists()


def test_the_program_refuses_in_one_line(runs, tmp_path):
    result = processes.call("bin/report.py", runs / "unfinished", f"--out={tmp_path / 'out'}")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: no finished run to report on")
    assert list(tmp_path.iterdir()) == []


# ---- In a browser ----

needs_browser = pytest.mark.skipif(browser.find() is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    one = browser.Browser(tmp_path_factory.mktemp("profile"))
    yield one
    one.close()


def first_cells(chromium, table):
    rows = f"[...document.querySelectorAll('#{table} tbody')]"
    return chromium.evaluate(f"{rows}.map(body => body.rows[0].cells[0].innerText)")


@needs_browser
def test_opens_from_disk_without_network_or_errors(report, chromium):
    for scheme, dark in (("light", False), ("dark", True)):
        chromium.open(report / "report.html", scheme)
        asked = [
            event["params"]["request"]["url"]
            for event in chromium.events
            if event["method"] == "Network.requestWillBeSent"
        ]
        outside = [url for url in asked if not url.startswith(("data:", "file:"))]
        assert outside == []
        assert [url for url in asked if url.startswith("file:")] == [
            (report / "report.html").resolve().as_uri()
        ]
        wrong = ("Runtime.exceptionThrown", "Log.entryAdded")
        assert [event for event in chromium.events if event["method"] in wrong] == []
        shade = "getComputedStyle(document.body).backgroundColor"
        red = int(chromium.evaluate(shade).removeprefix("rgb(").split(",")[0])
        assert (red < 60) == dark
        loaded = chromium.evaluate(
            "[...document.images].map(i => [i.complete && i.naturalWidth > 0, i.currentSrc])"
        )
        assert len(loaded) == len(FIGURES) and all(complete for complete, _ in loaded)
        light = chromium.evaluate("[...document.images].map(i => i.src)")
        assert all((used != src) == dark for (_, used), src in zip(loaded, light, strict=True))
        assert chromium.evaluate(
            "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        )


@needs_browser
def test_sorts_by_keyboard_with_what_is_missing_last(report, chromium):
    chromium.open(report / "report.html")
    assert first_cells(chromium, "table2a") == ["standard", "at", "anpvs"]
    # Heads: method, n, epsilon 0.05 (which the standard network lacks), 0.13, 0.3.
    focus = "document.querySelectorAll('#table2a button.sort')[{}].focus()"
    state = "document.querySelectorAll('#table2a th[scope=col]')[{}].getAttribute('aria-sort')"
    chromium.evaluate(focus.format(3))
    chromium.press("Enter", 13, "\r")
    assert first_cells(chromium, "table2a") == ["at", "anpvs", "standard"]
    assert chromium.evaluate(state.format(3)) == "descending"
    chromium.press("Enter", 13, "\r")
    assert first_cells(chromium, "table2a") == ["standard", "anpvs", "at"]
    assert chromium.evaluate(state.format(3)) == "ascending"
    chromium.evaluate(focus.format(2))
    for _ in range(2):
        chromium.press("Enter", 13, "\r")
        assert first_cells(chromium, "table2a")[2] == "standard"
    assert chromium.evaluate(state.format(3)) is None
    chromium.evaluate(focus.format(0))
    chromium.press("Enter", 13, "\r")
    assert first_cells(chromium, "table2a") == ["anpvs", "at", "standard"]
    details = "document.querySelectorAll('#table2a tbody')[0].rows[1].innerText"
    assert "anpvs" in chromium.evaluate(details)


@needs_browser
def test_enlarges_a_figure_and_gives_the_focus_back(report, chromium):
    chromium.open(report / "report.html")
    shown = "document.getElementById('enlarged').open"
    button = "document.querySelector('#loss_surfaces button.enlarge')"
    assert chromium.evaluate(shown) is False
    chromium.evaluate(f"{button}.focus()")
    chromium.press("Enter", 13, "\r")
    assert chromium.evaluate(shown) is True
    wide = "document.querySelector('#enlarged img').getBoundingClientRect().width"
    assert chromium.evaluate(wide) > 1100
    chromium.press("Escape", 27)
    assert chromium.evaluate(shown) is False
    assert chromium.evaluate(f"document.activeElement === {button}") is True


@needs_browser
def test_fits_a_narrow_window(report, chromium):
    chromium.open(report / "report.html", width=390)
    assert chromium.evaluate("document.documentElement.scrollWidth") <= 390
    heights = "[...document.querySelectorAll('#runs + .scroll tbody tr')].map(r => r.offsetHeight)"
    assert 0 < max(chromium.evaluate(heights)) < 150
    widths = "[...document.querySelectorAll('button.enlarge')].map(b => b.offsetWidth)"
    assert max(chromium.evaluate(widths)) <= chromium.evaluate(
        "document.querySelector('main').clientWidth"
    )


def test_a_figure_drawn_twice_is_the_same_file(report):
    figure, (axis,) = style.panels(1)
    axis.plot([0, 1], [0, 1])
    for kind in ("png", "svg"):
        first, second = (style.render(lambda _: figure, style.LIGHT, kind) for _ in range(2))
        assert first == second
