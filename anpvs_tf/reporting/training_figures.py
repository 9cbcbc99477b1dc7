"""Figures of what training logged: the trade-off, the curves, where features are pruned."""

import dataclasses
import statistics
import textwrap

from matplotlib import colormaps, colors, ticker
from matplotlib.lines import Line2D

from anpvs_tf.methods.registry import METHODS
from anpvs_tf.reporting import commands, costs, measurements, pareto, published
from anpvs_tf.reporting.grouping import Group, most_robust, runs_of
from anpvs_tf.reporting.style import (
    DASHES,
    Picture,
    Stroke,
    Strokes,
    Theme,
    curve,
    handles,
    legend,
    marker,
    panels,
    percent,
)
from anpvs_tf.runs.finished_run import FinishedRun

# Columns of metrics.csv that are watched, not minimised.
_WATCHED = {
    "validation_clean_accuracy": "clean accuracy",
    "validation_robust_accuracy": "accuracy under PGD",
    "validation_vulnerability": "vulnerability V",
    "sparsity": "sparsity",
}
_OTHER = ("epoch", "step", "loss", "train_accuracy", "seconds", "images_per_second")
_MOST_PANELS = 6
_TERMS = {
    "ce_clean": "cross-entropy, clean images",
    "ce_adversarial": "cross-entropy, attacked images",
    "vulnerability": "vulnerability V",
    "kl": "KL of the gates, nats",
    "weight_decay": "weight decay",
}
# The number of steps that were left out; shown only if there are any.
_SKIPPED = "nonfinite"


def build(groups: list[Group]) -> list[Picture]:
    """Makes the figures for which there are data."""
    strokes = Strokes(groups)
    found = [
        trade_off(groups, strokes),
        cost(groups, strokes),
        training(groups, strokes),
        loss_terms(groups, strokes),
        active_features(groups),
    ]
    return [picture for picture in found if picture is not None]


# ---- Figure 3 ----


def trade_off(groups: list[Group], strokes: Strokes) -> Picture | None:
    """Makes Figure 3: accuracy against sparsity, a point a run, with the Pareto front.

    None if no method prunes.
    """
    runs = runs_of(groups)
    if not any(METHODS[group.method].prunes for group in groups):
        return None
    kinds = {
        "clean accuracy": ("clean_accuracy", measurements.trained("clean_accuracy")),
        "accuracy under PGD": ("white_accuracy", measurements.white_box),
    }
    alike = len({measurements.conditions(run) for run in runs}) == 1
    fronts = {
        title: pareto.line(_trade_offs(runs, look_up))
        for title, (_, look_up) in kinds.items()
        if alike or title == "clean accuracy"
    }
    fronts = {title: line for title, line in fronts.items() if len(line) > 1}
    known = {group.label: published.figures(group.settings) for group in groups}
    known = {label: found for label, found in known.items() if "sparsity" in found}

    def draw(theme: Theme):
        figure, axes = panels(2, 4.2, 3.5)
        for axis, (title, (key, look_up)) in zip(axes, kinds.items(), strict=True):
            for group in groups:
                for run in group.runs:
                    if measured := look_up(run):
                        place = measurements.sparsity(run).value, measured.value
                        _point(axis, place, strokes[group], theme, measured.unreliable)
                if key in (found := known.get(group.label, {})):
                    place = found["sparsity"] / 100, found[key] / 100
                    axis.plot(*place, "*", color=strokes[group].of(theme), markersize=12)
            if line := fronts.get(title):
                axis.plot(*zip(*line, strict=True), color=theme.text, lw=1, alpha=0.6, zorder=2)
            axis.set(title=title, xlabel="sparsity", ylabel="accuracy")
            axis.set_xlim(-0.04, 1.04)
            axis.margins(y=0.08)
            for one in (axis.xaxis, axis.yaxis):
                percent(one)
        shown = handles(groups, strokes, theme, line=False)
        if fronts:
            shown.append(Line2D([], [], color=theme.text, lw=1, alpha=0.6, label="Pareto front"))
        if known:
            shown.append(marker(theme.text, "*", "published"))
        if any(found and found.unreliable for found in map(measurements.white_box, runs)):
            shown.append(marker(theme.text, "o", "unreliable", hollow=True))
        legend(figure, shown)
        return figure

    return Picture(
        "trade_off",
        "Accuracy against sparsity (Fig. 3 of the paper)",
        "A point is a run; sparsity is of features (of weights where a method prunes those). "
        "Further right is smaller, higher is better. The line joins the runs that no other run "
        "equals in both. Hollow: a check, or a stronger attack, contradicts "
        "the accuracy."
        + ("" if alike else " The runs were attacked differently: under PGD they do not compare."),
        "Scatter plots of clean accuracy and accuracy under PGD against sparsity: "
        + "; ".join(
            f"{group.label}: sparsity {_mean(group, measurements.sparsity):.0%}, clean "
            f"{_mean(group, kinds['clean accuracy'][1]):.0%}"
            for group in groups
        ),
        draw,
        commands=_training_commands(groups),
    )


