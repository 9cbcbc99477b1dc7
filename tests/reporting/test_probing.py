"""What is computed on the networks, on one whose answers are known."""

import dataclasses

import fake_runs
import numpy as np
import pytest
import tensorflow as tf

from anpvs_tf.data.loading import Split
from anpvs_tf.data.sources import SOURCES
from anpvs_tf.evaluation import attacked_model
from anpvs_tf.reporting import grouping, pareto, probing, style, training_figures
from anpvs_tf.reporting.grouping import Group, collect, most_robust

EPSILON = 0.1
# Two pixels; three latent features, the last of which never moves; two classes.
WEIGHTS = np.array([[1.0, -2.0, 0.0], [3.0, 0.5, 0.0]], np.float32)
READOUT = np.array([[1.0, -1.0], [0.5, 0.5], [0.0, 0.0]], np.float32)


def outputs(images):
    latent = tf.tanh(tf.reshape(images, [-1, 2]) @ WEIGHTS)
    return {"logits": latent @ READOUT, "latent": latent}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    fake_runs.make(
        path / "r", "at", epsilon=EPSILON, eval_step_size=0.05, eval_attack_steps=10, weights=None
    )
    runs, _ = collect([str(path)])
    images = np.array([[100, 30], [60, 120], [130, 140], [90, 90]], np.uint8).reshape(4, 1, 2, 1)
    split = Split(images, np.array([0, 1, 0, 1]))
    source = SOURCES["digits"]
    subject = attacked_model.Subject("s", source, "", lambda x: outputs(x)["logits"], outputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probing.attacked_model, "of_run", lambda run: subject)
        seen = []
        probe = probing.probe(grouping.groups(runs)[0], split, 3, lambda *count: seen.append(count))
    assert seen[-1][0] == seen[-1][1] and [done for done, _ in seen] == sorted(d for d, _ in seen)
    return probe, split


def cross_entropy(pixels, labels):
    logits = np.tanh(pixels @ WEIGHTS) @ READOUT
    return np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]


def worst(pixels, labels):
    """The corner of the ball with the highest loss: the loss is monotonous in each pixel here."""
    corners = [pixels + EPSILON * np.array(c) for c in ((1, 1), (1, -1), (-1, 1), (-1, -1))]
    losses = np.stack([cross_entropy(corner, labels) for corner in corners])
    return np.stack(corners)[losses.argmax(0), np.arange(len(labels))]


def test_vulnerability_of_each_feature(found):
    probe, split = found
    pixels = split.images.reshape(4, 2) / 255
    counted, labels = pixels[:3], split.labels[:3]
    expected = np.abs(np.tanh(worst(counted, labels) @ WEIGHTS) - np.tanh(counted @ WEIGHTS)).mean(
        0
    )
    assert probe.examples == 3
    np.testing.assert_allclose(probe.moved["latent"], expected, atol=1e-5)
    assert probe.moved["latent"][2] == 0.0
    assert probe.vulnerability == pytest.approx(expected.mean(), abs=1e-5)


def test_projection_is_the_gradient_of_the_vulnerability(found):
    probe, split = found
    rows = [0, 1]  # The first of each class.
    clean = split.images[rows].reshape(2, 2) / 255
    assert list(probe.labels) == [0, 1]
    np.testing.assert_allclose(probe.images.reshape(2, 2), clean, atol=1e-6)
    attacked = probe.adversarial.reshape(2, 2).astype(np.float64)
    np.testing.assert_allclose(attacked, worst(clean, split.labels[rows]), atol=1e-5)

    def vulnerability(pixels):
        return np.abs(np.tanh(pixels @ WEIGHTS) - np.tanh(clean @ WEIGHTS)).mean(1)

    step = 1e-4
    for pixel in (0, 1):
        move = step * np.eye(2)[pixel]
        slope = (vulnerability(attacked + move) - vulnerability(attacked - move)) / (2 * step)
        np.testing.assert_allclose(
            probe.projections.reshape(2, 2)[:, pixel], np.abs(slope), rtol=1e-3
        )


