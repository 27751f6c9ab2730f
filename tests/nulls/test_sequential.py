"""Sequential tests: the h-th exceedance decides, however re-pairings are batched or split."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from saejax.errors import InputError
from saejax.nulls import NullResults, merge, permutation_test
from saejax.nulls.budget import Impl
from saejax.nulls.inference import clopper_pearson, negative_binomial, p_value

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(30, 4)), RNG.normal(size=(30, 3))
Y += 0.1 * X[:, :3]
M = 400


def run(**options: Any) -> NullResults:
    chosen: dict[str, Any] = {"measures": ["svcca", "rsa", "procrustes"], "permutations": M, "seed": 1, **options}
    return permutation_test(X, Y, scheme="uniform", **chosen)


WHOLE = {result.measure: result for result in run()}


@pytest.mark.parametrize("impl", ["host", "jax"])
@pytest.mark.parametrize(("stop_after", "batch"), [(2, 7), (8, 1), (8, 64), (8, None), (20, 50)])
def test_a_test_stops_at_the_exceedance_that_was_asked_for(stop_after: int, batch: int | None, impl: Impl) -> None:
    results = run(stop_after=stop_after, batch=batch, impl=impl)
    assert len({result.permutations for result in results}) > 1
    for result in results:
        whole = WHOLE[result.measure]
        more = whole.draws - whole.observed if whole.tail == "upper" else whole.observed - whole.draws
        last = int(np.flatnonzero(more >= 0)[stop_after - 1]) + 1
        assert (result.permutations, result.exceedances, result.method) == (last, stop_after, "sequential")
        assert result.p_value == stop_after / last
        assert (result.p_low, result.p_high) == negative_binomial(stop_after, last)
        assert (result.p_two_sided, result.stop_after) == (None, stop_after)
        np.testing.assert_allclose(result.draws, whole.draws[:last], atol=1e-6, rtol=0)


def test_where_draws_end_first_they_are_counted_as_ever() -> None:
    for result in run(stop_after=M, permutations=M):
        whole = WHOLE[result.measure]
        assert (result.permutations, result.exceedances, result.method) == (M, whole.exceedances, "sequential")
        assert result.p_value == p_value(whole.exceedances, M)
        assert (result.p_low, result.p_high) == clopper_pearson(whole.exceedances, M)


@pytest.mark.parametrize("p", [0.02, 0.2, 0.7])
@pytest.mark.parametrize("h", [2, 10])
def test_the_interval_covers_the_true_p_often_enough(p: float, h: int) -> None:
    trials = np.arange(h, 20_000)
    chances = scipy.stats.nbinom.pmf(trials - h, h, p)
    low, high = np.array([negative_binomial(h, trial) for trial in trials[:4000].tolist()]).T
    covered = chances[:4000][(low <= p) & (p <= high)].sum()
    assert chances[:4000].sum() > 1 - 1e-6
    assert 0.95 <= covered < 0.995


@pytest.mark.parametrize(("h", "m"), [(3, 50), (10, 99)])
def test_p_is_valid_under_the_null(h: int, m: int) -> None:
    """P(p <= a) <= a for every a, by summing over all ranks of the observed score and stopping places."""
    chances: dict[float, float] = {}
    grid = (np.arange(2000) + 0.5) / 2000  # the chance that a draw reaches the observed score is uniform
    for trial in range(h, m + 1):
        chances[h / trial] = chances.get(h / trial, 0) + scipy.stats.nbinom.pmf(trial - h, h, grid).mean()
    for b in range(h):
        chances[p_value(b, m)] = chances.get(p_value(b, m), 0) + scipy.stats.binom.pmf(b, m, grid).mean()
    assert sum(chances.values()) == pytest.approx(1, abs=1e-3)
    below = np.cumsum([chances[p] for p in sorted(chances)])
    assert np.all(below <= np.array(sorted(chances)) + 1e-3)


def test_parts_merge_while_none_of_them_has_stopped() -> None:
    parts = [run(stop_after=20, permutations=n, first=first) for first, n in ((0, 25), (25, 25), (50, 350))]
    whole = run(stop_after=20)
    for *three, expected in zip(*parts, whole, strict=True):
        assert [part.exceedances < 20 for part in three[:2]] == [True, True]
        merged = merge(three)
        assert (merged.permutations, merged.exceedances) == (expected.permutations, 20)
        assert (merged.p_value, merged.p_low, merged.p_high) == (expected.p_value, expected.p_low, expected.p_high)
    with pytest.raises(InputError, match=r"^results differ in method \(sequential and sampled\)"):
        merge([parts[0][0], run(first=25, permutations=25)[0]])
    stopped = run(stop_after=5)[0]
    later = run(stop_after=5, first=stopped.permutations, permutations=50)[0]
    with pytest.raises(InputError, match=f"^results after re-pairing {stopped.permutations - 1} are not part of the"):
        merge([stopped, later])


def test_an_interrupted_test_goes_on(tmp_path: Path) -> None:
    first = run(stop_after=3, batch=5, checkpoint=tmp_path)
    again = run(stop_after=20, batch=50, checkpoint=tmp_path)
    for short, result, expected in zip(first, again, run(stop_after=20), strict=True):
        assert short.permutations < result.permutations == expected.permutations


def test_a_list_of_all_re_pairings_does_not_stop() -> None:
    result = permutation_test(X[:5], Y[:5], measures=["cka"], scheme="uniform", permutations=120, seed=0, stop_after=2)[
        0
    ]
    assert (result.method, result.permutations, result.stop_after) == ("enumerated", 120, None)


@pytest.mark.parametrize("stop_after", [1, 0, M + 1])
def test_a_test_that_would_stop_at_once_or_never_is_refused(stop_after: int) -> None:
    with pytest.raises(InputError, match=f"^stop_after {stop_after} must be at least 2 and at most permutations, {M}$"):
        run(stop_after=stop_after)
