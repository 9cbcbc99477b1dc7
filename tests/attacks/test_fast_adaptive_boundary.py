"""FAB against solvers that know nothing of it."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import optimize

from anpvs_tf.attacks import fab
from anpvs_tf.attacks.fast_adaptive_boundary import project
from anpvs_tf.common import randomness

SEED = randomness.seed_of(0)
RNG = np.random.default_rng(0)
ORDER = {"linf": np.inf, "l2": 2}


def shortest_move(point, normal, offset, norm):
    """min ||d||: <normal, point + d> = offset, point + d in [0, 1]; the norm."""
    n = len(point)
    bounds = list(zip(-point, 1 - point, strict=True))
    gap = offset - normal @ point
    if norm == "linf":
        ones, eye = np.ones([n, 1]), np.eye(n)
        found = optimize.linprog(
            [0] * n + [1],
            A_ub=np.block([[eye, -ones], [-eye, -ones]]),
            b_ub=np.zeros(2 * n),
            A_eq=[[*normal, 0]],
            b_eq=[gap],
            bounds=[*bounds, (0, 1)],
        )
        return found.fun
    found = optimize.minimize(
        lambda d: d @ d,
        np.zeros(n),
        jac=lambda d: 2 * d,
        constraints={"type": "eq", "fun": lambda d: normal @ d - gap, "jac": lambda d: normal},
        bounds=bounds,
        options={"ftol": 1e-12, "maxiter": 500},
    )
    return np.sqrt(found.fun)


def as_tensors(*arrays):
    return [tf.constant(a.astype(np.float32)) for a in arrays]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_projection_is_exact(norm, scale):
    points, inside = RNG.uniform(size=(2, 30, 8))
    points[20:] = np.round(points[20:])  # corners of the box: half of the directions are shut
    normals = scale * RNG.normal(size=(30, 8))
    normals[:5, 2] = 0.0
    offsets = np.sum(normals * inside, axis=1)  # planes that cross the box
    moves = project(*as_tensors(points, normals, offsets), norm).numpy()
    ends = points + moves
    assert ends.min() > -1e-6
    assert ends.max() < 1 + 1e-6
    np.testing.assert_allclose(np.sum(normals * ends, axis=1) / scale, offsets / scale, atol=1e-5)
    expected = [
        shortest_move(*row, norm)
        for row in zip(points, normals / scale, offsets / scale, strict=True)
    ]
    np.testing.assert_allclose(np.linalg.norm(moves, ORDER[norm], axis=1), expected, atol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projection_onto_a_plane_outside_the_box_goes_to_the_corner(norm):
    points, normals = as_tensors(RNG.uniform(size=(4, 5)), RNG.normal(size=(4, 5)))
    moves = project(points, normals, tf.constant([99.0, -99.0, 99.0, -99.0]), norm)
    corners = tf.cast(normals * tf.constant([[1.0], [-1], [1], [-1]]) > 0, tf.float32)
    np.testing.assert_allclose(points + moves, corners, atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projection_without_a_plane_moves_nothing(norm):
    points = tf.constant(RNG.uniform(size=(2, 5)).astype(np.float32))
    moves = project(points, tf.zeros_like(points), tf.constant([0.0, 1.0]), norm)
    np.testing.assert_array_equal(moves, tf.zeros_like(points))


WEIGHTS = RNG.normal(size=(12, 2)).astype(np.float32)
IMAGES = RNG.uniform(size=(12, 2, 2, 3)).astype(np.float32)
# The first two examples lie deep in their class: their way is along the box.
IMAGES[:2] = np.where((WEIGHTS[:, 0] > WEIGHTS[:, 1]).reshape(2, 2, 3), 1.0, 0.0)


def linear(images):
    return tf.reshape(images, [-1, 12]) @ WEIGHTS


LABELS = tf.argmax(linear(IMAGES), axis=1)


def minimal_distances(norm):
    normal = (WEIGHTS[:, 1] - WEIGHTS[:, 0]).astype(np.float64)
    return np.array([shortest_move(x.ravel(), normal, 0.0, norm) for x in IMAGES.astype(float)])


def distances(adversarial, norm):
    difference = (adversarial - IMAGES).numpy().reshape(len(IMAGES), -1)
    return np.linalg.norm(difference, ORDER[norm], axis=1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_finds_the_minimal_perturbation_of_a_linear_model(norm):
    settings = {"targets": 1 - LABELS, "norm": norm}
    found = fab(linear, IMAGES, LABELS, SEED, epsilon=4.0, shortest=True, **settings)
    assert (tf.argmax(linear(found), axis=1) != LABELS).numpy().all()
    expected = minimal_distances(norm)
    np.testing.assert_allclose(distances(found, norm), expected, rtol=0.02)
    assert (distances(found, norm) >= expected * (1 - 1e-5)).all()

    # The same within a ball that holds half of these perturbations.
    epsilon = float(np.median(expected))
    within = distances(fab(linear, IMAGES, LABELS, SEED, epsilon=epsilon, **settings), norm)
    near, far = expected < 0.98 * epsilon, expected > epsilon
    assert near.sum() >= 5
    assert (within[far] == 0).all()
    assert ((within[near] > 0) & (within[near] <= epsilon)).all()