def test_the_surface_is_the_loss_at_its_places(found):
    probe, split = found
    pixels, labels = split.images.reshape(4, 2) / 255, split.labels
    points, middle = probing.SURFACE_POINTS, probing.SURFACE_POINTS // 2
    assert probe.surface.shape == (points, points)
    assert probe.surface[middle, middle] == pytest.approx(cross_entropy(pixels, labels).mean())
    # Along its own sign gradient, each image reaches the ball's worst corner at s = epsilon.
    expected = cross_entropy(worst(pixels, labels), labels).mean()
    assert probe.surface[middle, -1] == pytest.approx(expected, abs=1e-5)
    assert probe.surface[middle, -1] > probe.surface[middle, 0]


def test_predictions_before_and_after(found):
    probe, split = found
    pixels = split.images[[0, 1]].reshape(2, 2) / 255
    for images, classes, confidence in (
        (pixels, probe.before, probe.confidence_before),
        (worst(pixels, np.array([0, 1])), probe.after, probe.confidence_after),
    ):
        logits = np.tanh(images @ WEIGHTS) @ READOUT
        assert list(classes) == list(logits.argmax(1))
        shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        np.testing.assert_allclose(confidence, shares.max(1), atol=1e-5)


def test_the_pictured_images_are_the_first_of_each_class():
    assert probing.first_of_classes(np.array([3, 3, 1, 0, 1, 2]), 3) == [3, 2, 5]


# ---- Figures ----


def test_the_pareto_front_is_what_nothing_dominates():
    points = [(0.0, 0.9), (0.5, 0.8), (0.5, 0.85), (0.4, 0.7), (0.9, 0.2), (0.9, 0.2), (0.0, 0.1)]
    assert pareto.front(points) == [True, False, True, False, True, True, False]
    assert pareto.line(points) == [(0.0, 0.9), (0.5, 0.85), (0.9, 0.2)]
    assert pareto.front([(1, 1, 0), (0, 1, 1), (0, 1, 0), (1, 0, 0)]) == [True, True, False, False]
    assert pareto.front([]) == pareto.line([]) == []


def linear(color):
    channels = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


# Machado, Oliveira and Fernandes 2009, severity 1.
DEUTERANOPIA = np.array(
    [[0.36732, 0.86065, -0.22797], [0.28009, 0.6725, 0.04741], [-0.01182, 0.04294, 0.96888]]
)
PROTANOPIA = np.array(
    [[0.15229, 1.05258, -0.20487], [0.1145, 0.78628, 0.09922], [-0.00388, -0.04812, 1.052]]
)


