import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from saejax.errors import InputError
from saejax.similarity.bases import BASES
from saejax.similarity.measure import Bounds, core_batch, exact_core, exact_statistic
from saejax.similarity.pair import Pair
from saejax.similarity.pwcca import PWCCA

GOLDEN = Path(__file__).parent / "golden.npz"


def golden(case: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[float | None]]:
    with np.load(GOLDEN) as file:
        scores = json.loads(str(file["scores_json"]))[case]["PWCCA"]
        return file[f"{case}/x"], file[f"{case}/y"], file[f"{case}/perms"], scores


def covariances(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    both = np.cov(np.hstack([x, y]).T)
    dx = x.shape[1]
    return both[:dx, :dx], both[:dx, dx:], both[dx:, dx:]


def variates(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return canonical variates of x, as columns, and their correlations, from the generalised eigenvalue problem."""
    sxx, sxy, syy = covariances(x, y)
    found: Any = scipy.linalg.eigh(sxy @ np.linalg.solve(syy, sxy.T), sxx)
    squares, coefficients = found
    kept = slice(None, -min(x.shape[1], y.shape[1]) - 1, -1)
    directions = (x - x.mean(axis=0)) @ coefficients[:, kept]
    return directions / np.linalg.norm(directions, axis=0), np.sqrt(squares[kept])


def published_directions(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what the published code projects x on, and the correlations it averages; dx <= dy.

    The coefficients apply to whitened columns, but the columns are not whitened, and their means are added back.
    """
    sxx, sxy, syy = covariances(x, y)
    whitened = scipy.linalg.inv(scipy.linalg.sqrtm(sxx)) @ sxy @ scipy.linalg.inv(scipy.linalg.sqrtm(syy))
    left, correlations, _ = np.linalg.svd(whitened)
    directions = (x - x.mean(axis=0)) @ left + x.mean(axis=0)
    return np.linalg.qr(directions)[0], correlations


def explained(directions: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the multiple correlation of each direction with y."""
    basis = scipy.linalg.orth(y - y.mean(axis=0))
    centred = directions - directions.mean(axis=0)
    return np.linalg.norm(basis.T @ centred, axis=0) / np.linalg.norm(centred, axis=0)


@pytest.mark.parametrize(("dx", "dy"), [(4, 6), (6, 4), (5, 5)])
def test_weighs_correlations_by_projections_on_the_canonical_variates(dx: int, dy: int) -> None:
    rng = np.random.default_rng(dx)
    x, y = rng.normal(3, 2, size=(60, dx)), rng.normal(size=(60, dy))
    y[:, :3] += x[:, :3]
    perm = rng.permutation(60)
    for order in (np.arange(60), perm):
        directions, correlations = variates(x, y[order])
        np.testing.assert_allclose(directions.T @ directions, np.eye(min(dx, dy)), atol=1e-9)
        np.testing.assert_allclose(explained(directions, y[order]), correlations, atol=1e-9)
        weights = np.abs(directions.T @ (x - x.mean(axis=0))).sum(axis=1)
        expected = np.average(correlations, weights=weights)
        assert PWCCA.reference(x, y[order]) == pytest.approx(expected, abs=1e-9)
        assert float(PWCCA.score(PWCCA.prepare(x, y), order)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("case", ["tall7", "hubs7"])
def test_the_published_code_weighs_by_directions_that_are_no_variates(case: str) -> None:
    """Its scores follow from its recipe, and its directions do not have the correlations that they are to weigh."""
    x, y, perms, scores = golden(case)
    for perm, score in zip(perms, scores, strict=True):
        directions, correlations = published_directions(x, y[perm])
        weights = np.abs(directions.T @ x).sum(axis=1)
        assert np.average(correlations, weights=weights) == pytest.approx(score, abs=1e-6)
        assert np.max(np.abs(explained(directions, y[perm]) - correlations)) > 0.01
        ours, correlations = variates(x, y[perm])
        np.testing.assert_allclose(explained(ours, y[perm]), correlations, atol=1e-8)
        weights = np.abs(ours.T @ (x - x.mean(axis=0))).sum(axis=1)
        assert PWCCA.reference(x, y[perm]) == pytest.approx(np.average(correlations, weights=weights), abs=1e-9)


def test_a_narrower_second_matrix_is_scored_where_the_published_code_fails() -> None:
    x, y, perms, scores = golden("unit7")
    assert scores == [None] * 4
    for perm in perms:
        directions, correlations = variates(x, y[perm])
        weights = np.abs(directions.T @ (x - x.mean(axis=0))).sum(axis=1)
        assert PWCCA.reference(x, y[perm]) == pytest.approx(np.average(correlations, weights=weights), abs=1e-9)


def test_weights_come_from_the_first_matrix() -> None:
    """A column of x that y has counts by its size; the size of columns of y is of no account."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(80, 3)), rng.normal(size=(80, 3))
    y[:, 0] = x[:, 0]
    large = np.array([100.0, 1, 1])
    assert PWCCA.reference(x * large, y) > 0.95
    assert PWCCA.reference(x, y * large) == pytest.approx(PWCCA.reference(x, y), abs=1e-12)
    assert PWCCA.reference(x, y) < 0.7


def both_ways(x: np.ndarray, y: np.ndarray, perms: np.ndarray) -> tuple[list[Bounds], np.ndarray]:
    """Return float32 cores of a batch, from the host and in JAX, and float64 cores."""
    state = PWCCA.prepare(x, y)
    own, bases = jax.tree.map(lambda leaf: leaf.astype(np.float32), (state.own, state.crossed[0]))
    products = np.stack([np.asarray(BASES.compute(bases, perm)) for perm in perms])
    mapped = jax.vmap(PWCCA.core, in_axes=(None, 0, 0))(own, (products,), perms)
    exact = [exact_core(PWCCA, state.own, (exact_statistic(BASES, state.crossed[0], perm),), perm) for perm in perms]
    return [core_batch(PWCCA, own, (products,), perms), mapped], np.array(exact)


@pytest.mark.parametrize(("n", "dx", "dy"), [(30, 3, 5), (40, 12, 5), (12, 1, 1), (14, 7, 7)])
def test_host_and_jax_agree_with_float64(n: int, dx: int, dy: int) -> None:
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, dx)), rng.normal(size=(n, dy))
    perms = np.stack([rng.permutation(n) for _ in range(20)])
    bounds, exact = both_ways(x, y, perms)
    for low, high in bounds:
        assert np.all(low - PWCCA.tolerance / 2 < exact)
        assert np.all(exact < high + PWCCA.tolerance / 2)
        assert np.median(high - low) < 1e-6


def test_a_direction_of_x_that_y_lacks_counts_with_correlation_zero() -> None:
    """Its weight must not go to the padding, which has correlation zero as well."""
    basis = scipy.linalg.hadamard(16)[:, 1:] / 4.0
    x = basis[:, :3]
    y = basis[:, [0, 1, 5, 6]] + np.array([0, 0.5, 0, 0]) * basis[:, [8]]
    expected = (1 + 1 / np.sqrt(1.25) + 0) / 3
    assert PWCCA.reference(x, y) == pytest.approx(expected, abs=1e-12)
    bounds, exact = both_ways(x, y, np.arange(16)[None])
    assert exact[0] == pytest.approx(expected, abs=1e-12)
    for low, high in bounds:
        assert low[0] - 1e-6 < expected < high[0] + 1e-6


def test_variates_of_equal_correlation_make_the_core_an_interval() -> None:
    """Three columns in common: their variates, with a correlation of 1 each, may be rotated as one likes."""
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(60, 6)), rng.normal(size=(60, 7))
    y[:, :3] = x[:, :3] + rng.normal(size=(60, 3)) * 1e-4
    bounds, exact = both_ways(x, y, np.arange(60)[None])
    for low, high in bounds:
        assert 0.01 < high[0] - low[0] < 0.2
        assert low[0] < exact[0] < high[0]


