import itertools
from typing import Any

import jax
import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats

from saejax.errors import InputError
from saejax.similarity.moments import mantel_moments, matrix_sums
from saejax.similarity.pair import Pair
from saejax.similarity.rsa_pearson import RSA_PEARSON


def pearson_of_distances(x: np.ndarray, y: np.ndarray) -> float:
    distances = (scipy.spatial.distance.pdist(matrix, "correlation") for matrix in (x, y))
    result: Any = scipy.stats.pearsonr(*distances)
    return result.statistic


def exact_scores(x: np.ndarray, y: np.ndarray, perms: np.ndarray) -> np.ndarray:
    with jax.enable_x64(True):
        return np.asarray(RSA_PEARSON.score_batch(RSA_PEARSON.prepare(x, y), perms))


@pytest.mark.parametrize(("n", "dx", "dy"), [(25, 8, 5), (12, 20, 5), (12, 20, 30), (4, 3, 2)])
def test_is_pearsons_correlation_of_correlation_distances(n: int, dx: int, dy: int) -> None:
    rng = np.random.default_rng(n)
    x, y = rng.normal(1, 2, size=(n, dx)), rng.normal(size=(n, dy))
    y[:, : min(dx, dy)] += x[:, : min(dx, dy)]
    perms = np.stack([rng.permutation(n) for _ in range(5)])
    expected = [pearson_of_distances(x, y[perm]) for perm in perms]
    np.testing.assert_allclose(exact_scores(x, y, perms), expected, atol=1e-12)
    np.testing.assert_allclose([RSA_PEARSON.reference(x, y[perm]) for perm in perms], expected, atol=1e-12)


def test_all_pairings_have_mean_zero() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(6, 3)), rng.normal(size=(6, 4)) ** 3
    scores = exact_scores(x, y, np.array(list(itertools.permutations(range(6)))))
    assert scores.mean() == pytest.approx(0, abs=1e-12)
    assert scores.std() > 0.1


def test_equal_rows_are_scored() -> None:
    """With 20 different rows of 30 the matrix of similarities has null directions besides the constant one."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(20, 50))[rng.integers(20, size=30)], rng.normal(size=(30, 4))
    perms = np.stack([rng.permutation(30) for _ in range(3)])
    expected = [pearson_of_distances(x, y[perm]) for perm in perms]
    np.testing.assert_allclose(exact_scores(x, y, perms), expected, atol=1e-12)


def test_float32_bears_rows_that_all_point_one_way() -> None:
    rng = np.random.default_rng(3)
    x, y = np.arange(12) + 0.01 * rng.normal(size=(2, 40, 12))
    y += x
    perms = np.stack([np.arange(40), rng.permutation(40)])
    state = RSA_PEARSON.prepare(x, y)
    assert np.corrcoef(x).min() > 0.9999
    expected = [pearson_of_distances(x, y[perm]) for perm in perms]
    np.testing.assert_allclose(RSA_PEARSON.score_batch(state, perms), expected, atol=RSA_PEARSON.tolerance)


@pytest.mark.parametrize("spread", [1.0, 1e-3, 1e-4])
def test_exact_sd_of_rows_that_point_the_same_way(spread: float) -> None:
    """Against the correlations themselves, centred in extended precision."""
    rng = np.random.default_rng(8)
    sides = [rng.normal(size=20) + spread * rng.normal(size=(9, 20)), rng.normal(size=(9, 6))]
    centred = []
    for side in sides:
        rows = side.astype(np.longdouble)
        rows -= rows.mean(axis=1, keepdims=True)
        rows /= np.sqrt((rows**2).sum(axis=1, keepdims=True))
        apart = ((rows[:, None] - rows[None]) ** 2).sum(axis=2) / 2
        off = ~np.eye(9, dtype=bool)
        centred.append(np.where(off, apart - apart[off].mean(), 0).astype(np.float64))
    a, b = (matrix_sums(matrix) for matrix in centred)
    expected = mantel_moments(a, b).rescaled(2 / np.sqrt(a.squares * b.squares))
    found = RSA_PEARSON.moments(Pair.of(*sides), "uniform")
    assert found is not None
    assert found.mean == 0
    assert found.sd == pytest.approx(expected.sd, rel=1e-6)


def test_a_constant_row_is_refused_by_number() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(6, 4)), rng.normal(size=(6, 4))
    y[[2, 4]] = 0.25
    with pytest.raises(InputError) as error:
        RSA_PEARSON.check(Pair.of(x, y))
    assert str(error.value) == (
        "rsa_pearson: row 2 of y is constant (0.25 in every column; 2 such row(s)), so it has no correlation with the "
        "others; leave that pair out"
    )


def test_equal_correlations_are_refused() -> None:
    y = np.random.default_rng(5).normal(size=(6, 4))
    for x in (np.eye(6), np.sort(np.random.default_rng(6).normal(size=(6, 2)), axis=1)):
        with pytest.raises(InputError) as error:
            RSA_PEARSON.check(Pair.of(x, y))
        assert str(error.value) == (
            "rsa_pearson: all 15 correlations of rows of x are equal, so there is nothing to correlate; give rows of "
            "more columns or leave rsa_pearson out of measures"
        )
