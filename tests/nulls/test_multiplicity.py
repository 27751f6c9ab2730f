"""Corrections for many tests, against their definitions, another library and the level that they promise."""

from typing import Any

import numpy as np
import pytest
import scipy.stats

from saejax.errors import InputError
from saejax.nulls.multiplicity import benjamini_hochberg, corrected, holm


def records(p_values: list[float], permutations: int = 999, method: str = "sampled") -> list[dict[str, Any]]:
    return [{"p_value": p, "permutations": permutations, "method": method} for p in p_values]


def test_holm_rejects_while_the_smallest_p_passes_bonferroni_of_the_rest() -> None:
    """The procedure as Holm states it, at many levels."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        p = np.round(rng.uniform(size=9) ** 3, 2)
        adjusted = holm(p)
        for level in np.linspace(0.003, 0.997, 60):
            rejected: set[int] = set()
            for step, test in enumerate(np.argsort(p, kind="stable")):
                if p[test] * (9 - step) > level:
                    break
                rejected.add(int(test))
            assert set(np.flatnonzero(adjusted <= level).tolist()) == rejected
    assert holm(np.array([0.01, 0.04, 0.03])).tolist() == pytest.approx([0.03, 0.06, 0.06])


def test_benjamini_hochberg_rejects_up_to_the_last_p_below_its_line() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        p = rng.uniform(size=12) ** 2
        adjusted, ordered = benjamini_hochberg(p), np.sort(p)
        for level in (0.01, 0.05, 0.2, 0.5):
            below = np.flatnonzero(ordered <= level * np.arange(1, 13) / 12)
            assert np.sum(adjusted <= level) == (below[-1] + 1 if len(below) else 0)


@pytest.mark.parametrize("correlation", [0.0, 0.7])
def test_family_wise_error_and_false_discoveries_stay_below_the_level(correlation: float) -> None:
    """Twenty tests, five of which have something to find, in 2,000 families."""
    rng = np.random.default_rng(2)
    common, own = rng.normal(size=(2000, 1)), rng.normal(size=(2000, 20))
    scores = np.sqrt(correlation) * common + np.sqrt(1 - correlation) * own
    scores[:, :5] += 3
    p = scipy.stats.norm.sf(scores)
    false = [np.any(holm(each)[5:] <= 0.05) for each in p]
    assert scipy.stats.binomtest(int(np.sum(false)), 2000, 0.05, alternative="greater").pvalue > 1e-3
    shares = []
    for each in p:
        rejected = benjamini_hochberg(each) <= 0.1
        shares.append(rejected[5:].sum() / max(rejected.sum(), 1))
    assert np.mean(shares) < 0.1 + 3 * np.std(shares) / np.sqrt(2000)
    assert np.mean([np.any(each[5:] <= 0.05) for each in p]) > 0.15  # without a correction


def test_records_tell_what_was_corrected() -> None:
    found = corrected(records([0.001, 0.5, 0.02]), "holm")
    assert [each["p_corrected"] for each in found] == pytest.approx([0.003, 0.5, 0.04])
    assert {(each["p_floor"], each["correction"]) for each in found} == {(0.003, "holm")}
    assert corrected(records([0.5, 0.25], 4, "enumerated"), "benjamini_hochberg", 0.6)[0]["p_floor"] == 0.5


@pytest.mark.parametrize(
    ("given", "correction", "level", "message"),
    [
        (records([0.1, 0.2]), "bonferroni", 0.05, "correction 'bonferroni' is unknown; choose one of holm, benjamini"),
        (records([0.1]), "holm", 0.05, r"correction holm over 1 result\(s\) corrects nothing; read p_value as it is"),
        (records([0.1, 0.2]), "holm", 1.0, "level 1.0 must lie between 0 and 1"),
        (
            records([0.01] * 60, 99), "holm", 0.05,
            "permutations 99 cannot reach level 0.05 over 60 results: the smallest p after holm is 0.6; draw at least "
            "1199",
        ),
    ],
)  # fmt: skip
def test_what_could_not_be_corrected_is_refused(
    given: list[dict[str, Any]], correction: str, level: float, message: str
) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        corrected(given, correction, level)


def test_the_number_of_draws_asked_for_is_enough_and_no_more() -> None:
    assert corrected(records([1 / 1200] * 60, 1199), "holm")[0]["p_corrected"] == pytest.approx(0.05)
    with pytest.raises(InputError, match="draw at least 1199"):
        corrected(records([0.5] * 60, 1198), "holm")
