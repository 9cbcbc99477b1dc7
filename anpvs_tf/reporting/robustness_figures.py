"""Figures of accuracy under ever stronger attacks, from the records of bin/evaluate.py."""

from matplotlib.lines import Line2D

from anpvs_tf.reporting import measurements
from anpvs_tf.reporting.grouping import Group, runs_of
from anpvs_tf.reporting.measurements import Attack, Lookup
from anpvs_tf.reporting.style import (
    Picture,
    Strokes,
    Theme,
    curve,
    handles,
    legend,
    panels,
    percent,
)

_clean = measurements.trained("clean_accuracy")


def build(groups: list[Group]) -> list[Picture]:
    """Makes the figures for which there are data."""
    strokes = Strokes(groups)
    found = [against_epsilon(groups, strokes), against_steps(groups, strokes)]
    return [picture for picture in found if picture is not None]


def against_epsilon(groups: list[Group], strokes: Strokes) -> Picture | None:
    """Makes the figure of accuracy against the radius of the ball, a panel an attack."""
    runs = runs_of(groups)
    sweeps = {
        name: sweep
        for name in measurements.attack_names(runs)
        if (sweep := measurements.epsilon_sweep(runs, name))
    }
    curves, commands = {}, []
    for name, sweep in sweeps.items():
        for group in groups:
            found, used = _curves(group, sweep, _clean)
            commands += used
            if found:
                curves[name, group.label] = found
    if not curves:
        return None
    drawn = [g for g in groups if any((name, g.label) in curves for name in sweeps)]

    def draw(theme: Theme):
        figure, axes = panels(len(sweeps), 4.2, 3.3, across=2)
        for axis, name in zip(axes, sweeps, strict=True):
            for group in drawn:
                curve(axis, strokes[group], theme, curves.get((name, group.label), []))
            chance = 1 / runs[0].settings.source.classes
            axis.axhline(chance, color=theme.text, lw=0.8, ls=":")
            axis.set(title=name, xlabel="ε, in pixel units of [0, 1]", ylabel="accuracy")
            axis.set_ylim(-0.02, 1.02)
            percent(axis.yaxis)
        shown = handles(drawn, strokes, theme)
        shown.append(Line2D([], [], color=theme.text, lw=0.8, ls=":", label="chance"))
        legend(figure, shown)
        return figure

    return Picture(
        "accuracy_against_epsilon",
        "Accuracy against the strength of the attack",
        "ε is how far the attack may move each pixel; at 0 stands the clean accuracy. Where "
        "accuracy does not fall to 0 for large ε, the evaluation is at fault. "
        + "; ".join(
            text
            for sweep in sweeps.values()
            for text in measurements.in_words({f"ε = {e:g}": a for e, a in sweep.items()})
        )
        + ".",
        f"Curves of accuracy against epsilon under {', '.join(sweeps)}",
        draw,
        commands=tuple(dict.fromkeys(commands)),
    )


def against_steps(groups: list[Group], strokes: Strokes) -> Picture | None:
    """Makes the figure of accuracy against the number of PGD's steps."""
    sweep = measurements.steps_sweep(runs_of(groups))
    curves, commands = {}, []
    for group in groups:
        found, used = _curves(group, sweep)
        commands += used
        if found:
            curves[group.label] = found
    drawn = [group for group in groups if group.label in curves]
    if not drawn:
        return None

    def draw(theme: Theme):
        figure, (axis,) = panels(1, 5.5, 3.3)
        for group in drawn:
            curve(axis, strokes[group], theme, curves[group.label])
        axis.set_xscale("log")
        axis.set_xticks(list(sweep), [str(steps) for steps in sweep])
        axis.minorticks_off()
        axis.set(xlabel="steps of PGD, logarithmic", ylabel="accuracy")
        percent(axis.yaxis)
        legend(figure, handles(drawn, strokes, theme))
        return figure

    return Picture(
        "accuracy_against_steps",
        "Accuracy against the steps of the attack",
        "A flat end says that more steps of PGD find no more; it does not say that another "
        "attack would not. "
        + "; ".join(measurements.in_words({f"{n} steps": a for n, a in sweep.items()}, "steps"))
        + ".",
        "Curves of accuracy against the number of attack steps",
        draw,
        commands=tuple(dict.fromkeys(commands)),
    )


def _curves(
    group: Group, sweep: dict[float, Attack], start: Lookup | None = None
) -> tuple[list[dict[float, float]], list[str]]:
    """Makes a curve {x: accuracy} of each run with two points or more, and lists the commands.

    start: looks up the value at 0; None for a curve without it.
    """
    curves, commands = [], []
    for run in group.runs:
        points = {x: measurements.under_attack(run, attack) for x, attack in sweep.items()}
        points = {x: found for x, found in points.items() if found}
        if len(points) < 2:
            continue
        if start is not None:
            points = {0.0: start(run)} | points
        commands += [found.command for found in points.values()]
        curves.append({x: found.value for x, found in points.items()})
    return curves, commands
