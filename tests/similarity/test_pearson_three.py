"""Pearson III tails against scipy, against their limits and against all pairings of seven rows."""

import itertools

import numpy as np
import pytest
import scipy.stats

from saejax.errors import InputError
from saejax.similarity.moments import Moments, centred_moments, factor_sums
from saejax.similarity.pearson_three import pearson_three_p
from saejax.similarity.third_moment import factor_third


@pytest.mark.parametrize("skewness", [2.5, 1.0, 0.3, 0.02, -0.02, -0.3, -1.0, -2.5])
def test_is_the_tail_of_scipys_pearson3(skewness: float) -> None:
    for z in (-4.0, -1.0, 0.0, 0.5, 2.0, 5.0, 9.0):
        expected = scipy.stats.pearson3.sf(z, skewness)
        p = pearson_three_p(7 + 3 * z, Moments(7.0, 3.0, skewness))
        assert p == pytest.approx(expected, rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("sign", [1, -1])
def test_meets_the_normal_as_skewness_goes_to_0(sign: int) -> None:
    """No step where the approximation takes over, at z up to 10; the normal itself at 0."""
    for z in (-3.0, 1.0, 5.0, 10.0):
        below, above = (pearson_three_p(z, Moments(0.0, 1.0, sign * g)) for g in (0.0099999, 0.01))
        assert below == pytest.approx(above, rel=z**4 * 1e-4 / 400 + 1e-4)
        assert pearson_three_p(z, Moments(0.0, 1.0, sign * 1e-9)) == pytest.approx(scipy.stats.norm.sf(z), rel=1e-6)
        assert pearson_three_p(z, Moments(0.0, 1.0, 0.0)) == scipy.stats.norm.sf(z)


def test_ends_of_the_support() -> None:
    """With skewness 1 the law begins at z = -2; its mirror image ends at z = 2."""
    assert pearson_three_p(-2.01, Moments(0.0, 1.0, 1.0)) == 1
    assert pearson_three_p(-1.99, Moments(0.0, 1.0, 1.0)) < 1
    assert pearson_three_p(2.01, Moments(0.0, 1.0, -1.0)) == 0
    assert pearson_three_p(1.99, Moments(0.0, 1.0, -1.0)) > 0


def centred(matrix: np.ndarray) -> np.ndarray:
    return matrix - matrix.mean(axis=0)


def null_of(x: np.ndarray, y: np.ndarray, perms: np.ndarray) -> tuple[np.ndarray, Moments]:
    """Return the sorted scores ||x' y[p]||_F^2 of centred matrices, and their exact moments."""
    blocks = np.array_split(perms, max(1, len(perms) // 5000))
    scores = [np.sum((np.swapaxes(y[block], 1, 2) @ x) ** 2, axis=(1, 2)) for block in blocks]
    moments = centred_moments(factor_sums(x), factor_sums(y), thirds=(factor_third(x), factor_third(y)))
    return np.sort(np.concatenate(scores)), moments


def test_is_near_the_p_of_all_pairings_and_nearer_than_the_normal() -> None:
    """5,040 pairings of seven rows, forty times over, at every tenth score."""
    perms = np.array(list(itertools.permutations(range(7))))
    exact = 1 - np.arange(0, len(perms), 10) / len(perms)
    errors = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x, y = centred(rng.normal(size=(7, 5))), centred(rng.normal(size=(7, 4)))
        scores, moments = null_of(x, y, perms)
        laws = (moments, moments._replace(skewness=0.0))
        tails = np.array([[pearson_three_p(float(score), law) for score in scores[::10]] for law in laws])
        errors.append(np.max(np.abs(tails - exact), axis=1))
    pearson, normal = np.median(errors, axis=0)
    assert pearson < 0.025
    assert pearson < 0.65 * normal


@pytest.mark.parametrize("hubs", [0, 12])
def test_is_near_the_p_of_sampled_pairings(hubs: int) -> None:
    """10^5 pairings of 40 rows, with a skewness of about 1: p = 0.1, 0.05 and 0.01."""
    rng = np.random.default_rng(40 + hubs)
    x, y = rng.normal(size=(40, 3)), rng.exponential(size=(40, 3))
    x[:hubs], y[:hubs] = x[0], y[0] + 2
    scores, moments = null_of(centred(x), centred(y), np.argsort(rng.random((100_000, 40)), axis=1))
    for p in (0.1, 0.05, 0.01):
        modelled = pearson_three_p(float(np.quantile(scores, 1 - p)), moments)
        assert modelled == pytest.approx(p, rel=0.06 + 3 / np.sqrt(p * len(scores)))
    assert scipy.stats.norm.sf((np.quantile(scores, 0.99) - moments.mean) / moments.sd) < 0.005


def test_what_has_no_tail_is_refused() -> None:
    with pytest.raises(InputError, match="sd 0.0 of the null leaves no tail"):
        pearson_three_p(1.0, Moments(0.0, 0.0, 0.0))
    with pytest.raises(InputError, match="a Pearson III p needs the third moment"):
        pearson_three_p(1.0, Moments(0.0, 1.0))