def lab(rgb):
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    scaled = np.clip(xyz @ np.clip(rgb, 0, 1), 0, None) / np.array([0.9505, 1.0, 1.089])
    f = np.where(scaled > 0.008856, np.cbrt(scaled), 7.787 * scaled + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("theme", [style.LIGHT, style.DARK], ids=lambda theme: theme.name)
@pytest.mark.parametrize("sight", [np.eye(3), DEUTERANOPIA, PROTANOPIA])
def test_colours_are_told_apart_and_stand_out(theme, sight):
    colors = [lab(sight @ linear(color)) for color in theme.series]
    differences = [
        np.linalg.norm(one - other) for i, one in enumerate(colors) for other in colors[:i]
    ]
    assert min(differences) > 20  # Of CIELAB; 2.3 is just noticeable.
    pairs = ((theme.series[0], theme.zeros), (theme.right, theme.wrong))
    for one, other in pairs:
        assert np.linalg.norm(lab(sight @ linear(one)) - lab(sight @ linear(other))) > 30

    def luminance(color):
        return float(linear(color) @ [0.2126, 0.7152, 0.0722])

    def contrast(color):
        high, low = sorted((luminance(color), luminance(theme.background)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    # WCAG 2: graphics 3 : 1, text 4.5 : 1.
    assert all(contrast(color) > 3 for color in theme.series)
    assert all(contrast(color) > 4.5 for color in (theme.text, theme.right, theme.wrong))


def test_no_two_of_many_groups_look_alike():
    groups = [Group(str(i), ()) for i in range(style.MOST_STYLED_GROUPS)]
    strokes = style.Strokes(groups)
    drawn = [dataclasses.astuple(strokes[group]) for group in groups]
    assert len(set(map(str, drawn))) == 8


@pytest.mark.parametrize("skipped", [0, 2])
def test_steps_that_were_left_out_have_a_panel_where_there_are_any(tmp_path, skipped):
    fake_runs.make(tmp_path / "r", "at", weights=None)
    (run,), _ = collect([str(tmp_path)])
    rows = [row | {"nonfinite": 0} for row in run.metrics]
    rows[1]["nonfinite"] = skipped
    groups = grouping.groups([dataclasses.replace(run, metrics=rows)])
    picture = training_figures.loss_terms(groups, style.Strokes(groups))
    assert ("steps left out" in picture.alt) == bool(skipped)
    assert "nonfinite" not in picture.alt


def test_figures_of_pruning_need_a_network_that_is_pruned(tmp_path):
    fake_runs.make(tmp_path / "at", "at")
    unpruned = {one.name for one in training_figures.build(groups_in(tmp_path))}
    assert unpruned == {"training", "loss_terms"}
    fake_runs.make(tmp_path / "anpvs", "anpvs")
    (figure,) = [
        one for one in training_figures.build(groups_in(tmp_path)) if one.name == "active_features"
    ]
    assert "anpvs: conv1 10 of 20" in figure.alt and "at:" not in figure.alt


def test_a_network_at_chance_is_on_no_front(tmp_path):
    fake_runs.make(tmp_path / "a", "at", clean=0.9, robust=0.6)
    fake_runs.make(tmp_path / "b", "anpvs", clean=0.8, robust=0.5, sparsity=0.5)
    fake_runs.make(tmp_path / "c", "anp", clean=0.1, robust=0.1, sparsity=0.9, at_chance="it is")
    groups = groups_in(tmp_path)
    axes = training_figures.trade_off(groups, style.Strokes(groups)).draw(style.LIGHT).axes
    lines = [one for axis in axes for one in axis.lines if one.get_linestyle() == "-"]
    assert [one.get_xydata().tolist() for one in lines] == [
        [[0.0, 0.9], [0.5, 0.8]],
        [[0.0, 0.6], [0.5, 0.5]],
    ]


def groups_in(path):
    return grouping.groups(collect([str(path)])[0])


def test_runs_that_were_attacked_differently_are_on_no_common_front(tmp_path):
    for seed, (epsilon, robust) in enumerate([(0.03, 0.9), (0.13, 0.6), (0.13, 0.5)]):
        settings = {"epsilon": epsilon, "beta": 1.0 + seed, "sparsity": 0.2 * seed}
        fake_runs.make(tmp_path / str(seed), "anpvs", robust=robust, **settings)
    found, _ = collect([str(tmp_path)])
    mixed = grouping.groups(found)
    (chosen,) = most_robust(mixed)
    assert (chosen.settings.epsilon, chosen.settings.beta) == (0.13, 2.0)
    alike = grouping.groups([run for run in found if run.settings.epsilon == 0.13])
    fronts = []
    for groups in (mixed, alike):
        picture = training_figures.trade_off(groups, style.Strokes(groups))
        assert ("attacked differently" in picture.caption) == (groups is mixed)
        axes = picture.draw(style.LIGHT).axes[:2]
        fronts.append([any(line.get_linestyle() == "-" for line in axis.lines) for axis in axes])
    assert [under_pgd for _, under_pgd in fronts] == [False, True]
