import itertools

import jax
import numpy as np
import pytest

from saejax.errors import InputError
from saejax.similarity.bases import BASES
from saejax.similarity.cka import CKA
from saejax.similarity.cka_debiased import CKA_DEBIASED
from saejax.similarity.measure import exact_core, exact_statistic
from saejax.similarity.pair import Pair


def unbiased_hsic(gram_x: np.ndarray, gram_y: np.ndarray) -> float:
    """Return the estimator of Song et al. (2012), equation 5, from kernels without their diagonals."""
    n = len(gram_x)
    k, m = gram_x - np.diag(np.diag(gram_x)), gram_y - np.diag(np.diag(gram_y))
    whole = np.trace(k @ m) + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * (k @ m).sum() / (n - 2)
    return whole / (n * (n - 3))


def exact_scores(x: np.ndarray, y: np.ndarray, perms: np.ndarray) -> np.ndarray:
    with jax.enable_x64(True):
        return np.asarray(CKA_DEBIASED.score_batch(CKA_DEBIASED.prepare(x, y), perms))


@pytest.mark.parametrize(("n", "dx", "dy"), [(30, 4, 6), (12, 20, 3), (12, 20, 30), (4, 2, 3)])
def test_is_normalised_unbiased_hsic(n: int, dx: int, dy: int) -> None:
    rng = np.random.default_rng(n)
    x, y = rng.normal(2, 1, size=(n, dx)), rng.normal(-1, 3, size=(n, dy))
    y[:, : min(dx, dy)] += 3 * x[:, : min(dx, dy)]
    perms = np.stack([rng.permutation(n) for _ in range(5)])
    for perm, score in zip(perms, exact_scores(x, y, perms), strict=True):
        gram_x, gram_y = x @ x.T, y[perm] @ y[perm].T
        norms = unbiased_hsic(gram_x, gram_x) * unbiased_hsic(gram_y, gram_y)
        expected = unbiased_hsic(gram_x, gram_y) / np.sqrt(norms)
        assert CKA_DEBIASED.reference(x, y[perm]) == pytest.approx(expected, abs=1e-12)
        assert score == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("n", [4, 5, 6])
def test_all_pairings_have_mean_zero_and_a_variance_that_no_data_change(n: int) -> None:
    rng = np.random.default_rng(n)
    perms = np.array(list(itertools.permutations(range(n))))
    for columns in (1, 3, 50):
        x, y = rng.normal(size=(n, columns)) ** 3, rng.normal(size=(n, 2))
        x[0] *= 20
        scores = exact_scores(x, y, perms)
        assert scores.mean() == pytest.approx(0, abs=1e-12)
        assert scores.var() == pytest.approx(2 / (n * (n - 3)), rel=1e-10)


def test_unrelated_matrices_score_near_zero_where_biased_cka_is_near_one() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 40, 2000))
    assert CKA.reference(x, y) > 0.9
    assert abs(CKA_DEBIASED.reference(x, y)) < 4 * np.sqrt(2 / (40 * 37))


def test_rows_orthogonal_to_each_other_are_refused() -> None:
    x, y = np.diag([1.0, 2.0, 3.0, 4.0, 5.0]) + 7, np.random.default_rng(2).normal(size=(5, 3))
    with pytest.raises(InputError) as error:
        CKA_DEBIASED.prepare(y, x)
    assert str(error.value) == (
        "cka_debiased: no similarity of different rows of y is left after centring: they are orthogonal about some "
        "point, or row 4, at 4.15 from the mean (median 2.76), outweighs the others; scale that row or leave it out "
        "of x and y"
    )


def test_a_row_that_outweighs_all_others_is_refused_by_number() -> None:
    x, y = np.random.default_rng(3).normal(size=(2, 60, 8))
    x[17] *= 1e5
    with pytest.raises(InputError, match=r"row 17, at \d\.\d+e\+05 from the mean \(median 4\.\d+e\+03\), outweighs"):
        CKA_DEBIASED.check(Pair.of(x, y))


def bounds(x: np.ndarray, y: np.ndarray, perm: np.ndarray) -> tuple[float, float, float]:
    """Return the ends of the float32 interval, and the float64 core."""
    state = CKA_DEBIASED.prepare(x, y)
    single = jax.tree.map(lambda leaf: leaf.astype(np.float32), state)
    low, high = CKA_DEBIASED.core(single.own, (BASES.compute(single.crossed[0], perm),), perm)
    exact = exact_core(CKA_DEBIASED, state.own, (exact_statistic(BASES, state.crossed[0], perm),), perm)
    return float(low), float(high), exact


def test_the_core_is_an_interval_only_where_summands_far_exceed_it() -> None:
    """A row 300 times the others, paired with its like: of 10^10 beside 10^5 float32 keeps little."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(60, 8))
    y = x + 0.1 * rng.normal(size=(60, 8))
    low, high, exact = bounds(x, y, np.arange(60))
    assert low == high == pytest.approx(exact, abs=CKA_DEBIASED.tolerance / 2)
    x[17] *= 300
    y[17] *= 300
    low, high, exact = bounds(x, y, np.arange(60))
    assert 1e-4 < high - low < 0.1
    assert low < exact < high
    assert exact == pytest.approx(CKA_DEBIASED.reference(x, y), abs=1e-9)
