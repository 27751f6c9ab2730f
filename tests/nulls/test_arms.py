"""Differences of two arms against simulated truth, and what makes arms comparable."""

from typing import Any

import numpy as np
import pytest

from saejax.errors import InputError
from saejax.nulls import Arm, compare_arms, permutation_test

D = 5
OPTIONS: dict[str, Any] = {"scheme": "uniform", "permutations": 20, "replicates": 20, "seed": 0}


def arm(rng: np.random.Generator, name: str, n: int, noise: float, d: int = D) -> Arm:
    """Pairs of which y is x, rotated, and noise."""
    x = rng.normal(size=(n, d))
    rotation = np.linalg.qr(rng.normal(size=(d, d)))[0]
    return Arm(name, x, x @ rotation + noise * rng.normal(size=(n, d)))


@pytest.mark.slow
def expected(n: int, noise: float, measures: list[str]) -> np.ndarray:
    """Return the mean calibrated score of such pairs, by measure."""
    rng, scores = np.random.default_rng(99), []
    for seed in range(50):
        made = arm(rng, "", n, noise)
        found = permutation_test(made.x, made.y, measures=measures, scheme="uniform", permutations=20, seed=seed)
        scores.append([result.calibrated for result in found])
    return np.mean(scores, axis=0)


def test_intervals_hold_the_true_difference() -> None:
    """Arms of 40 and 80 pairs, compared at 40, in 10 worlds: 95 % of intervals, or more."""
    measures = ["cka_debiased", "rsa"]
    truth = expected(40, 0.8, measures) - expected(40, 1.6, measures)
    rng, held, found, errors = np.random.default_rng(1), [], [], []
    for seed in range(10):
        arms = arm(rng, "a", 40, 0.8), arm(rng, "b", 80, 1.6)
        results = compare_arms(*arms, measures=measures, **{**OPTIONS, "replicates": 12, "seed": seed})
        held.append([each.low <= true <= each.high for each, true in zip(results, truth, strict=True)])
        found.append([each.difference for each in results])
        errors.append([each.se for each in results])
    assert np.all(truth > 0.1)
    assert np.all(np.mean(held, axis=0) >= 0.8)
    spread = np.std(found, axis=0, ddof=1)
    assert np.all(np.abs(np.mean(found, axis=0) - truth) < 4 * spread / np.sqrt(10))
    ratio = np.mean(errors, axis=0) / spread
    assert np.all((ratio > 0.6) & (ratio < 2))


def test_a_subspace_is_held_against_random_pairs_of_its_number() -> None:
    """The pairs that match are found to do so, others not; z of the whole would have said that it matches more."""
    rng = np.random.default_rng(2)
    whole = arm(rng, "all", 120, 3.0)
    y = np.array(whole.y)
    y[:30] = whole.x[:30] @ np.linalg.qr(rng.normal(size=(D, D)))[0]
    whole = Arm("all", whole.x, y)
    options = {**OPTIONS, "measures": ["cka_debiased", "svcca:components=3"]}
    matching = compare_arms(Arm("first", whole.x[:30], y[:30]), whole, **options)
    rest = compare_arms(Arm("last", whole.x[90:], y[90:]), whole, **options)
    assert {(each.n, each.first_pairs, each.second_pairs) for each in matching} == {(30, 30, 120)}
    assert [each.low > 0 for each in matching] == [True, True]
    assert [each.low <= 0 for each in rest] == [True, True]
    assert [(each.kx, each.ky) for each in matching] == [(None, None), (3, 3)]
    assert str(matching).splitlines()[0].split()[:4] == ["measure", "n", "calibrated", "first"]
    assert list(matching.records()[0])[:4] == ["measure", "first", "second", "n"]


def test_arms_change_places_and_scores_do_not_depend_on_the_other_arm() -> None:
    rng = np.random.default_rng(3)
    a, b, c = arm(rng, "a", 32, 1.0), arm(rng, "b", 40, 1.0), arm(rng, "c", 36, 2.0)
    options = {**OPTIONS, "measures": ["cka"], "replicates": 5}
    one, other = compare_arms(a, b, **options)[0], compare_arms(b, a, **options)[0]
    assert (one.difference, one.low) == (-other.difference, -other.high)
    assert compare_arms(a, c, **options)[0].first_score == one.first_score
    alone = permutation_test(a.x, a.y, measures=["cka"], scheme="uniform", permutations=20, seed=0)[0]
    assert one.first_score == pytest.approx(alone.calibrated)  # by its exact mean, so that no draw matters


def test_units_of_many_to_one_pairings_are_resampled() -> None:
    rng = np.random.default_rng(4)
    made = arm(rng, "hubs", 30, 0.5)
    hubs = Arm("hubs", np.repeat(made.x, 2, axis=0), np.repeat(made.y, 2, axis=0) + 0.01 * rng.normal(size=(60, D)))
    options = {**OPTIONS, "measures": ["cka_debiased"], "replicates": 4}
    result = compare_arms(hubs, arm(rng, "b", 40, 0.5), **{**options, "scheme": "collapse"})[0]
    assert (result.n, result.first_pairs, result.scheme) == (30, 30, "collapse")
    with pytest.raises(InputError, match="rows 0 and 1 of x are equal"):
        compare_arms(hubs, arm(rng, "b", 40, 0.5), **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"measures": ["pwcca"]}, "pwcca lays from 5 and 5 to 6 and 6 directions on each other, so that arms differ"),
        ({"measures": ["pwcca"]}, ".* compare them at one, by svcca:components=5"),
        ({"replicates": 1}, "replicates 1 must be at least 2"),
        ({"n": 31}, "n 31 must be from 16 to the 30 pairs of arm 'a'"),
        ({"n": 15}, "n 15 must be from 16 to the 30 pairs of arm 'a'"),
        ({"permutations": 0}, "permutations 0 must be at least 1"),
        (
            {"scheme": "blocks"},
            "scheme blocks has no units that arms could be resampled by; choose uniform or collapse",
        ),
        ({"measures": ["svcca:components=9"]}, "svcca: components 9 is above the 5 directions of x"),
    ],
)
def test_arms_that_cannot_be_compared_are_refused(changes: dict[str, Any], message: str) -> None:
    rng = np.random.default_rng(5)
    options = {**OPTIONS, "measures": ["cka"], "replicates": 2, **changes}
    with pytest.raises(InputError, match=f"^{message}"):
        compare_arms(arm(rng, "a", 30, 1.0), arm(rng, "b", 34, 1.0, 6), **options)


def test_arms_have_names_of_their_own() -> None:
    made = arm(np.random.default_rng(6), "a", 20, 1.0)
    with pytest.raises(InputError, match="^arms are both called 'a'; give each its own name"):
        compare_arms(made, made, **{**OPTIONS, "measures": ["cka"]})
