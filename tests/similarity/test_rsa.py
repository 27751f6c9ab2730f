from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats

from saejax.errors import InputError
from saejax.similarity.rsa import RSA, RSAState, prepare, reference, score, score_batch


def single(state: RSAState) -> RSAState:
    return RSAState(*(jnp.asarray(leaf, jnp.float32) for leaf in state))


def test_is_spearmans_correlation_of_correlation_distances() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(25, 8)), rng.normal(size=(25, 5))
    dx, dy = (scipy.spatial.distance.pdist(matrix, "correlation") for matrix in (x, y))
    spearman: Any = scipy.stats.spearmanr(dx, dy)
    assert reference(x, y) == pytest.approx(spearman.statistic, abs=1e-12)


def test_invariant_to_shift_and_scale_of_each_row_but_not_to_rotation() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(20, 6)), rng.normal(size=(20, 7))
    shifted = x * rng.uniform(0.1, 9, size=(20, 1)) + rng.normal(size=(20, 1))
    assert reference(shifted, y) == pytest.approx(reference(x, y), abs=1e-12)
    rotated = x @ scipy.stats.ortho_group.rvs(6, random_state=rng)
    assert abs(reference(rotated, y) - reference(x, y)) > 1e-3
    assert "rotation" not in RSA.invariances


def test_ties_take_their_middle_rank() -> None:
    """Equal rows are equally far from every other row."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(5, 4))[[0, 1, 2, 3, 3]]
    state = prepare(x, rng.normal(size=(5, 4)))
    distances = 1 - np.asarray(np.corrcoef(x))
    for other in range(3):
        assert state.a[other, 3] == state.a[other, 4]
    ranks = scipy.stats.rankdata(np.round(distances[np.triu_indices(5, 1)], 9))
    assert np.sum(ranks % 1 == 0.5) == 6
    expected = (ranks - ranks.mean()) / np.linalg.norm(ranks - ranks.mean())
    np.testing.assert_allclose(state.a[np.triu_indices(5, 1)], expected, atol=1e-12)
    np.testing.assert_array_equal(state.a, state.a.T)


@pytest.mark.parametrize("n", [3, 10, 77])
def test_scores_of_all_ways_agree_with_the_definition(n: int) -> None:
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, 9)), rng.normal(size=(n, 6))
    perms = np.stack([rng.permutation(n) for _ in range(7)]).astype(np.int32)
    expected = [reference(x, y[perm]) for perm in perms]
    state = single(prepare(x, y))
    looped = [score(state, perm) for perm in perms]
    mapped = jax.vmap(score, in_axes=(None, 0))(state, jnp.asarray(perms))
    np.testing.assert_allclose(mapped, looped, atol=2e-7)
    for scores in (looped, mapped, score_batch(state, perms)):
        np.testing.assert_allclose(scores, expected, atol=RSA.tolerance / 2, rtol=0)


def test_null_has_mantels_mean_and_variance() -> None:
    """Mean 0 and the exact variance over all n! pairings, for ranks with unequal row sums (Mantel 1967)."""
    rng = np.random.default_rng(4)
    n, count = 40, 20_000
    sizes = np.exp(rng.normal(size=(n, 1)))
    x, y = (rng.normal(size=(n, 5)) + sizes * rng.normal(size=5) for _ in range(2))
    state = prepare(x, y)
    perms = np.argsort(rng.random((count, n)), axis=1)
    draws = np.asarray(score_batch(single(state), perms))
    a, b = (np.sum(ranks.sum(axis=1) ** 2) / np.sum(ranks**2) for ranks in state)
    falling = [np.prod(np.arange(n, n - k, -1, dtype=float)) for k in (2, 3, 4)]
    variance = 2 / falling[0] + 4 * (a - 1) * (b - 1) / falling[1] + (4 * a - 2) * (4 * b - 2) / falling[2]
    assert variance > 3 * 2 / falling[0]  # the rows matter: not the variance of unrelated distances
    assert abs(draws.mean()) < 4 * np.sqrt(variance / count)
    kurtosis = np.mean((draws - draws.mean()) ** 4) / draws.var() ** 2
    assert draws.var(ddof=1) == pytest.approx(variance, rel=4 * np.sqrt((kurtosis - 1) / count))


def test_a_constant_row_is_refused_by_name() -> None:
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(6, 4)), rng.normal(size=(6, 4))
    y[[2, 4]] = 0.25
    with pytest.raises(InputError) as error:
        RSA.check(x, y)
    assert str(error.value) == (
        "rsa: row 2 of y is constant (0.25 in every column; 2 such row(s)), so it has no correlation with the "
        "others; leave that pair out"
    )


def test_distances_without_an_order_are_refused() -> None:
    rng = np.random.default_rng(6)
    with pytest.raises(InputError, match=r"all 6 correlation distances in x are equal \(.*\), so they have no order"):
        prepare(np.sort(rng.normal(size=(4, 2)), axis=1), rng.normal(size=(4, 3)))
