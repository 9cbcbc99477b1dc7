"""The parts of the page that say where its figures come from and how far to trust them."""

import dataclasses
from html import escape

from anpvs_tf.attacks import radius
from anpvs_tf.reporting import commands
from anpvs_tf.reporting.grouping import Group, Run, Skipped, runs_of, shown, varying


def sortable_head(text: str, about: str = "", first: str = "ascending") -> str:
    """The head of a column, with a button by which page.js sorts.

    Args:
        about: what the column holds.
        first: the order that the first click gives.
    """
    title = f' title="{escape(about)}"' if about else ""
    return (
        f'<th scope="col"{title}><button type="button" class="sort" data-first="{first}">'
        f"{escape(text)}</button></th>"
    )


def scrolling(label: str, table: str) -> str:
    """A table in a region that scrolls, also by keyboard, where the window is narrow."""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">'
        f"{table}</div>\n"
    )


def items(texts: list[str], kind: str = "") -> str:
    """A list, of a class of page.css or none; the texts are HTML."""
    return f'<ul class="{kind}">{"".join(f"<li>{text}</li>" for text in texts)}</ul>'


# ---- Self-checks ----


def checks(groups: list[Group]) -> str:
    """What the self-checks of bin/evaluate.py found, by run and threat model."""
    runs = runs_of(groups)
    rows = "".join(_check_row(run, *one) for run in runs for one in _checked(run))
    text = ""
    if rows:
        heads = "".join(f'<th scope="col">{head}</th>' for head in ("run", "attack", "self-checks"))
        text = (
            "<p>bin/evaluate.py asks whether its attacks worked: are there gradients, do more "
            "steps find more, is noise weaker, does a large ε leave chance?</p>"
        ) + scrolling(
            "Self-checks",
            f'<table class="left"><thead><tr>{heads}</tr></thead>{rows}</table>',
        )
    unchecked = [run.path for run in runs if not _checked(run)]
    if unchecked:
        text += (
            f"<p>{len(unchecked)} of {len(runs)} runs were not checked: that a figure of theirs "
            "has no † says nothing. <code>python bin/evaluate.py --run_dir=RUN</code> attacks "
            f"harder and checks.</p><details><summary>runs without checks</summary>"
            f"{items([escape(path) for path in unchecked])}</details>"
        )
    return text


def _checked(run: Run) -> list[tuple[dict, list[dict]]]:
    """(threat model, checks) of each evaluation that made checks."""
    found = []
    for record in run.evaluations:
        one = record["threat_model"], record.get("checks")
        if one[1] and one not in found:
            found.append(one)
    return found


def _check_row(run: Run, threat: dict, made: list[dict]) -> str:
    failed = [check for check in made if not check["passed"]]
    text = "".join(
        f'<br><span class="unreliable">{escape(check["name"])}</span>: '
        f"{escape(check['meaning'])} ({escape(check['found'])})"
        for check in failed
    )
    return (
        f'<tbody><tr><th scope="row">{escape(run.path)}</th>'
        f"<td>{escape(threat['norm'])}, ε = {radius.as_text(threat['epsilon'])}</td>"
        f"<td>{len(made) - len(failed)} of {len(made)} passed{text}</td></tr></tbody>"
    )


# ---- Runs ----


def runs(groups: list[Group], skipped: list[Skipped]) -> str:
    """Every run with the command that trained it; then those that were left out."""
    found = runs_of(groups)
    settings = [dataclasses.asdict(run.settings) for run in found]
    varied = [n for n in varying(settings) if n not in ("method", "seed", "base_run")]
    heads = "".join(sortable_head(head) for head in ("run", "method", "seed", "command"))
    rows = "".join(_run_row(run, varied) for run in found)
    text = scrolling("Runs", f'<table class="left"><thead><tr>{heads}</tr></thead>{rows}</table>')
    if varied:
        text += "<p>Below the commands: settings that are not the same in all runs.</p>"
    if len({commands.training(run) for run in found}) < len(found):
        text += (
            "<p>Runs with the same command: one began with the other's weights, and trained it "
            "first.</p>"
        )
    if skipped:
        left = [f"{escape(one.path)}: {escape(one.reason)}" for one in skipped]
        text += f"<p>Left out:</p>{items(left)}"
    return text


def _run_row(run: Run, varied: list[str]) -> str:
    values = (run.settings.method, run.settings.seed)
    cells = "".join(f'<td data-value="{escape(str(v))}">{escape(str(v))}</td>' for v in values)
    own = ", ".join(f"{name}={shown(getattr(run.settings, name))}" for name in varied)
    command, path = escape(commands.training(run)), escape(run.path)
    return (
        f'<tbody><tr><th scope="row" data-value="{path}">{path}</th>{cells}'
        f'<td data-value="{command}"><code>{command}</code>'
        f"{f'<br>{escape(own)}' if own else ''}</td></tr></tbody>"
    )


def made(groups: list[Group], absent: list[str], command: str) -> str:
    """The report's own command, the packages behind the runs, and what the report lacks."""
    versions = dict.fromkeys(
        ", ".join(f"{name} {number}" for name, number in run.trained["versions"].items())
        for run in runs_of(groups)
    )
    text = (
        f"<p><code>{escape(command)}</code></p><p>Nothing was trained for this page. Figures of "
        "the networks themselves were computed from saved weights on a few test images. The runs "
        f"were made with {escape('; or '.join(versions))}.</p>"
    )
    if absent:
        text += f"<p>Not in this report:</p>{items([escape(one) for one in absent])}"
    return text