def _trade_offs(runs: list[FinishedRun], look_up: measurements.Lookup) -> list[tuple[float, float]]:
    """Lists (sparsity, accuracy) of the runs that have both; a network at chance is on no front."""
    return [
        (measurements.sparsity(run).value, found.value)
        for run in runs
        if not run.at_chance and (found := look_up(run)) is not None
    ]


def _point(
    axis, place: tuple[float, float], stroke: Stroke, theme: Theme, unreliable: bool
) -> None:
    """Draws a run as a marker, hollow if its accuracy is unreliable."""
    color = stroke.of(theme)
    fill, edge = (theme.background, color) if unreliable else (color, theme.background)
    style = {"markersize": 7, "markerfacecolor": fill, "markeredgecolor": edge}
    axis.plot(*place, stroke.marker, **style, zorder=4 if unreliable else 3)


def cost(groups: list[Group], strokes: Strokes) -> Picture | None:
    """Makes the figure of robust accuracy against cost, with fronts of dense and pruned networks.

    None if all networks cost the same.
    """
    points = [
        _Cost(group, run, costs.of(run), found)
        for group in groups
        for run in group.runs
        if costs.of(run) and (found := measurements.white_box(run)) is not None
    ]
    if len({tuple(one.costs.values()) for one in points}) < 2:
        return None
    alike = len({measurements.conditions(run) for run in runs_of(groups)}) == 1
    # The cheapest first; the front keeps what no cheaper network equals.
    fronts = {
        (kind, pruned): pareto.line([(-x, y) for x, y in _coordinates(points, kind, pruned)])
        for kind in costs.KINDS
        for pruned in _FAMILIES
        if alike
    }
    fronts = {key: line for key, line in fronts.items() if len(line) > 1}

    def draw(theme: Theme):
        figure, axes = panels(2, 4.2, 3.5)
        for axis, (kind, title) in zip(axes, costs.KINDS.items(), strict=True):
            for one in points:
                if kind in one.costs:
                    place = one.costs[kind], one.accuracy.value
                    _point(axis, place, strokes[one.group], theme, one.accuracy.unreliable)
            for pruned, (_, dashes) in _FAMILIES.items():
                if line := fronts.get((kind, pruned)):
                    xs, ys = zip(*((-x, y) for x, y in line), strict=True)
                    axis.plot(xs, ys, color=theme.text, ls=dashes, lw=1, alpha=0.6, zorder=2)
            axis.set(title=f"against {title}", xlabel=title, ylabel="accuracy under PGD")
            _cost_scale(axis, [one.costs[kind] for one in points if kind in one.costs])
            percent(axis.yaxis)
        drawn = [group for group in groups if any(one.group is group for one in points)]
        shown = handles(drawn, strokes, theme, line=False)
        shown += [
            Line2D([], [], color=theme.text, ls=dashes, lw=1, alpha=0.6, label=f"{name}: front")
            for pruned, (name, dashes) in _FAMILIES.items()
            if any(key[1] == pruned for key in fronts)
        ]
        legend(figure, shown)
        return figure

    return Picture(
        "cost",
        "Robust accuracy against cost",
        "A point is a run; cost is that of one image in the network as it is deployed. Further "
        "left is cheaper, higher is better. A line joins the runs of a family, dense or pruned, "
        "that no cheaper run of it equals. Hollow: a check, or a stronger attack, contradicts "
        "the accuracy."
        + ("" if alike else " The runs were attacked differently and do not compare."),
        "Scatter plots of accuracy under PGD against FLOPs and against parameters: "
        + "; ".join(
            f"{group.label}: {costs.mean(group, 'flops'):,.0f} FLOPs, accuracy "
            f"{statistics.fmean(run.trained['robust_accuracy'] for run in group.runs):.0%}"
            for group in groups
            if costs.mean(group, "flops") is not None
        ),
        draw,
        commands=_training_commands(groups),
    )


