"""Figures of the networks themselves: what moves, where, and how steep the loss is."""

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from anpvs_tf.reporting import probing
from anpvs_tf.reporting.probing import Probe
from anpvs_tf.reporting.style import Picture, Theme, legend

MOST_LAYERS = 5
PROJECTED = 4
BINS = 30


def build(probes: list[Probe], command: str) -> list[Picture]:
    """Makes the figures of these networks; none without networks.

    Args:
        command: the report's own command line, which computes them.
    """
    if not probes:
        return []
    makers = (histograms, projections, surfaces, examples)
    return [make(probes, (command,)) for make in makers]


def histograms(probes: list[Probe], commands: tuple[str, ...]) -> Picture:
    """Makes Figure 4, bottom: vulnerability of features by layer, the zeros apart."""
    layers = _layers(probes)

    def draw(theme: Theme) -> Figure:
        figure = _canvas(2.6 * len(probes) + 0.6, 1.75 * len(layers) + 0.6, 5.5)
        axes = figure.subplots(len(layers), len(probes), squeeze=False, sharex="row", sharey="row")
        for row, layer in zip(axes, layers, strict=True):
            top = max(float(probe.moved[layer].max()) for probe in probes) or 1.0
            edges = np.linspace(0.0, top, BINS + 1)
            for axis, probe in zip(row, probes, strict=True):
                values = probe.moved[layer]
                zeros = int(np.sum(values == 0.0))
                counts, _ = np.histogram(values[values > 0.0], edges)
                width = edges[1]
                axis.bar(edges[:-1], counts, width, align="edge", color=theme.series[0])
                axis.bar(-2 * width, zeros, 1.4 * width, align="edge", color=theme.zeros)
                axis.set_yscale("symlog", linthresh=1)
                axis.set_xlim(-2.6 * width, top)
                note = f"mean {values.mean():.4f}\nzero {100 * zeros / values.size:.0f} %"
                axis.text(0.97, 0.95, note, ha="right", va="top", transform=axis.transAxes, size=8)
            row[0].set_ylabel(f"{layer}\nfeatures", size=8.5)
            row[0].set_yticks([0, 1, 10, 100, 1000, 10000], minor=False)
            row[0].set_ylim(0, 3 * max(probe.moved[layer].size for probe in probes))
        for axis, probe in zip(axes[0], probes, strict=True):
            axis.set_title(f"{probe.label}\nV = {probe.vulnerability:.4f}")
        for axis in axes[-1]:
            axis.set_xlabel("mean distance that a feature moves")
        entries = [
            Patch(color=theme.zeros, label="features that never move (pruned or silent)"),
            Patch(color=theme.series[0], label="features that move"),
        ]
        legend(figure, entries)
        return figure

    return Picture(
        "vulnerability_histograms",
        "Vulnerability of the latent features (Fig. 4 of the paper, bottom)",
        f"How far each latent feature moves under PGD, on the first {probes[0].examples} test "
        "images; a convolution's channel counts at each place of its map. Logarithmic counts. A "
        "row of panels shares its axes. "
        + _which(probes)
        + ("" if len(layers) == len(probes[0].moved) else " Layers are a selection."),
        "Histograms of vulnerability by layer: "
        + "; ".join(
            f"{probe.label}: "
            + ", ".join(f"{layer} mean {probe.moved[layer].mean():.4f}" for layer in layers)
            for probe in probes
        ),
        draw,
        commands=commands,
    )


