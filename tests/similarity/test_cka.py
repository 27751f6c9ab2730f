import itertools

import numpy as np
import pytest
import scipy.stats

from saejax.similarity.cka import CKA


def hsic(gram_x: np.ndarray, gram_y: np.ndarray) -> float:
    """Return the Hilbert-Schmidt independence criterion of two kernels, with the centring matrix in full."""
    n = len(gram_x)
    centring = np.eye(n) - 1 / n
    return np.trace(gram_x @ centring @ gram_y @ centring) / (n - 1) ** 2


def test_is_normalised_hsic_with_linear_kernels() -> None:
    rng = np.random.default_rng(0)
    for dx, dy in ((4, 6), (40, 3)):
        x, y = rng.normal(2, 1, size=(20, dx)), rng.normal(-1, 3, size=(20, dy))
        gram_x, gram_y = x @ x.T, y @ y.T
        expected = hsic(gram_x, gram_y) / np.sqrt(hsic(gram_x, gram_x) * hsic(gram_y, gram_y))
        assert CKA.reference(x, y) == pytest.approx(expected, abs=1e-13)
        assert float(CKA.score(CKA.prepare(x, y), np.arange(20))) == pytest.approx(expected, abs=1e-6)


def test_one_column_each_gives_the_squared_correlation() -> None:
    x, y = np.random.default_rng(1).normal(size=(2, 30, 1))
    assert CKA.reference(x, y) == pytest.approx(np.corrcoef(x.T, y.T)[0, 1] ** 2, abs=1e-14)


def test_a_scaled_and_rotated_copy_scores_one() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(20, 5))
    y = 3 * x @ scipy.stats.ortho_group.rvs(5, random_state=rng) + 1
    assert float(CKA.score(CKA.prepare(x, y), np.arange(20))) == pytest.approx(1, abs=1e-6)


def test_random_pairings_of_unrelated_matrices_score_high_where_columns_outnumber_rows() -> None:
    """The bias, exactly: trK trL / ((n - 1) ||K|| ||L||) on average over all pairings."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(6, 50)), rng.normal(size=(6, 80))
    perms = np.array(list(itertools.permutations(range(6))))
    scores = np.asarray(CKA.score_batch(CKA.prepare(x, y), perms), np.float64)
    gram_x, gram_y = (centred @ centred.T for centred in (x - x.mean(axis=0), y - y.mean(axis=0)))
    expected = np.trace(gram_x) * np.trace(gram_y) / (5 * np.linalg.norm(gram_x) * np.linalg.norm(gram_y))
    assert scores.mean() == pytest.approx(expected, abs=1e-6)
    assert expected > 0.9
