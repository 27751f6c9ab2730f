"""Valid schemes keep their level in every world, in 500 pairings each; the naive shuffle does not, in 200.

The seeds are 0 to 499 and are not to be changed: all statements below are tests at level .01 over their number, so
that a right engine fails once in a hundred choices of seeds, and these were not chosen.
"""

import functools

import pytest

from saejax.nulls.calibration import LEVELS, Calibration, calibrate
from saejax.nulls.worlds import WORLDS

pytestmark = pytest.mark.slow

SEEDS = range(500)
LEVEL = 0.01
PLAIN = ("cka_debiased", "rsa", "linear_regression")
LOCAL = ("knn_jaccard:k=3", "rank_similarity:k=3")  # few different scores, so ties
SOME = (*PLAIN, *LOCAL)
MANY = ("svcca:components=4", "cka", "distance_correlation", "soft_correlation_match", *SOME)
# By scheme and world, what is asked there. `scripts/calibration.py` asks everything everywhere.
VALID = {
    ("uniform", "independent"): MANY,
    ("uniform", "clustered"): SOME,
    ("strata", "frequency"): SOME,
    ("collapse", "hubs"): (*SOME, "svcca:components=4"),
    ("stimulus", "texts"): PLAIN[:2],
    ("stimulus_blocks", "texts"): (PLAIN[0], LOCAL[0]),
    ("representative:picks=2", "hubs"): PLAIN[:1],
    ("blocks", "hubs"): ("procrustes",),
}
CASES = [(*case, measure) for case, measures in VALID.items() for measure in measures]
STATEMENTS = len(CASES) * (len(LEVELS) + 1)
NAIVE = PLAIN[:2]


@functools.cache
def calibrated(scheme: str, world: str, measures: tuple[str, ...], seeds: range = SEEDS) -> dict[str, Calibration]:
    duplicates = "accept" if (scheme, world) == ("uniform", "hubs") else "refuse"
    found = calibrate(WORLDS[world], measures=measures, scheme=scheme, seeds=seeds, duplicates=duplicates)
    return dict(zip(measures, found, strict=True))


@pytest.mark.parametrize(("scheme", "world", "measure"), CASES)
def test_a_valid_scheme_keeps_its_level(scheme: str, world: str, measure: str) -> None:
    found = calibrated(scheme, world, VALID[scheme, world])[measure]
    for level in LEVELS:
        assert found.excess_p(level) >= LEVEL / STATEMENTS, f"{found.rejected(level)} of 500 at {level}"
    assert found.uniform_p() >= LEVEL / STATEMENTS
    assert abs(found.mean_z) < 0.25


@pytest.mark.parametrize("measure", NAIVE)
@pytest.mark.parametrize("world", ["hubs", "frequency", "texts"])
def test_a_shuffle_of_rows_that_are_no_units_rejects_what_is_no_match(world: str, measure: str) -> None:
    found = calibrated("uniform", world, NAIVE, SEEDS[:200])[measure]
    assert found.rejected(0.05) > 40  # of 200, where 10 are allowed
