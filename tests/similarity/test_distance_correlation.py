import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from scipy.spatial.distance import cdist

from saejax.similarity import distance_correlation, distances
from saejax.similarity.distance_correlation import DISTANCE_CORRELATION as MEASURE
from saejax.similarity.measure import State


def single(state: State) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), state)


def exact_core(state: State, perm: np.ndarray) -> float:
    compute = MEASURE.statistics[0].compute_exact
    assert compute is not None
    value = compute(state.crossed[0], perm)
    with jax.enable_x64(True):
        return float(MEASURE.core(state.own, (value,), perm).low)


def energy(x: np.ndarray, y: np.ndarray) -> float:
    """Squared distance covariance by the sums of Szekely, Rizzo and Bakirov, without centring."""
    a, b = cdist(x, x), cdist(y, y)
    return float(np.mean(a * b) + a.mean() * b.mean() - 2 * np.mean(a.mean(axis=0) * b.mean(axis=0)))


def test_is_the_ratio_of_distance_covariances() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 4)), rng.normal(size=(30, 3))
    y[:, 0] += x[:, 0] ** 2
    expected = np.sqrt(energy(x, y) / np.sqrt(energy(x, x) * energy(y, y)))
    assert MEASURE.reference(x, y) == pytest.approx(expected, abs=1e-12)
    assert exact_core(MEASURE.prepare(x, y), np.arange(30)) ** 0.5 == pytest.approx(expected, abs=1e-12)


def test_a_rotated_scaled_and_shifted_copy_scores_one() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(25, 5))
    copy = 1e9 + 1e4 * x @ scipy.stats.ortho_group.rvs(5, random_state=rng)
    assert exact_core(MEASURE.prepare(x, copy), np.arange(25)) == pytest.approx(1, abs=1e-7)
    assert exact_core(MEASURE.prepare(x * 1e-60, x * 1e60), np.arange(25)) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("n", "columns"), [(4, 1), (20, 60), (150, 3)])
@pytest.mark.parametrize("hubs", [False, True])
def test_scores_of_all_ways_agree_with_the_definition(n: int, columns: int, hubs: bool) -> None:
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, columns)), rng.normal(size=(n, 6))
    if hubs:
        x = x[rng.integers(0, n // 2, size=n)]
    perms = np.stack([rng.permutation(n) for _ in range(7)]).astype(np.int32)
    expected = np.array([MEASURE.reference(x, y[perm]) for perm in perms]) ** 2
    state = MEASURE.prepare(x, y)
    np.testing.assert_allclose([exact_core(state, perm) for perm in perms], expected, atol=1e-13, rtol=0)
    fast = single(state)
    mapped = jax.jit(jax.vmap(MEASURE.score, in_axes=(None, 0)))(fast, jnp.asarray(perms))
    for scores in (mapped, MEASURE.score_batch(fast, perms)):
        np.testing.assert_allclose(np.asarray(scores) ** 2, expected, atol=MEASURE.tolerance / 2, rtol=0)


def test_entries_may_be_rounded_to_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding errors are independent, so they move a core by about 1e-7 / n, and that of a matrix with itself not."""
    rng = np.random.default_rng(5)
    n = 150
    x, y = (rng.normal(size=(n, 20)) for _ in range(2))
    monkeypatch.setattr(distance_correlation, "LARGEST_DOUBLE", n - 1)
    state = MEASURE.prepare(x, y)
    assert state.crossed[0].a.dtype == np.float32
    for perm in (np.arange(n), *(rng.permutation(n) for _ in range(5))):
        assert exact_core(state, perm) == pytest.approx(MEASURE.reference(x, y[perm]) ** 2, abs=3e-7 / n)
    assert exact_core(MEASURE.prepare(x, x), np.arange(n)) == pytest.approx(1, abs=1e-14)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(40, 4)), rng.normal(size=(40, 3))
    at_once = MEASURE.prepare(x, y)
    monkeypatch.setattr(distances, "BLOCK", 170)
    in_blocks = MEASURE.prepare(x, y)
    for one, other in zip(jax.tree.leaves(at_once), jax.tree.leaves(in_blocks), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-13)
    np.testing.assert_array_equal(in_blocks.crossed[0].a, in_blocks.crossed[0].a.T)


def test_mean_over_all_pairings_is_that_of_centred_matrices() -> None:
    """tr A tr B / (n - 1): the diagonal belongs to the sum."""
    rng = np.random.default_rng(3)
    n = 5
    x, y = rng.normal(size=(n, 3)), rng.normal(size=(n, 2))
    state = MEASURE.prepare(x, y)
    perms = np.array(list(itertools.permutations(range(n))))
    centring = np.eye(n) - 1 / n
    a, b = (centring @ cdist(each, each) @ centring for each in (x, y))
    expected = np.trace(a) * np.trace(b) / (n - 1) / np.linalg.norm(a) / np.linalg.norm(b)
    assert np.mean([exact_core(state, perm) for perm in perms]) == pytest.approx(expected, abs=1e-12)


def test_a_core_below_zero_by_rounding_scores_zero() -> None:
    own = MEASURE.prepare(*np.random.default_rng(4).normal(size=(2, 6, 2))).own
    np.testing.assert_array_equal(MEASURE.scores(own, np.array([-1e-9, 0.25, 1 + 1e-9])), [0, 0.5, 1])