@pytest.mark.parametrize("missing", [False, True])
def test_a_pairing_whose_weights_are_not_determined_is_refused(missing: bool) -> None:
    """Three correlations of 1; or one of 0 that counts, beside others of 0 that do not."""
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(60, 6)), rng.normal(size=(60, 5))
    if missing:
        basis = np.linalg.qr(rng.normal(size=(60, 9)) - 1e-3)[0]
        basis = scipy.linalg.orth(basis - basis.mean(axis=0))
        x, y = basis[:, :6] * np.arange(1, 7), basis[:, [0, 1, 2, 6, 7]] + 0.5 * basis[:, [3, 3, 3, 8, 8]]
    else:
        y[:, :3] = x[:, :3]
    state = PWCCA.prepare(x @ rng.normal(size=(6, 6)), y)
    with pytest.raises(InputError, match="pwcca: canonical correlations of a pairing are equal.*; leave pwcca out"):
        PWCCA.score_exact(state, np.arange(60))
    PWCCA.score_exact(state, rng.permutation(60))


def test_more_directions_than_pairs_are_refused() -> None:
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(30, 20)), rng.normal(size=(30, 12))
    with pytest.raises(InputError) as error:
        PWCCA.prepare(x, y)
    assert str(error.value) == (
        "pwcca: 20 directions of x and 12 of y among 30 pairs have 3 canonical correlations of 1 under every pairing, "
        "whose weights are not determined; give at least 32 pairs, or fewer columns"
    )
    PWCCA.check(Pair.of(x[:, :18], y))


def test_n_minus_one_directions_on_one_side_make_every_score_one() -> None:
    rng = np.random.default_rng(7)
    for dx, dy in ((30, 4), (4, 30), (30, 40)):
        x, y = rng.normal(size=(12, dx)), rng.normal(size=(12, dy))
        bounds, exact = both_ways(x, y, np.stack([rng.permutation(12) for _ in range(4)]))
        for values in (*bounds[0], *bounds[1], exact, PWCCA.reference(x, y)):
            np.testing.assert_allclose(values, 1, atol=1e-6)
