"""Extrapolated p, against laws whose tail is known and scipy's fit."""

import numpy as np
import pytest
import scipy.stats

from saejax.nulls import permutation_test, tails
from saejax.nulls.inference import clopper_pearson
from saejax.nulls.tails import Tail, extrapolate
from saejax.rng import named_seed

LAWS = {
    "normal": scipy.stats.norm(), "exponential": scipy.stats.expon(), "beta": scipy.stats.beta(20, 30),
    "logistic": scipy.stats.logistic(), "gamma": scipy.stats.gamma(5), "t": scipy.stats.t(10),
}  # fmt: skip
M, P = 10_000, 1e-5  # a tenth of the smallest p that so many draws count


def found(law: str, seed: int) -> Tail:
    draws = LAWS[law].rvs(M, random_state=np.random.default_rng(seed))
    tail = extrapolate(draws, float(LAWS[law].isf(P)), seed)
    assert tail is not None
    return tail


@pytest.mark.parametrize("law", LAWS)
def test_a_known_tail_is_not_made_smaller(law: str) -> None:
    made = [found(law, seed) for seed in range(40)]
    held = sum(P <= tail.high for tail in made)
    assert scipy.stats.binomtest(held, 40, 0.95, alternative="less").pvalue > 0.01
    assert -5.3 < np.median([np.log10(tail.p_value) for tail in made]) < -4.1
    assert np.median([tail.high for tail in made]) < clopper_pearson(0, M)[1]
    assert all(tail.p_value <= tail.high and tail.shape >= 0 and tail.fit >= 0.05 for tail in made)


@pytest.mark.parametrize("shape", [0.0, 0.15, 0.4])
def test_the_fit_is_that_of_scipy(shape: float) -> None:
    excesses = np.asarray(scipy.stats.genpareto.rvs(shape, scale=3.0, size=250, random_state=2))
    law = tails._fitted(excesses)
    theirs = scipy.stats.genpareto.fit(excesses, floc=0)
    if theirs[0] > 0:
        assert tuple(law) == pytest.approx(theirs[::2], rel=1e-3)
    else:
        assert tuple(law) == pytest.approx((0, excesses.mean()), abs=1e-6)


def test_no_law_ends_before_the_observed_score() -> None:
    """The likeliest law of uniform draws ends with them, which would make p 0."""
    draws = np.random.default_rng(0).uniform(size=5000)
    assert scipy.stats.genpareto.fit(np.sort(draws)[-250:] - np.sort(draws)[-251], floc=0)[0] < -0.5
    tail = extrapolate(draws, 1.2, 0)
    assert tail is None or tail.p_value >= 1 / (1000 * 5000)


def test_it_is_not_followed_farther_than_a_thousandth_of_a_draw() -> None:
    tail = extrapolate(np.random.default_rng(1).exponential(size=2000), 100.0, 0)
    assert tail is not None
    assert tail.p_value == tail.high == 1 / 2_000_000


@pytest.mark.parametrize("shape", [0.0, 0.2])
def test_goodness_of_fit_is_uniform_under_the_law(shape: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tails, "LEVEL", 0.0)
    samples = np.asarray(scipy.stats.genpareto.rvs(shape, size=(100, 100), random_state=np.random.default_rng(1)))
    fits = []
    for seed, excesses in enumerate(samples):
        below = np.linspace(-1, -excesses.min(), 300)  # so that the threshold is 0
        tail = extrapolate(np.concatenate([excesses, below]), 99.0, seed)
        assert tail is not None
        assert tail.excesses == 100
        fits.append(tail.fit)
    assert scipy.stats.kstest(fits, "uniform").pvalue > 1e-3


def test_a_tail_of_another_shape_is_not_extrapolated() -> None:
    """Nor one of whole numbers, of too few draws, or of which the observed score is part."""
    rng = np.random.default_rng(3)
    two = np.concatenate([rng.normal(size=9700), np.repeat([9.0, 10.0], [275, 25])]) + 1e-9 * rng.random(10_000)
    assert extrapolate(two, 12.0, 0) is None
    assert extrapolate(rng.poisson(5, size=10_000).astype(float), 30.0, 0) is None
    assert extrapolate(rng.normal(size=150), 9.0, 0) is None
    assert extrapolate(rng.normal(size=10_000), 0.0, 0) is None


@pytest.mark.parametrize("measure", ["cka", "procrustes"])  # larger, and smaller, is more similar
def test_results_say_it_beside_the_counted_p(measure: str) -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(60, 8))
    asked = {"measures": [measure], "scheme": "uniform", "permutations": 4000, "seed": 3}
    y = x + 2.6 * rng.normal(size=x.shape)
    alike, other = (permutation_test(x, each, **asked) for each in (y, rng.normal(size=x.shape)))
    result = alike[0]
    counted = permutation_test(x, y, **{**asked, "permutations": 100_000, "seed": 9})[0].p_value
    assert result.exceedances < 10
    assert result.p_value == (result.exceedances + 1) / 4001
    side = 1 if result.tail == "upper" else -1
    tail = extrapolate(side * result.draws, side * result.observed, named_seed(3, f"tail of {measure}"))
    assert tail is not None
    assert (result.extrapolated_p, result.extrapolated_high) == (tail.p_value, tail.high)
    assert result.extrapolated_fit == tail.fit
    assert counted < tail.p_value < 10 * counted
    assert repr(alike).splitlines()[0].endswith("extrapolated p")
    assert repr(alike).splitlines()[1].endswith(f" {tail.p_value:.1g}")
    assert repr(permutation_test(x, x, **asked)).splitlines()[1].endswith(f"< {1 / 4_000_000:.1g}")
    assert other[0].exceedances >= 10
    assert other[0].extrapolated_p is None
    assert "extrapolated" not in repr(other)
