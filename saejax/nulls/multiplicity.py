"""p-values of many tests, corrected for their number.

Of N tests of true null hypotheses at level a, N a are expected to reject by chance. Two corrections need only the
p-values:

    holm                 p_(i) -> max over j <= i of (N - j + 1) p_(j), with p_(1) <= p_(2) <= ...: the chance of one or
                         more false rejections is at most a, however the tests depend on each other [1]
    benjamini_hochberg   p_(i) -> min over j >= i of N p_(j) / j: the expected share of false rejections among all is at
                         most a, for independent tests and those that depend positively [2]

Two more ask how extreme the most extreme of all tests is in each re-pairing, so tests that say the same count once.
They need draws that go together: re-pairing i of every cell from one re-pairing of the features (`grid_test` with
`couple`). Tests are taken from the most significant down, each among those that are left [3]:

    min_p   share of re-pairings, the observed pairing among them, whose smallest p over the tests left is at most p_(i)
    max_t   share of those whose largest z over the tests left is at least z_(i), towards more similar

A draw's p is its rank among the draws and the observed score of its test; its z is by the exact moments, where they are
known, else by those of the draws and the observed score.

A p from m draws is never below 1 / (m + 1), so after correction by the first two no test alone gets below N / (m + 1);
by max_t, below 1 / (m + 1); by min_p, below the share of re-pairings that are the best of some test. With too few draws
no result could be significant; such a correction is refused, with the number of draws that it needs.

[1] Holm, "A simple sequentially rejective multiple test procedure", 1979.
[2] Benjamini and Hochberg, "Controlling the false discovery rate", 1995.
[3] Westfall and Young, "Resampling-based multiple testing", 1993, algorithms 2.8 and 4.1; Ge, Dudoit, Speed, 2003.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import scipy.stats
from jaxtyping import Float

from saejax.errors import InputError

Correction = Literal["holm", "benjamini_hochberg", "min_p", "max_t"]
DrawsOf = Callable[[dict[str, Any]], Float[np.ndarray, "perm"]]
COUPLED = ("min_p", "max_t")
LEVEL = 0.05
TIE = 1e-9  # of z and of p that are equal in exact arithmetic


def holm(p_values: Float[np.ndarray, "tests"]) -> Float[np.ndarray, "tests"]:
    """Return p-values that hold for all tests together: any of them below a rejects at family-wise level a."""
    order = np.argsort(p_values, kind="stable")
    corrected = np.empty(len(p_values))
    corrected[order] = np.maximum.accumulate(np.arange(len(p_values), 0, -1) * p_values[order])
    return np.minimum(corrected, 1)


def benjamini_hochberg(p_values: Float[np.ndarray, "tests"]) -> Float[np.ndarray, "tests"]:
    """Return p-values of which those below a are rejected at a false discovery rate of a."""
    return np.asarray(scipy.stats.false_discovery_control(p_values, method="bh"))


def step_down(
    observed: Float[np.ndarray, "tests"], extremes: Callable[[int], Float[np.ndarray, "perm"]]
) -> tuple[Float[np.ndarray, "tests"], Float[np.ndarray, "perm"]]:
    """Return p-values of tests by the largest statistic among those that are no more significant.

    Memory for a few numbers per draw, however many tests there are.

    Args:
        observed: statistic of each test, growing with significance.
        extremes: the same of all its draws, by the place of a test; draws of equal number go together.

    Returns:
        The p-values, and the largest statistic of each draw over all tests.
    """
    order = np.argsort(-observed, kind="stable")
    corrected, largest = np.empty(len(observed)), np.array(-np.inf)
    for place in order[::-1].tolist():
        largest = np.maximum(largest, extremes(place))
        corrected[place] = (1 + np.sum(largest >= observed[place] - TIE)) / (1 + len(largest))
    corrected[order] = np.maximum.accumulate(corrected[order])
    return corrected, largest


def smallest_p(record: dict[str, Any], asked: int | None = None) -> float:
    """Return the smallest p that a result could have had.

    Args:
        record: from `NullResult.record`.
        asked: re-pairings that a sequential test would have gone on to; what it drew when None.
    """
    m = record["permutations"]
    if record["method"] == "sequential":
        m = asked or m
    return 1 / m if record["method"] == "enumerated" else 1 / (m + 1)


def check_uneven(stop_after: int | None, couple: str | None, correction: str | None) -> None:
    """Refuse sequential tests where the draws of all results go together.

    Raises:
        InputError: results would stop at different draws.
    """
    asked = f"correction {correction}" if correction in COUPLED else f"couple {couple!r}" if couple is not None else ""
    if stop_after is not None and asked:
        raise InputError(
            f"stop_after {stop_after} ends each result at a draw of its own, and {asked} needs the same draws of all; "
            "leave stop_after out, or choose holm or benjamini_hochberg without couple"
        )


def check_correction(correction: str, level: float, coupled: bool) -> None:
    """Refuse a correction that there is not, or that the draws do not allow.

    Raises:
        InputError: the correction is unknown, the level none, or the draws of cells do not go together.
    """
    if correction not in get_args(Correction):
        raise InputError(f"correction {correction!r} is unknown; choose one of {', '.join(get_args(Correction))}")
    if not 0 < level < 1:
        raise InputError(f"level {level} must lie between 0 and 1")
    if correction in COUPLED and not coupled:
        raise InputError(
            f"correction {correction} needs draws that go together in all cells; score the grid with couple 'x' or "
            "'y', or choose holm"
        )


def check_floor(correction: str, level: float, count: int, permutations: int) -> None:
    """Refuse draws so few that no corrected p can reach the level.

    Args:
        correction: a correction.
        level: what a corrected p is to be held against.
        count: number of results.
        permutations: draws of each.

    Raises:
        InputError: there is one result, or draws are too few.
    """
    if count < 2:
        raise InputError(f"correction {correction} over {count} result(s) corrects nothing; read p_value as it is")
    alone = 1 if correction in COUPLED else count
    _require(correction, level, count, permutations, alone / (permutations + 1), alone)


def _require(correction: str, level: float, count: int, permutations: int, floor: float, alone: int) -> None:
    if floor > level:
        raise InputError(
            f"permutations {permutations} cannot reach level {level} over {count} results: the smallest p after "
            f"{correction} is {floor:.2g}; draw at least {math.ceil(alone / level) - 1}"
        )


def corrected(
    records: Sequence[dict[str, Any]],
    correction: str,
    level: float = LEVEL,
    draws: DrawsOf | None = None,
    permutations: int | None = None,
) -> list[dict[str, Any]]:
    """Correct the p-values of all results of a grid together.

    Args:
        records: the results, from `NullResult.record`.
        correction: `holm`, `benjamini_hochberg`, `min_p` or `max_t`.
        level: what a corrected p is to be held against.
        draws: reads the draws of a result, where those of equal number go together; None where they do not.
        permutations: re-pairings that sequential tests would have gone on to; what they drew when None.

    Returns:
        The records with `p_corrected`, its floor `p_floor` for a test that rejects alone, and `correction`.

    Raises:
        InputError: the correction is unknown, the level none, there is only one result, draws are so few that no
            corrected p can reach the level, or do not go together where they must.
    """
    check_correction(correction, level, draws is not None)
    drawn = (permutations if each["method"] == "sequential" else None for each in records)
    most = max((asked or each["permutations"] for asked, each in zip(drawn, records, strict=True)), default=0)
    count = len(records)
    check_floor(correction, level, count, most)
    if correction in COUPLED and draws is not None:
        p_values, floor = _by_draws(records, correction, draws)
        floors = [floor] * count
    else:
        p_values = CORRECTIONS[correction](np.array([record["p_value"] for record in records]))
        floors = [count * smallest_p(record, permutations) for record in records]
    _require(correction, level, count, most, min(floors), count)
    return [
        {**record, "p_corrected": float(p), "p_floor": min(floor, 1.0), "correction": correction}
        for record, p, floor in zip(records, p_values, floors, strict=True)
    ]


def _by_draws(
    records: Sequence[dict[str, Any]], correction: str, draws: DrawsOf
) -> tuple[Float[np.ndarray, "tests"], float]:
    """Return step-down p-values, and what one would be that no draw comes up to.

    Raises:
        InputError: results are not of the same draws.
    """
    kinds = {(record["permutations"], record["seed"], record["first"], record["method"]) for record in records}
    if len(kinds) > 1 or records[0]["method"] != "sampled":
        raise InputError(
            f"correction {correction} needs the same sampled re-pairings of all results, and these are of "
            f"{len(kinds)} kind(s), {records[0]['method']} the first; score them in one grid"
        )
    m = records[0]["permutations"]
    if correction == "max_t":
        observed = np.array([_z(record, draws)[0] for record in records])
        return step_down(observed, lambda place: _z(records[place], draws)[1])[0], 1 / (m + 1)
    observed = -np.array([record["p_value"] for record in records])
    p_values, best = step_down(observed, lambda place: -_p_of_draws(records[place], draws))
    return p_values, float(1 + np.sum(best >= -1 / (m + 1) - TIE)) / (m + 1)


def _towards_similar(record: dict[str, Any], draws: DrawsOf) -> Float[np.ndarray, "all"]:
    """Return the observed score and those of the draws, with their sign turned where larger is less similar."""
    scores = np.concatenate([[record["observed"]], draws(record)])
    return scores if record["tail"] == "upper" else -scores


def _p_of_draws(record: dict[str, Any], draws: DrawsOf) -> Float[np.ndarray, "perm"]:
    scores = _towards_similar(record, draws)
    return (len(scores) - np.searchsorted(np.sort(scores), scores[1:])) / len(scores)


def _z(record: dict[str, Any], draws: DrawsOf) -> tuple[float, Float[np.ndarray, "perm"]]:
    """Return the z of the observed score and of the draws; minus infinity where every re-pairing scores the same."""
    scores = _towards_similar(record, draws)
    if record["z"] is None:
        return -math.inf, np.full(len(scores) - 1, -np.inf)
    mean, sd = scores.mean(), scores.std()
    if record["exact_sd"] is not None:
        mean, sd = record["exact_mean"] * (1 if record["tail"] == "upper" else -1), record["exact_sd"]
    z = (scores - mean) / sd
    return float(z[0]), z[1:]


def correction_line(records: Sequence[dict[str, Any]], correction: str) -> str:
    """Say what was corrected, and how small a corrected p could be."""
    floor = min(record["p_floor"] for record in records)
    return f"p corrected by {correction} over {len(records)} results; one alone could reach {floor:.2g}"


CORRECTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"holm": holm, "benjamini_hochberg": benjamini_hochberg}
