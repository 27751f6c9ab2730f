import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import scipy.stats

from saejax.errors import InputError
from saejax.nulls import permutation_test
from saejax.nulls.inference import Design, clopper_pearson, count_exceedances, judge, merge, p_value
from saejax.nulls.results import NullResult
from saejax.similarity import MEASURES, Measure
from saejax.similarity.moments import Moments

RSA = dataclasses.replace(MEASURES["rsa"], score_of=lambda own, core: core, score_error=lambda own: 0.25)
DISTANCE = dataclasses.replace(
    RSA, name="distance", larger_is_more_similar=False, score_of=lambda own, core: own - core
)


ROOT = dataclasses.replace(DISTANCE, name="root", score_of=lambda own, core: np.sqrt(np.clip(own - core, 0, None)))


def judged(measure: Measure, observed: float, cores: np.ndarray) -> NullResult:
    return judge(measure, 7.0, design(), observed, cores, np.zeros(len(cores), bool))


def design(**fields: Any) -> Design:
    plain = {"n": 10, "units": 10, "rows": 10, "scheme": "uniform", "method": "sampled", "seed": 0, "first": 0}
    return Design(**{**plain, "repeats": 0, "fixed": 0, "stop_after": None, **fields})


def test_p_counts_the_observed_pairing_among_the_draws() -> None:
    assert p_value(0, 9_999) == 1e-4
    assert p_value(9_999, 9_999) == 1
    assert p_value(1, 3) == 0.5


@pytest.mark.parametrize(("b", "m"), [(0, 50), (1, 50), (25, 50), (50, 50), (3, 10_000), (0, 1)])
def test_interval_is_clopper_and_pearsons(b: int, m: int) -> None:
    exact = scipy.stats.binomtest(b, m).proportion_ci(0.95, method="exact")
    assert clopper_pearson(b, m) == pytest.approx((exact.low, exact.high), abs=1e-12)


@pytest.mark.parametrize("p", [0.01, 0.2, 0.5])
def test_interval_covers_the_true_p_often_enough(p: float) -> None:
    m = 60
    chances = scipy.stats.binom.pmf(np.arange(m + 1), m, p)
    covers = [low <= p <= high for low, high in (clopper_pearson(b, m) for b in range(m + 1))]
    assert chances[covers].sum() >= 0.95


def test_ties_count_as_exceedances() -> None:
    cores = np.array([0.1, 0.3, 0.3 + 1e-15, 0.3 - 1e-15, 0.3 - 1e-6, 0.5])
    assert count_exceedances(cores, 0.3) == 4


def test_result_of_known_draws() -> None:
    cores = np.array([1.0, 2.0, 3.0, 6.0])
    result = judged(RSA, 5.0, cores)
    assert result.null_mean == 3
    assert result.null_sd == pytest.approx(np.sqrt(14 / 3))
    assert result.null_skewness == pytest.approx(4.5 / 3.5**1.5)
    assert result.z == pytest.approx(2 / np.sqrt(14 / 3))
    assert (result.exceedances, result.permutations, result.p_value) == (1, 4, 0.4)
    assert (result.tail, result.method, result.scheme) == ("upper", "sampled", "uniform")


def test_a_distance_is_counted_by_its_core_and_told_as_a_distance() -> None:
    result = judged(DISTANCE, 5.0, np.array([1.0, 2.0, 3.0, 6.0]))
    assert (result.observed, result.exceedances, result.tail) == (2, 1, "lower")
    np.testing.assert_array_equal(result.draws, [6, 5, 4, 1])
    assert result.z == pytest.approx(-2 / np.sqrt(14 / 3))
    assert result.null_skewness == pytest.approx(-4.5 / 3.5**1.5)


def test_record_holds_exactly_what_scripts_rely_on() -> None:
    record = judged(RSA, 5.0, np.arange(4.0)).record()
    assert list(record) == [
        "measure", "n", "units", "rows", "observed", "null_mean", "null_sd", "null_skewness", "z", "calibrated",
        "detectable", "p_value", "p_two_sided", "p_low", "p_high", "extrapolated_p", "extrapolated_high",
        "extrapolated_fit", "permutations", "exceedances", "shortfalls", "scheme", "tail", "method",
        "seed", "first", "repeats", "fixed", "stop_after", "resolution", "score_error", "rescored", "exact_mean",
        "exact_sd", "exact_z", "predicted_mean", "best", "kx", "ky", "picks", "pick_sd", "pick_low", "pick_high",
    ]  # fmt: skip
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_calibrated_scores_lie_between_the_null_and_a_perfect_match() -> None:
    """By the exact mean where it is known; for a distance, whose best score is the smallest, all the same."""
    cores, none = np.array([1.0, 2.0, 3.0, 2.0]), np.zeros(4, bool)
    by_draws = judge(RSA, 7.0, design(), 4.0, cores, none, best=10.0)
    assert by_draws.calibrated == pytest.approx((4 - 2) / (10 - 2))
    by_moments = judge(RSA, 7.0, design(), 4.0, cores, none, Moments(1.0, 0.5), best=10.0)
    assert by_moments.calibrated == pytest.approx((4 - 1) / (10 - 1))
    assert judge(RSA, 7.0, design(), 4.0, cores, none).calibrated is None
    assert judge(RSA, 7.0, design(), 2.0, np.full(4, 2.0), none, best=10.0).calibrated is None
    distance = judge(DISTANCE, 7.0, design(), 5.0, cores, none, best=-9.0)
    assert distance.calibrated == pytest.approx((distance.observed - distance.null_mean) / (-9 - distance.null_mean))


