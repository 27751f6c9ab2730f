import numpy as np
import pytest

from saejax.similarity.cca_mean_squared import CCA_MEAN_SQUARED
from saejax.similarity.gulp import GULP
from saejax.similarity.pair import Pair


def from_covariances(x: np.ndarray, y: np.ndarray) -> float:
    """Return the squared distance by the formula of its authors, lambda = 0, from inverse covariances."""
    n = len(x)
    x, y = (np.sqrt(n) * side / np.linalg.norm(side) for side in (x - x.mean(axis=0), y - y.mean(axis=0)))
    inverse_x, inverse_y = np.linalg.inv(x.T @ x / n), np.linalg.inv(y.T @ y / n)
    cross = x.T @ y / n
    ones = np.trace(inverse_x @ x.T @ x @ inverse_x @ x.T @ x) / n**2
    others = np.trace(inverse_y @ y.T @ y @ inverse_y @ y.T @ y) / n**2
    return ones + others - 2 * np.trace(inverse_x @ cross @ inverse_y @ cross.T)


def test_is_the_published_distance_without_ridge() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(3, 1, size=(50, 5)), rng.normal(size=(50, 7))
    y[:, :4] += x[:, :4]
    expected = from_covariances(x, y)
    assert GULP.reference(x, y) == pytest.approx(expected, abs=1e-10)
    assert float(GULP.score(GULP.prepare(x, y), np.arange(50))) == pytest.approx(expected, abs=1e-5)


def test_the_same_directions_are_at_distance_zero_and_never_below() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, 6))
    y = x @ rng.normal(size=(6, 6))
    assert GULP.reference(x, y) == pytest.approx(0, abs=1e-12)
    cores = np.array([1 + 1e-7, 1, 1 - 1e-7])
    np.testing.assert_allclose(GULP.scores(GULP.own(Pair.of(x, y)), cores), [0, 0, 6e-7 * 2], atol=1e-12)


def test_matrices_with_more_columns_than_rows_are_scored_by_their_rank() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(10, 4)), rng.normal(size=(10, 25))
    assert GULP.reference(x, y) == pytest.approx(9 - 4, abs=1e-12)
    assert GULP.reference(x @ rng.normal(size=(4, 30)), y[:, :3]) == pytest.approx(
        GULP.reference(x, y[:, :3]), abs=1e-10
    )


def test_falls_with_squared_canonical_correlation() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(30, 3)), rng.normal(size=(30, 5))
    assert GULP.reference(x, y) == pytest.approx(8 - 6 * CCA_MEAN_SQUARED.reference(x, y), abs=1e-12)
