import itertools
from typing import Any

import numpy as np
import pytest
import scipy.linalg

from saejax.similarity.cca_mean_squared import CCA_MEAN_SQUARED


def test_is_the_mean_of_squared_canonical_correlations() -> None:
    """Against the generalised eigenvalue problem of canonical correlation."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 4)), rng.normal(size=(60, 6))
    y[:, :2] += x[:, :2]
    covariance = np.cov(np.hstack([x, y]).T)
    within: Any = scipy.linalg.block_diag(covariance[:4, :4], covariance[4:, 4:])
    correlations = scipy.linalg.eigh(covariance - within, within, eigvals_only=True)[-4:]
    assert CCA_MEAN_SQUARED.reference(x, y) == pytest.approx(np.mean(correlations**2), abs=1e-12)
    score = CCA_MEAN_SQUARED.score(CCA_MEAN_SQUARED.prepare(x, y), np.arange(60))
    assert float(score) == pytest.approx(np.mean(correlations**2), abs=1e-6)


def test_one_column_each_gives_the_squared_correlation() -> None:
    x, y = np.random.default_rng(1).normal(size=(2, 30, 1))
    assert CCA_MEAN_SQUARED.reference(x, y) == pytest.approx(np.corrcoef(x.T, y.T)[0, 1] ** 2, abs=1e-14)


def test_all_pairings_score_the_larger_rank_over_n_minus_one_on_average() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(6, 2)), rng.normal(size=(6, 3))
    perms = np.array(list(itertools.permutations(range(6))))
    scores = np.asarray(CCA_MEAN_SQUARED.score_batch(CCA_MEAN_SQUARED.prepare(x, y), perms), np.float64)
    assert scores.mean() == pytest.approx(3 / 5, abs=1e-6)
    assert scores.std() > 0.1


def test_overlap_that_no_pairing_avoids() -> None:
    """Subspaces of 7 and 5 directions among 9 share at least 3."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(10, 7)), rng.normal(size=(10, 5))
    perms = np.stack([rng.permutation(10) for _ in range(50)])
    scores = np.asarray(CCA_MEAN_SQUARED.score_batch(CCA_MEAN_SQUARED.prepare(x, y), perms))
    assert scores.min() > 3 / 5
