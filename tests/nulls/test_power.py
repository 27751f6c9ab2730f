"""Simulated power, where theory says what it is."""

from typing import Any

import numpy as np
import pytest
import scipy.stats

from saejax.errors import InputError
from saejax.nulls import permutation_test, simulate_power
from saejax.nulls.worlds import planted

ASKED: dict[str, Any] = {"measures": ["cka_debiased"], "n": 40, "dx": 12, "dy": 12, "fraction": 1.0, "seed": 0}


def test_without_a_match_power_is_the_level() -> None:
    found = simulate_power(**{**ASKED, "fraction": 0.0}, noise=1.0, level=0.1, pairings=300)[0]
    assert scipy.stats.binomtest(round(300 * found.power), 300, 0.1).pvalue > 0.01
    assert found.low <= found.power <= found.high


@pytest.mark.slow
@pytest.mark.parametrize(("z", "low", "high"), [(0.6, 0.08, 0.25), (1.645, 0.35, 0.6), (4.0, 0.9, 1.0)])
def test_power_of_debiased_cka_is_that_of_its_z(z: float, low: float, high: float) -> None:
    """Its expected score is 1 / (1 + noise^2) where all directions match, and its null SD sqrt(2 / (n (n - 3)))."""
    noise = np.sqrt(np.sqrt(40 * 37 / 2) / z - 1)
    assert low <= simulate_power(**ASKED, noise=noise)[0].power <= high


def test_power_rises_with_pairs_and_with_the_share_that_matches() -> None:
    asked = {**ASKED, "measures": ["rsa", "linear_regression"], "noise": 1.0, "pairings": 50, "dx": 8}
    by_n = [simulate_power(**{**asked, "n": n, "fraction": 0.5}) for n in (15, 30, 60)]
    by_share = [simulate_power(**{**asked, "n": 30, "fraction": share}) for share in (0.2, 0.5, 0.9)]
    for powers in (by_n, by_share):
        for measure in range(2):
            first, second, third = (each[measure].power for each in powers)
            assert first < second < third
    assert "rsa  15       0.5" in repr(by_n[0])


def test_what_is_detectable_is_detected_four_times_in_five() -> None:
    """By the null of one pairing, without simulating; expected calibrated score: 1 / (1 + noise^2)."""
    cell = planted(np.random.default_rng(0), 40, 12, 12, fraction=0.0)
    null = permutation_test(cell.x, cell.y, measures=["cka_debiased"], scheme="uniform", permutations=999, seed=0)[0]
    assert null.detectable is not None
    assert null.null_sd is not None
    assert null.detectable == pytest.approx(2.4865 * null.null_sd, rel=1e-3)
    noise = np.sqrt(1 / null.detectable - 1)
    assert simulate_power(**ASKED, noise=noise, permutations=199)[0].power == pytest.approx(0.8, abs=0.12)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"fraction": 1.2}, "fraction 1.2 must lie between 0 and 1"),
        ({"noise": -1.0}, "noise -1.0 must be at least 0"),
        ({"noise": float("inf")}, "noise inf must be"),
        ({"level": 0.001}, "level 0.001 must lie between 1 / (permutations + 1), 0.01"),
        ({"level": 1.0}, "level 1.0 must lie"),
        ({"pairings": 0}, "pairings 0 must be at least 1"),
        ({"dx": 0}, "dx 0 must be at least 1"),
        ({"n": 2}, "2"),
        ({"measures": ["cca"]}, "cca"),
    ],
)
def test_bad_numbers_are_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        simulate_power(**{**ASKED, "noise": 1.0, **asked})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