@dataclasses.dataclass(frozen=True)
class _Cost:
    """A run in the figure of costs."""

    group: Group
    run: FinishedRun
    costs: dict[str, int]
    accuracy: measurements.Measurement


# By whether a run prunes: the name and the dashes of its front.
_FAMILIES = {False: ("dense", "--"), True: ("pruned", "-")}


def _coordinates(points: list[_Cost], kind: str, pruned: bool) -> list[tuple[float, float]]:
    """Lists (cost, accuracy) of one family's runs; a network at chance is on no front."""
    return [
        (one.costs[kind], one.accuracy.value)
        for one in points
        if kind in one.costs
        and METHODS[one.run.settings.method].prunes == pruned
        and not one.run.at_chance
    ]


def _cost_scale(axis, found: list[int]) -> None:
    """Makes an axis of costs logarithmic, or linear if the costs are close together."""
    if found and max(found) > 3 * min(found):
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 3, 5)))
        axis.xaxis.set_minor_locator(ticker.NullLocator())
    else:
        axis.xaxis.set_major_locator(ticker.MaxNLocator(5))
    axis.xaxis.set_major_formatter(ticker.EngFormatter())
    axis.margins(0.08)


def _mean(group: Group, look_up: measurements.Lookup) -> float:
    return statistics.fmean(look_up(run).value for run in group.runs)


# ---- Over the epochs ----


def training(groups: list[Group], strokes: Strokes) -> Picture | None:
    """Makes the figure of validation accuracy, vulnerability and sparsity after each epoch."""
    columns = [name for name in _WATCHED if any(name in run.metrics[0] for run in _with(groups))]
    if not any(METHODS[group.method].prunes for group in groups):
        columns = [name for name in columns if name != "sparsity"]
    if not columns:
        return None
    return Picture(
        "training",
        "Training, epoch by epoch",
        "On the validation images, after each epoch. Line: mean over seeds; band: their standard "
        "deviation.",
        "Curves over the epochs of " + ", ".join(_WATCHED[name] for name in columns),
        lambda theme: _over_epochs(groups, strokes, {n: _WATCHED[n] for n in columns}, theme),
        commands=_training_commands(groups),
    )


def loss_terms(groups: list[Group], strokes: Strokes) -> Picture | None:
    """Makes the figure of the terms of the training loss after each epoch."""
    logged = {
        name
        for run in _with(groups)
        for name in run.metrics[0]
        if name not in _OTHER and name not in _WATCHED and not name.startswith("active_")
    }
    logged.discard(_SKIPPED)
    found = [*(name for name in _TERMS if name in logged), *sorted(logged - set(_TERMS))]
    if not found:
        return None
    titles = {name: _TERMS.get(name, name.replace("_", " ")) for name in found}
    if any(row.get(_SKIPPED) for run in _with(groups) for row in run.metrics):
        titles[_SKIPPED] = "steps left out"
    return Picture(
        "loss_terms",
        "The terms of the training loss",
        "Means over each epoch's training batches, before they are weighted and added. A method "
        "without a term has no line.",
        "Curves over the epochs of " + ", ".join(titles.values()),
        lambda theme: _over_epochs(groups, strokes, titles, theme),
        commands=_training_commands(groups),
    )