def test_too_few_pairs_for_the_directions_are_told() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 5)), rng.normal(size=(30, 6))
    options = {"scheme": "uniform", "permutations": 20, "seed": 0}
    results = permutation_test(x, y, measures=["svcca", "cka", "pwcca"], **options)
    assert [(each.kx, each.ky) for each in results] == [(5, 6), (None, None), (5, 6)]
    for name in ("svcca", "pwcca"):
        assert f"{name} lays 5 and 6 directions on each other: 30 pairs are fewer than 3 for each" in str(results)
    assert "cka lays" not in str(results)
    fewer = permutation_test(x, y, measures=["svcca:components=5"], **options)
    assert "directions on each other" not in str(fewer)


def test_two_sided_p_doubles_the_smaller_side() -> None:
    cores = np.array([1.0, 2.0, 3.0, 6.0, 5.0])
    above = judged(RSA, 5.0, cores)
    assert (above.exceedances, above.shortfalls) == (2, 4)
    assert (above.p_value, above.p_two_sided) == (3 / 6, 1.0)
    below = judged(RSA, 0.5, cores)
    assert (below.exceedances, below.shortfalls) == (5, 0)
    assert (below.p_value, below.p_two_sided) == (1.0, 2 / 6)
    distance = judged(DISTANCE, 0.5, cores)
    assert (distance.p_value, distance.p_two_sided) == (1.0, 2 / 6)


def test_a_list_of_all_re_pairings_leaves_no_uncertainty() -> None:
    cores = np.array([5.0, 1.0, 2.0, 3.0, 6.0, 4.0])
    result = judge(RSA, 7.0, design(method="enumerated"), 5.0, cores, np.zeros(6, bool))
    assert (result.p_value, result.p_low, result.p_high) == (2 / 6, 2 / 6, 2 / 6)
    assert result.p_two_sided == 4 / 6
    assert result.null_sd == pytest.approx(np.std(cores))


def test_a_null_without_spread_has_no_z() -> None:
    flat = judged(RSA, 1.0, np.array([1.0, 1.0 - 1e-9, 1.0]))
    assert flat.z is None
    single = judged(RSA, 1.0, np.array([0.5]))
    assert (flat.null_skewness, single.null_skewness) == (None, None)
    assert (single.null_sd, single.z, single.p_value) == (None, None, 0.5)


def test_resolution_is_that_of_the_draws_and_not_of_their_mean() -> None:
    """Distances are roots: beside 0 they tell cores apart far less well than elsewhere."""
    near, far = judged(ROOT, 5.0, np.full(4, 7.0)), judged(ROOT, 5.0, np.array([3.0, 3.0, 7.0, 7.0]))
    tolerance = ROOT.tolerance
    assert near.resolution == pytest.approx(np.sqrt(tolerance) / 2)
    assert far.resolution == pytest.approx(np.sqrt((tolerance / 4 + (tolerance / 4) ** 2) / 2))
    assert judged(ROOT, 5.0, 7 - np.array([1e-8, 3e-8])).z is None


def part(first: int, cores: list[float], **changes: object) -> NullResult:
    rescored = np.arange(len(cores)) == 0
    result = judge(ROOT, 7.0, design(seed=4, first=first), 5.0, np.array(cores), rescored)
    return dataclasses.replace(result, **changes)


def test_parts_merge_into_the_whole_in_any_order() -> None:
    cores = [1.0, 5.0, 2.0, 6.0, 3.0, 4.0]
    whole = part(10, cores)
    merged = merge([part(13, cores[3:5]), part(15, cores[5:]), part(10, cores[:3])])
    assert merged.resolution == pytest.approx(whole.resolution)
    assert dataclasses.replace(merged, rescored=1, resolution=whole.resolution) == whole
    assert merged.rescored == 3
    np.testing.assert_array_equal(merged.draws, whole.draws)
    assert merge([whole]) == whole


def test_parts_of_unlike_machines_merge() -> None:
    """Another BLAS rounds an observed score and moments otherwise."""
    left, right = part(0, [1.0, 2.0], exact_mean=0.25), part(2, [3.0], exact_mean=np.nextafter(0.25, 1))
    assert merge([left, right]).permutations == 3
    with pytest.raises(InputError, match="results differ in exact_mean"):
        merge([left, dataclasses.replace(right, exact_mean=0.2501)])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "results [] are none; give at least one"),
        (
            [part(0, [1.0, 2.0]), part(2, [1.0], seed=5)],
            "results differ in seed (4 and 5); only parts of one null can be merged",
        ),
        (
            [part(0, [1.0, 2.0]), part(3, [1.0])],
            "results hold re-pairings 0 to 1 and 3 to 3; give adjacent ranges",
        ),
        (
            [part(0, [1.0, 2.0]), part(1, [1.0])],
            "results hold re-pairings 0 to 1 and 1 to 1; give adjacent ranges",
        ),
    ],
)
def test_parts_that_are_not_of_one_null_are_refused(parts: list[NullResult], message: str) -> None:
    with pytest.raises(InputError) as error:
        merge(parts)
    assert str(error.value) == message
