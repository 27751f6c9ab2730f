"""Sets of paired features against random sets of both pools."""

import itertools
import re
from typing import Any

import numpy as np
import pytest
import scipy.stats

from saejax.errors import InputError
from saejax.nulls import RandomSetResults, random_set_test
from saejax.similarity import MEASURES

RNG = np.random.default_rng(0)
POOL_X, POOL_Y = RNG.normal(size=(30, 4)), RNG.normal(size=(25, 3))
PAIRS = np.stack([RNG.permutation(30)[:8], RNG.permutation(25)[:8]], axis=1)


def run(pairs: Any = PAIRS, draws: Any = 20, **options: Any) -> RandomSetResults:
    chosen: dict[str, Any] = {"measures": ["cka", "procrustes"], "seed": 3, **options}
    return random_set_test(POOL_X, POOL_Y, pairs, draws=draws, **chosen)


def test_the_set_is_scored_by_the_definition_and_counted_among_none() -> None:
    for result in run():
        measure = MEASURES[result.measure]
        assert result.observed == pytest.approx(measure.reference(POOL_X[PAIRS[:, 0]], POOL_Y[PAIRS[:, 1]]), abs=1e-12)
        sign = 1 if measure.larger_is_more_similar else -1
        assert result.at_least == np.sum(sign * (result.scores - result.observed) >= 0)
        assert result.share == result.at_least / 20
        exact = scipy.stats.binomtest(result.at_least, 20).proportion_ci(0.95, method="exact")
        assert (result.share_low, result.share_high) == pytest.approx((exact.low, exact.high))
        assert (result.mean, result.sd) == pytest.approx((result.scores.mean(), result.scores.std(ddof=1)))
        assert (result.n, result.x_pool, result.y_pool, result.draws) == (8, 30, 25, 20)


def test_random_sets_are_all_sets_in_all_orders_equally_often() -> None:
    """Of pools of five, four pairs: each as likely."""
    x, y = POOL_X[:5], POOL_Y[:5]
    every = [
        MEASURES["cka"].reference(x[list(a)], y[list(b)])
        for a, b in itertools.product(itertools.combinations(range(5), 4), itertools.permutations(range(5), 4))
    ]  # an order of both that is the same changes no score
    result = random_set_test(x, y, np.stack([np.arange(4)] * 2, axis=1), measures=["cka"], draws=800, seed=0)[0]
    assert scipy.stats.kstest(result.scores, np.array(every)).pvalue > 1e-3
    assert np.abs(result.scores[:, None] - np.array(every)).min(axis=1).max() < 1e-9


def test_seeds_decide_and_sets_do_not_depend_on_their_number() -> None:
    few, many, other = run(draws=5), run(draws=20), run(draws=5, seed=4)
    np.testing.assert_array_equal(few[0].scores, many[0].scores[:5])
    assert not np.any(few[0].scores == other[0].scores)


def test_a_share_is_not_called_p() -> None:
    text = str(run())
    assert "share at least" in text.splitlines()[0]
    assert not re.search(r"\bp\b", text)
    assert not any(key.startswith("p_") for key in run()[0].record())
    assert run().to_pandas()["share"].tolist() == [result.share for result in run()]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (PAIRS[:, :1], r"pairs has shape \(8, 1\) and dtype int64; give two row numbers for each pair"),
        (PAIRS / 2, r"pairs has shape \(8, 2\) and dtype float64; give two row numbers"),
        ([[0, 0], [1, 25], [2, 2], [3, 3]], "pairs names row 25 of pool_y, which has rows 0 to 24"),
        ([[-1, 0], [1, 2], [2, 3], [3, 4]], "pairs names row -1 of pool_x, which has rows 0 to 29"),
        ([[0, 0], [0, 1], [2, 2], [3, 3]], "pairs names row 0 of pool_x twice, and random sets take no feature twice"),
        ([[0, 0], [1, 1], [2, 2]], "x and y have 3 rows; give at least 4 pairs"),
    ],
)
def test_bad_pairs_are_named(pairs: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        run(pairs)


def test_bad_pools_and_numbers_are_named() -> None:
    with pytest.raises(InputError, match="^draws 0 must be at least 1$"):
        run(draws=0)
    with pytest.raises(InputError, match=r"^pool_x has shape \(30,\); give a matrix, one row per feature$"):
        random_set_test(POOL_X[:, 0], POOL_Y, PAIRS, measures=["cka"], draws=3, seed=0)