def projections(probes: list[Probe], commands: tuple[str, ...]) -> Picture:
    """Makes Figure 4, top: the gradient of the vulnerability with respect to the pixels."""
    shown = range(min(PROJECTED, len(probes[0].labels)))
    names = _class_names(probes)

    def draw(theme: Theme) -> Figure:
        figure = _canvas(1.55 * (len(probes) + 1) + 1.0, 1.45 * len(shown) + 0.4, 4.5)
        axes = figure.subplots(len(shown), len(probes) + 1, squeeze=False)
        top = max(float(probe.projections[list(shown)].max()) for probe in probes) or 1.0
        drawn = None
        for row, i in zip(axes, shown, strict=True):
            _show(row[0], probes[0].images[i])
            row[0].set_ylabel(names[probes[0].labels[i]], size=9)
            for axis, probe in zip(row[1:], probes, strict=True):
                drawn = axis.imshow(probe.projections[i] ** 0.5, cmap="inferno", vmin=0)
                drawn.set_clim(0, top**0.5)
                _bare(axis)
        axes[0][0].set_title("image")
        for axis, probe in zip(axes[0][1:], probes, strict=True):
            axis.set_title(probe.label)
        bar = figure.colorbar(drawn, ax=axes.ravel().tolist(), shrink=0.7, pad=0.02)
        ticks = np.array([0.0, 0.04, 0.16, 0.36, 0.64, 1.0]) * top
        bar.set_ticks(ticks**0.5, labels=[f"{value:.2g}" for value in ticks])
        bar.set_label("|dV / d pixel|, square-root scale", size=8.5)
        return figure

    return Picture(
        "vulnerability_on_the_input",
        "Vulnerability projected on the input (Fig. 4 of the paper, top)",
        "Where a small change of a pixel would move the latent features further, at the attacked "
        "image: the absolute gradient of V with respect to the pixels. Dark: nowhere. All panels "
        "share one scale. " + _which(probes),
        "Images of the gradient of the vulnerability; mean: "
        + ", ".join(f"{probe.label} {probe.projections.mean():.2g}" for probe in probes),
        draw,
        raster=True,
        commands=commands,
    )


def surfaces(probes: list[Probe], commands: tuple[str, ...]) -> Picture:
    """Makes Figure 5: the loss around the images, as surfaces and as contours."""

    def draw(theme: Theme) -> Figure:
        wide = 3.1 if len(probes) <= 4 else 2.6
        figure = _canvas(wide * len(probes) + 0.8, 1.9 * wide, 4.0)
        grid = figure.add_gridspec(2, len(probes), height_ratios=(1.25, 1))
        top = max(float(probe.surface.max()) for probe in probes)
        # Evenly spaced in the square root: low losses are where robust networks differ.
        levels = top * np.linspace(0.0, 1.0, 13) ** 2
        scale = PowerNorm(0.5, 0.0, top)
        drawn = None
        for i, probe in enumerate(probes):
            epsilon = probe.run.settings.epsilon
            places = np.linspace(-epsilon, epsilon, probing.SURFACE_POINTS)
            s, t = np.meshgrid(places, places)
            solid = figure.add_subplot(grid[0, i], projection="3d")
            solid.plot_surface(
                *(s, t, probe.surface),
                **dict(cmap="viridis", norm=scale, rstride=1, cstride=1),
                **dict(linewidth=0.15, edgecolor="#00000055", antialiased=True),
            )
            solid.set_zlim(0, top)
            solid.view_init(elev=24, azim=-125)
            solid.set_title(probe.label, y=0.98)
            solid.set_box_aspect((1, 1, 0.8), zoom=0.95)
            ends = [-epsilon, 0, epsilon]
            for setter in (solid.set_xticks, solid.set_yticks):
                setter(ends, ["-ε", "0", "ε"])
            solid.set_xlabel("sign gradient", labelpad=-1)
            solid.set_ylabel("random", labelpad=-1)
            solid.tick_params(pad=-1)
            for axis in (solid.xaxis, solid.yaxis, solid.zaxis):
                axis.set_pane_color(theme.background)
                axis._axinfo["grid"]["color"] = theme.faint
            below = figure.add_subplot(grid[1, i])
            drawn = below.contourf(s, t, probe.surface, levels, cmap="viridis", norm=scale)
            below.contour(s, t, probe.surface, levels[1:-1], colors="#ffffff", linewidths=0.5)
            below.set_xticks(ends, ["-ε", "0", "ε"])
            below.set_yticks(ends, ["-ε", "0", "ε"])
            below.set(aspect="equal", xlabel="along the loss's sign gradient")
            below.grid(False)
            if i == 0:
                below.set_ylabel("along a random direction")
        bar = figure.colorbar(drawn, ax=figure.axes, shrink=0.6, pad=0.02)
        bar.set_ticks(levels[::3], labels=[f"{level:.2g}" for level in levels[::3]])
        bar.set_label("cross-entropy, nats", size=8.5)
        return figure

    few = probing.SURFACE_IMAGES
    return Picture(
        "loss_surfaces",
        "The loss around an image (Fig. 5 of the paper)",
        f"Height and colour: mean cross-entropy over the first {few} test images when each is "
        "moved along its own steepest ascent (the sign of its gradient, which differs by network) "
        "and along one random direction (the same for all), by up to ε each; not clipped to "
        "[0, 1]. Flat and low is robust; a cliff along the gradient is where attacks go. One scale "
        "for all, its colours spaced by the square root. " + _which(probes),
        "Surfaces and contours of the loss; highest and at the image itself: "
        + "; ".join(
            f"{probe.label} {probe.surface.max():.2f} and "
            f"{probe.surface[probe.surface.shape[0] // 2, probe.surface.shape[1] // 2]:.2f} nats"
            for probe in probes
        ),
        draw,
        raster=True,
        commands=commands,
    )