def _over_epochs(groups: list[Group], strokes: Strokes, titles: dict[str, str], theme: Theme):
    figure, axes = panels(len(titles), 3.3, 2.7, _across(len(titles)))
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        for group in groups:
            curves = [
                {row["epoch"]: row[name] for row in run.metrics if name in row}
                for run in group.runs
            ]
            curve(axis, strokes[group], theme, [c for c in curves if c], markers=False)
        axis.set(title=title, xlabel="epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        if name.endswith("accuracy") or name == "sparsity":
            percent(axis.yaxis)
    legend(figure, handles(groups, strokes, theme, marker=False))
    return figure


def _across(count: int) -> int:
    """Chooses how many panels stand in a row, so that the last row is not almost empty."""
    return 4 if count in (4, 7, 8) else 3


def active_features(groups: list[Group]) -> Picture | None:
    """Makes the figure of where features were pruned: each layer's share that is active."""
    chosen = [
        group
        for group in groups
        if METHODS[group.method].prunes and any(run.metrics and _layers(run) for run in group.runs)
    ]
    if not chosen:
        return None
    several = len(chosen) > _MOST_PANELS
    chosen = most_robust(chosen) if several else chosen

    def draw(theme: Theme):
        # The most layers first: they give the order of layers that not all networks have.
        held = sorted((_layers(group.runs[0]) for group in chosen), key=len, reverse=True)
        names = list(dict.fromkeys(name for layers in held for name in layers))
        figure, axes = panels(len(chosen), 3.3, 2.9, _across(len(chosen)))
        for axis, group in zip(axes, chosen, strict=True):
            for i, name in enumerate(names):
                curves = []
                for run in group.runs:
                    size = _layers(run).get(name, (0, 0))[1]
                    column = f"active_{name}"
                    shares = {r["epoch"]: r[column] / size for r in run.metrics if column in r}
                    curves += [shares] if shares else []
                curve(axis, _LayerStroke(i, len(names)), theme, curves, markers=False)
            axis.set(xlabel="epoch", ylabel="active features", ylim=(0, 1.03))
            axis.set_title(textwrap.fill(group.label, 34))
            axis.xaxis.get_major_locator().set_params(integer=True)
            percent(axis.yaxis)
        entries = [
            Line2D(
                [],
                [],
                color=_LayerStroke(i, len(names)).of(theme),
                ls=_LayerStroke(i, len(names)).dashes,
                label=name,
            )
            for i, name in enumerate(names)
        ]
        legend(figure, entries)
        return figure

    return Picture(
        "active_features",
        "What is pruned where, epoch by epoch",
        "The share of each layer's features whose gate is open, from the input's layers to the "
        "output's. Line: mean over seeds; band: their standard deviation."
        + (" Of each method its most robust setting." if several else ""),
        "Curves over the epochs of the share of active features by layer; at the end "
        + "; ".join(
            f"{group.label}: "
            + ", ".join(f"{name} {a} of {n}" for name, (a, n) in _layers(group.runs[0]).items())
            for group in chosen
        ),
        draw,
        commands=_training_commands(chosen),
    )


@dataclasses.dataclass(frozen=True)
class _LayerStroke:
    """A layer's colour by its depth, dark to light, and dashes."""

    index: int
    count: int
    marker: str = ""
    width: float = 1.6

    def of(self, theme: Theme) -> str:
        if self.count <= 5:
            return theme.series[self.index]
        low, high = (0.0, 0.85) if theme.name == "light" else (0.25, 1.0)
        place = low + (high - low) * self.index / (self.count - 1)
        return colors.to_hex(colormaps["viridis"](place))

    @property
    def dashes(self) -> object:
        return DASHES[self.index % len(DASHES)]


def _layers(run: FinishedRun) -> dict[str, list[int]]:
    return run.trained.get("active_features") or {}


# ---- Parts ----


def _with(groups: list[Group]) -> list[FinishedRun]:
    """Lists the runs that have metrics."""
    return [run for run in runs_of(groups) if run.metrics]


def _training_commands(groups: list[Group]) -> tuple[str, ...]:
    return tuple(commands.training(run) for run in runs_of(groups))
