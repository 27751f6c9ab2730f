from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial
import scipy.stats

from saejax.similarity.measure import Measure
from saejax.similarity.procrustes import ANGULAR_PROCRUSTES, PROCRUSTES, PROCRUSTES_SIZE_AND_SHAPE

ALL = (PROCRUSTES, ANGULAR_PROCRUSTES, PROCRUSTES_SIZE_AND_SHAPE)
every_measure = pytest.mark.parametrize("measure", ALL, ids=[measure.name for measure in ALL])


def exact(measure: Measure, x: np.ndarray, y: np.ndarray) -> float:
    return measure.score_exact(measure.prepare(x, y), np.arange(len(x), dtype=np.int32))


def pair(seed: int, n: int = 30, dx: int = 6, dy: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(2, 1, size=(n, dx)), 3 * rng.normal(size=(n, dy))
    y[:, : min(dx, dy)] += x[:, : min(dx, dy)]
    return x, y


def test_is_the_disparity_of_scipy() -> None:
    """scipy also fits the size of y, which leaves 1 - core^2 of the squared distance."""
    x, y = pair(0)
    _, _, disparity = scipy.spatial.procrustes(x, y)
    core = np.sqrt(1 - disparity)
    assert exact(PROCRUSTES, x, y) == pytest.approx(np.sqrt(2 - 2 * core), abs=1e-12)
    assert exact(ANGULAR_PROCRUSTES, x, y) == pytest.approx(np.arccos(core), abs=1e-12)
    norms = [np.linalg.norm(matrix - matrix.mean(axis=0)) for matrix in (x, y)]
    expected = np.sqrt(norms[0] ** 2 + norms[1] ** 2 - 2 * core * norms[0] * norms[1])
    assert exact(PROCRUSTES_SIZE_AND_SHAPE, x, y) == pytest.approx(expected, abs=1e-11)


def planar_maps() -> np.ndarray:
    """Return rotations and reflections of the plane, every hundredth of a degree."""
    angles = np.radians(np.arange(0, 360, 0.01))
    cosine, sine = np.cos(angles), np.sin(angles)
    rotations = np.stack([cosine, sine, -sine, cosine], axis=1).reshape(-1, 2, 2)
    return np.concatenate([rotations, rotations * [1, -1]])


@pytest.mark.parametrize("mirror", [1, -1])
def test_no_orthogonal_map_of_the_plane_comes_nearer(mirror: int) -> None:
    x, y = pair(1, n=12, dx=2, dy=2)
    x[:, 1] *= mirror
    a, b = (matrix - matrix.mean(axis=0) for matrix in (x, y))
    nearest = np.min(np.linalg.norm(a @ planar_maps() - b, axis=(1, 2)))
    assert exact(PROCRUSTES_SIZE_AND_SHAPE, x, y) == pytest.approx(nearest, rel=1e-6)
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    nearest = np.min(np.linalg.norm(a @ planar_maps() - b, axis=(1, 2)))
    assert exact(PROCRUSTES, x, y) == pytest.approx(nearest, rel=1e-6)


@every_measure
def test_a_rotated_shifted_copy_is_no_distance_away(measure: Measure) -> None:
    x, _ = pair(2)
    moved = x @ scipy.stats.ortho_group.rvs(6, random_state=0) - 4
    assert exact(measure, x, moved) < 1e-6
    assert exact(measure, x, np.pad(moved, ((0, 0), (0, 3)))) < 1e-6
    state = measure.prepare(x.astype(np.float32), moved.astype(np.float32))
    scores = measure.score_batch(state, np.arange(30, dtype=np.int32)[None])
    assert np.isfinite(scores).all()


def test_size_and_shape_counts_size() -> None:
    x, y = pair(3)
    norm = np.linalg.norm(x - x.mean(axis=0))
    assert exact(PROCRUSTES_SIZE_AND_SHAPE, x, 3 * x) == pytest.approx(2 * norm)
    for measure in (PROCRUSTES, ANGULAR_PROCRUSTES):
        assert exact(measure, x, 3 * y) == pytest.approx(exact(measure, x, y), abs=1e-12)


@every_measure
def test_distances_obey_the_triangle_inequality(measure: Measure) -> None:
    rng = np.random.default_rng(4)
    for _ in range(20):
        x, y, z = (rng.normal(size=(8, 3)) * rng.uniform(0.5, 2) for _ in range(3))
        assert exact(measure, x, z) <= exact(measure, x, y) + exact(measure, y, z) + 1e-12


@every_measure
def test_distances_fall_as_the_core_grows_and_stay_defined_beyond_one(measure: Measure) -> None:
    own = measure.prepare(*pair(5)).own
    cores = np.array([-1e-7, 0, 0.3, 0.999, 1, 1 + 1e-7])
    scores = measure.scores(own, cores)
    assert np.isfinite(scores).all()
    assert np.all(np.diff(scores) <= 0)
    assert np.all(np.diff(scores[1:5]) < 0)
    jitted: Any = jax.jit(measure.score_of)
    np.testing.assert_allclose(jitted(own, jnp.asarray(cores, jnp.float32)), scores, atol=2e-3)


def test_weights_use_the_whole_range_of_float32() -> None:
    """However flat the spectrum, the largest weighted singular value that a re-pairing can have is 1."""
    x, y = pair(6, dx=20, dy=7)
    own = PROCRUSTES.prepare(x, 1e-3 * y).own
    assert own.wx.max() == own.wy.max() == 1
    assert own.most == pytest.approx(np.linalg.norm(own.wx) * np.linalg.norm(own.wy))


def decaying(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    return rng.normal(size=(n, d)) * np.geomspace(1, 1e-4, d)


def massive(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """One column of a thousand times the others' variance, as activations have."""
    return rng.normal(size=(n, d)) * np.where(np.arange(d) < 1, 1e3, 1)


@pytest.mark.parametrize("columns", [decaying, massive])
def test_directions_of_little_weight_are_summed_in_full(columns: Callable[..., np.ndarray]) -> None:
    rng = np.random.default_rng(7)
    x, y = columns(rng, 60, 40), columns(rng, 60, 30)
    perms = np.stack([rng.permutation(60) for _ in range(4)]).astype(np.int32)
    state = PROCRUSTES.prepare(x, y)
    expected = np.array([PROCRUSTES.score_exact(state, perm) for perm in perms])
    scores = PROCRUSTES.score_batch(jax.tree.map(lambda leaf: leaf.astype(np.float32), state), perms)
    np.testing.assert_allclose(1 - np.asarray(scores) ** 2 / 2, 1 - expected**2 / 2, atol=PROCRUSTES.tolerance / 2)