def examples(probes: list[Probe], commands: tuple[str, ...]) -> Picture:
    """Makes the figure of adversarial images with the predictions before and after."""
    names = _class_names(probes)
    count = len(probes[0].labels)

    short = max(map(len, names)) <= 3

    def draw(theme: Theme) -> Figure:
        down = 1 + 2 * len(probes)
        figure = _canvas(1.45 * count + 0.6, (1.5 if short else 1.6) * down + 0.5, 6.0)
        axes = figure.subplots(down, count, squeeze=False)
        for i in range(count):
            _show(axes[0][i], probes[0].images[i])
            axes[0][i].set_title(names[probes[0].labels[i]], size=9)
        axes[0][0].set_ylabel("image", size=9)
        for k, probe in enumerate(probes):
            pictures, changes = axes[1 + 2 * k], axes[2 + 2 * k]
            epsilon = probe.run.settings.epsilon
            for i in range(count):
                _show(pictures[i], probe.adversarial[i])
                _show(changes[i], (probe.adversarial[i] - probe.images[i]) / epsilon / 2 + 0.5)
                before, after = names[probe.before[i]], names[probe.after[i]]
                fooled = probe.after[i] != probe.labels[i]
                pictures[i].set_title(
                    f"{'✗' if fooled else '✓'} {before} →{' ' if short else chr(10)}{after}, "
                    f"{100 * probe.confidence_after[i]:.0f} %",
                    size=7.5,
                    color=theme.wrong if fooled else theme.right,
                    weight="bold" if fooled else "normal",
                )
            pictures[0].set_ylabel(f"{probe.label}\nattacked", size=8.5)
            changes[0].set_ylabel("change", size=8.5)
        return figure

    fooled = "; ".join(
        f"{probe.label}: {int(np.sum(probe.after != probe.labels))} of {count} fooled"
        for probe in probes
    )
    return Picture(
        "adversarial_examples",
        "Adversarial examples",
        "The first test image of each of the first classes; below it, for each network, the "
        "image after PGD, with the predictions before → after and the network's probability of "
        "the latter; and what was changed: grey is nothing, black and white are ε. Each network "
        "is attacked on its own. " + _which(probes),
        f"Images before and after the attack. {fooled}",
        draw,
        raster=True,
        commands=commands,
    )


# ---- Parts ----


def _which(probes: list[Probe]) -> str:
    return "Networks: " + ", ".join(p.run.path for p in probes) + "."


def _canvas(width: float, height: float, least: float) -> Figure:
    return Figure(figsize=(max(width, least), height), layout="constrained")


def _layers(probes: list[Probe]) -> list[str]:
    """Chooses the latent layers that all networks have; of many, some from first to last."""
    names = [name for name in probes[0].moved if all(name in probe.moved for probe in probes)]
    if len(names) <= MOST_LAYERS:
        return names
    return [names[i] for i in np.linspace(0, len(names) - 1, MOST_LAYERS).round().astype(int)]


def _class_names(probes: list[Probe]) -> list[str]:
    source = probes[0].run.settings.source
    return list(source.class_names or map(str, range(source.classes)))


def _show(axis, image: np.ndarray) -> None:
    grey = image.shape[-1] == 1
    image = np.clip(image, 0.0, 1.0)  # Rounding may leave the range by a little.
    axis.imshow(image[..., 0] if grey else image, cmap="gray", vmin=0, vmax=1)
    _bare(axis)


def _bare(axis) -> None:
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    for side in axis.spines.values():
        side.set_visible(False)
