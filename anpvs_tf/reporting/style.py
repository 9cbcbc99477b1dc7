"""How figures look: two themes, colours for colour-blind readers too, reproducible files."""

import base64
import dataclasses
import io
import textwrap
from collections.abc import Callable

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from anpvs_tf.reporting.grouping import Group

_MARKERS = "osD^vX<>"
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
# With more groups than this, a method has one style for all of its groups.
MOST_STYLED_GROUPS = 8
PNG_DPI, SCREEN_DPI = 150, 96
_LETTER = 0.085  # Inches that a letter of a legend takes.


@dataclasses.dataclass(frozen=True)
class Theme:
    """Colours of a figure.

    series: begin as Okabe and Ito (2008) do; the others were chosen to be far from all before
        them for full, deuteranope and protanope sight.
    zeros: of the bars for features that never move.
    right, wrong: of predictions, which are marked by words too.
    """

    name: str
    background: str
    text: str
    faint: str
    series: tuple[str, ...]
    zeros: str
    right: str
    wrong: str


LIGHT = Theme(
    "light",
    background="#ffffff",
    text="#1b1f24",
    faint="#d5d9de",
    series=("#0072b2", "#d55e00", "#009e73", "#730000", "#8060ff", "#000073"),
    zeros="#e69f00",
    right="#0072b2",
    wrong="#b34700",
)
DARK = Theme(
    "dark",
    background="#171a1f",
    text="#e4e7eb",
    faint="#3a4048",
    series=("#56b4e9", "#f58b4c", "#35c79b", "#ffee66", "#a35cff", "#d0f5ff"),
    zeros="#f0b030",
    right="#56b4e9",
    wrong="#f58b4c",
)

Draw = Callable[[Theme], Figure]


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure of the report.

    Attributes:
        name: of its files.
        title: what it shows, in a line.
        caption: how to read it.
        alt: what it shows, for readers who cannot see it.
        draw: makes it.
        raster: it is embedded as PNG, having more shapes than pixels are worth.
        commands: that made its data.
    """

    name: str
    title: str
    caption: str
    alt: str
    draw: Draw
    raster: bool = False
    commands: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Stroke:
    """How one group is drawn: the index of a colour, a marker, dashes, the width of a line."""

    color: int
    marker: str
    dashes: object
    width: float

    def of(self, theme: Theme) -> str:
        return theme.series[self.color]


class Strokes:
    """The strokes of all groups: each its own, or with many groups each method's own."""

    def __init__(self, groups: list[Group]):
        self.by_method = len(groups) > MOST_STYLED_GROUPS
        self._keys = list(dict.fromkeys(self.key(group) for group in groups))

    def key(self, group: Group) -> str:
        """Returns the group's name in the legend."""
        return group.method if self.by_method else group.label

    def __getitem__(self, group: Group) -> Stroke:
        i = self._keys.index(self.key(group))
        return Stroke(
            i % len(LIGHT.series),
            _MARKERS[i % len(_MARKERS)],
            DASHES[i % len(DASHES)],
            0.8 if self.by_method else 1.6,
        )


def render(draw: Draw, theme: Theme, kind: str) -> bytes:
    """Renders a figure as a file; the same figure gives the same bytes.

    Args:
        kind: "png" or "svg".
    """
    with matplotlib.rc_context(_settings(theme)):
        figure = draw(theme)
        FigureCanvasAgg(figure)
        file = io.BytesIO()
        metadata = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
        figure.savefig(file, format=kind, metadata=metadata)
    return file.getvalue()


def data_uri(data: bytes, kind: str) -> str:
    """Encodes a file of `render` as a data URI."""
    mime = {"png": "image/png", "svg": "image/svg+xml"}[kind]
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def panels(
    count: int, width: float = 3.2, height: float = 2.7, across: int = 4, legend: bool = True
) -> tuple[Figure, list]:
    """Makes a figure of `count` panels in rows of at most `across`; sizes in inches.

    legend: leave a line for `legend`.
    """
    across = min(across, count)
    down = -(-count // across)
    size = (max(width * across, 5.5), height * down + (0.45 if legend else 0.0))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for unused in axes[count:]:
        unused.remove()
    return figure, list(axes[:count])


def legend(figure: Figure, entries: list) -> None:
    """Draws one legend for all panels, below them, in as many columns as fit."""
    if not entries:
        return
    inches = figure.get_size_inches()[0]
    for entry in entries:
        entry.set_label(textwrap.fill(entry.get_label(), int((inches - 0.8) / _LETTER)))
    longest = max(len(line) for entry in entries for line in entry.get_label().splitlines())
    columns = max(1, min(len(entries), int(inches / (0.6 + _LETTER * longest))))
    figure.legend(handles=entries, loc="outside lower center", ncols=columns)


def percent(axis: object) -> None:
    """Labels an axis, whose values lie in [0, 1], in percent."""
    axis.set_major_formatter(lambda value, _: f"{100 * value:.6g} %")


def curve(axis, stroke, theme: Theme, curves: list[dict[float, float]], markers=True) -> None:
    """Draws the mean of curves {x: y}, and of several a band of one standard deviation."""
    places = sorted({x for curve in curves for x in curve})
    held = [[curve[x] for curve in curves if x in curve] for x in places]
    mean = np.array([np.mean(values) for values in held])
    color = stroke.of(theme)
    marker = stroke.marker if markers else ""
    axis.plot(places, mean, color=color, ls=stroke.dashes, lw=stroke.width, marker=marker)
    if len(curves) > 1:
        spread = np.array([np.std(v, ddof=1) if len(v) > 1 else 0.0 for v in held])
        axis.fill_between(places, mean - spread, mean + spread, color=color, alpha=0.18, lw=0)


def handles(
    groups: list[Group], strokes: Strokes, theme: Theme, line: bool = True, marker: bool = True
) -> list[Line2D]:
    made = {}
    for group in groups:
        stroke = strokes[group]
        made[strokes.key(group)] = Line2D(
            [],
            [],
            color=stroke.of(theme),
            ls=stroke.dashes if line else "",
            marker=stroke.marker if marker else "",
            label=strokes.key(group),
        )
    return list(made.values())


def marker(color: str, marker: str, label: str, hollow: bool = False) -> Line2D:
    fill = "none" if hollow else "full"
    return Line2D([], [], color=color, ls="", marker=marker, fillstyle=fill, label=label)


def _settings(theme: Theme) -> dict[str, object]:
    return {
        **matplotlib.rcParamsDefault,
        "backend": "agg",
        "svg.hashsalt": "anpvs",
        "savefig.dpi": PNG_DPI,
        "savefig.facecolor": theme.background,
        "figure.facecolor": theme.background,
        "axes.facecolor": theme.background,
        "axes.edgecolor": theme.text,
        "axes.labelcolor": theme.text,
        "axes.titlesize": 10,
        "axes.titlecolor": theme.text,
        "axes.labelsize": 9,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": theme.faint,
        "grid.linewidth": 0.6,
        "text.color": theme.text,
        "xtick.color": theme.text,
        "ytick.color": theme.text,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "legend.fontsize": 8.5,
        "legend.frameon": False,
        "lines.linewidth": 1.6,
        "lines.markersize": 5,
        "font.family": "DejaVu Sans",
    }
