"""From null draws to p: counts, intervals and the result that is reported.

With m random re-pairings of which b score at least as much as the observed pairing, p = (b + 1) / (m + 1): the
observed pairing is itself one of the re-pairings, so p is never 0 and the test keeps its level for every m
(Phipson and Smyth, "Permutation p-values should never be zero", 2010). How far b / m may be from the p of all
re-pairings is said by its Clopper-Pearson interval (Clopper and Pearson, 1934). Where all N re-pairings of a scheme
were scored, the observed one among them, p = b / N, without an interval.

p is one-sided, toward more similar. Two-sided it is twice the smaller of both sides' p, at most 1.

A sequential test stops at the re-pairing that is the h-th to score at least as much. With l re-pairings until then,
p = h / l, which is a valid p too, and its interval that of a negative binomial law; if all m are used up before,
p = (b + 1) / (m + 1) as ever (Besag and Clifford, "Sequential Monte Carlo p-values", 1991). Since l is found by the
order of the re-pairings, it does not depend on how they were batched.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats
from jaxtyping import Bool, Float
from scipy.special import betaincinv, ndtri

from saejax.errors import InputError
from saejax.nulls.results import Method, NullResult
from saejax.nulls.tails import FEW, Tail, extrapolate
from saejax.rng import named_seed
from saejax.similarity import Measure
from saejax.similarity.moments import Moments

# Cores that are equal in exact arithmetic differ by rounding in float64; all are of order 1.
TIE = 1e-12
ROUNDING = 1e-9
SPACINGS = 4  # of float64, by which scores that are equal in exact arithmetic may differ
CONFIDENCE = 0.95
DETECTED = float(ndtri(0.95) + ndtri(0.8))  # SDs above the null's mean that level .05 sees four times in five


def p_value(exceedances: int, permutations: int) -> float:
    """Return (b + 1) / (m + 1).

    Args:
        exceedances: re-pairings at least as similar as the observed pairing, b.
        permutations: re-pairings drawn, m.
    """
    return (exceedances + 1) / (permutations + 1)


def _p(count: int, permutations: int, method: Method) -> float:
    """Return the share of re-pairings in a tail, as the method that made them asks."""
    return count / permutations if method == "enumerated" else p_value(count, permutations)


def clopper_pearson(exceedances: int, permutations: int) -> tuple[float, float]:
    """Return the 95 % interval of a proportion: it covers the true one at least that often.

    Args:
        exceedances: successes, b.
        permutations: trials, m.

    Returns:
        Lower bound, the 2.5 % quantile of Beta(b, m - b + 1), or 0 when b = 0; and upper bound, the 97.5 % quantile
        of Beta(b + 1, m - b), or 1 when b = m.
    """
    b, m, alpha = exceedances, permutations, 1 - CONFIDENCE
    low = 0.0 if b == 0 else float(betaincinv(b, m - b + 1, alpha / 2))
    high = 1.0 if b == m else float(betaincinv(b + 1, m - b, 1 - alpha / 2))
    return low, high


def negative_binomial(exceedances: int, permutations: int) -> tuple[float, float]:
    """Return the 95 % interval of a proportion whose h-th success came at trial l.

    Args:
        exceedances: successes, h.
        permutations: trials, l, the last of which was a success.

    Returns:
        The 2.5 % quantile of Beta(h, l - h + 1), and the 97.5 % quantile of Beta(h, l - h), or 1 when h = l.
    """
    h, trials, alpha = exceedances, permutations, 1 - CONFIDENCE
    low = float(betaincinv(h, trials - h + 1, alpha / 2))
    return low, 1.0 if h == trials else float(betaincinv(h, trials - h, 1 - alpha / 2))


def stopping_place(reached: Bool[np.ndarray, "perm"], stop_after: int | None) -> int:
    """Return how many draws a test looks at: all, or those up to the one that stops it.

    Args:
        reached: which draws are at least as similar as the observed pairing.
        stop_after: exceedances at which it stops; never when None.
    """
    places = np.flatnonzero(reached)
    return len(reached) if stop_after is None or len(places) < stop_after else int(places[stop_after - 1]) + 1


def count_exceedances(cores: Float[np.ndarray, "perm"], observed: float) -> int:
    """Count the draws that are at least as similar as the observed pairing, ties included."""
    return int(np.sum(_reached(cores, observed)))


def _reached(cores: Float[np.ndarray, "perm"], observed: float) -> Bool[np.ndarray, "perm"]:
    return cores - observed >= -TIE


@dataclasses.dataclass(frozen=True)
class Design:
    """What was re-paired and how: the fields of `NullResult` that all measures of one null share."""

    n: int
    units: int
    rows: int
    scheme: str
    method: Method
    seed: int
    first: int
    repeats: int
    fixed: int
    stop_after: int | None


def judge(
    measure: Measure,
    own: Any,
    design: Design,
    observed: float,
    cores: Float[np.ndarray, "perm"],
    rescored: Bool[np.ndarray, "perm"],
    exact: Moments | None = None,
    predicted_mean: float | None = None,
    best: float | None = None,
    directions: tuple[int, int] | None = None,
    picks: Float[np.ndarray, "picks"] | None = None,
) -> NullResult:
    """Hold an observed core against its null draws.

    Args:
        measure: the measure that made both.
        own: its state, in float64.
        design: what was re-paired, and how.
        observed: the core of the pairing.
        cores: the cores of re-pairings, at least one.
        rescored: which of them were scored again in float64.
        exact: moments of the score under the scheme, where they are known.
        predicted_mean: mean of the score by an asymptotic law, where there is one.
        best: score of a perfect match, where it is known.
        directions: numbers of directions of x and y that the measure lays on each other freely, if it does.
        picks: core of each pick, where the observed one is their mean.

    Returns:
        The result, in scores.
    """
    kept = stopping_place(_reached(cores, observed), design.stop_after)
    cores, rescored = cores[:kept], rescored[:kept]
    score, draws = float(measure.scores(own, np.array(observed))), measure.scores(own, cores)
    low, high = (measure.scores(own, cores + side * measure.tolerance) for side in (-1, 1))
    rounding = SPACINGS * np.spacing(np.abs(draws).max())
    resolution = max(math.sqrt(np.mean(((high - low) / 2) ** 2)), float(rounding))
    return _result(
        draws=draws, exceedances=count_exceedances(cores, observed), shortfalls=count_exceedances(-cores, -observed),
        measure=measure.name, observed=score, tail="upper" if measure.larger_is_more_similar else "lower",
        **dataclasses.asdict(design), resolution=resolution,
        score_error=measure.score_error(own), rescored=int(rescored.sum()),
        exact_mean=exact.mean if exact else None, exact_sd=exact.sd if exact and np.isfinite(exact.sd) else None,
        exact_z=exact_z(score, exact, resolution) if exact else None, predicted_mean=predicted_mean,
        best=best, kx=directions[0] if directions else None, ky=directions[1] if directions else None,
        **_spread(None if picks is None else measure.scores(own, picks)),
    )  # fmt: skip


def _spread(picks: Float[np.ndarray, "picks"] | None) -> dict[str, Any]:
    """Return the number of picks, and their scores' SD, smallest and largest."""
    if picks is None:
        return {"picks": 1, "pick_sd": None, "pick_low": None, "pick_high": None}
    low, high = float(picks.min()), float(picks.max())
    return {"picks": len(picks), "pick_sd": float(picks.std(ddof=1)), "pick_low": low, "pick_high": high}


def calibrated_score(observed: float, mean: float, best: float | None) -> float | None:
    """Return where a score lies between the mean of its null, 0, and a perfect match, 1.

    Args:
        observed: score of the pairing.
        mean: mean score of the re-pairings.
        best: score of a perfect match; None where it is not known.
    """
    return None if best is None or best == mean else (observed - mean) / (best - mean)


def exact_z(observed: float, moments: Moments, resolution: float) -> float | None:
    """Return z by exact moments; None where the SD is not known, or within the resolution of scores.

    Args:
        observed: score of the pairing.
        moments: moments of the score.
        resolution: how far a score may be from its float64 value.
    """
    if not resolution < moments.sd < math.inf:
        return None
    return (observed - moments.mean) / moments.sd


def merge(results: Sequence[NullResult]) -> NullResult:
    """Join results of one measure over adjacent ranges of re-pairings: the result of one run over all of them.

    Args:
        results: at least one, in any order.

    Raises:
        InputError: they are of different nulls, or their ranges overlap or leave a gap.
    """
    ordered = sorted(results, key=lambda result: result.first)
    if not ordered:
        raise InputError("results [] are none; give at least one")
    same = (
        "measure", "n", "units", "rows", "observed", "scheme", "tail", "method", "seed", "repeats", "fixed",
        "score_error", "exact_mean", "exact_sd", "exact_z", "predicted_mean", "best", "kx", "ky", "picks",
        "pick_sd", "pick_low", "pick_high", "stop_after",
    )  # fmt: skip
    for left, right in itertools.pairwise(ordered):
        for name in same:
            if not _alike(getattr(left, name), getattr(right, name)):
                raise InputError(
                    f"results differ in {name} ({getattr(left, name)} and {getattr(right, name)}); only parts of one "
                    "null can be merged"
                )
        if left.first + left.permutations != right.first:
            raise InputError(
                f"results hold re-pairings {left.first} to {left.first + left.permutations - 1} and {right.first} to "
                f"{right.first + right.permutations - 1}; give adjacent ranges"
            )
    for result in ordered[:-1]:
        if _stopped(result.exceedances, result.method, result.stop_after):
            raise InputError(
                f"results after re-pairing {result.first + result.permutations - 1} are not part of the test, which "
                "stopped there; leave them out"
            )
    start, squares = ordered[0], np.array([result.resolution**2 for result in ordered])
    draws = np.concatenate([result.draws for result in ordered])
    counts = [sum(getattr(result, name) for result in ordered) for name in ("exceedances", "shortfalls")]
    if start.stop_after is not None and counts[0] > start.stop_after:
        sides = _sides(draws, start.observed, start.tail)
        draws = draws[: stopping_place(sides[0], start.stop_after)]
        counts = [int(side[: len(draws)].sum()) for side in sides]
    return _result(
        draws=draws, exceedances=counts[0], shortfalls=counts[1], first=start.first,
        resolution=math.sqrt(np.average(squares, weights=[result.permutations for result in ordered])),
        rescored=sum(result.rescored for result in ordered), **{name: getattr(start, name) for name in same},
    )  # fmt: skip


def _sides(
    draws: Float[np.ndarray, "perm"], observed: float, tail: str
) -> tuple[Bool[np.ndarray, "perm"], Bool[np.ndarray, "perm"]]:
    """Return which scores are at least and at most as similar as the observed one, ties being both."""
    more = draws - observed if tail == "upper" else observed - draws
    rounding = SPACINGS * np.spacing(max(np.abs(draws).max(), abs(observed), 1.0))
    return more >= -rounding, more <= rounding


def _stopped(exceedances: int, method: Method, stop_after: int | None) -> bool:
    """Tell whether a test stopped before its draws were used up, or with the last of them."""
    return method == "sequential" and exceedances == stop_after


def _alike(one: Any, other: Any) -> bool:
    """Say whether two fields are equal; numbers up to what another machine's rounding may change."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=ROUNDING, abs_tol=ROUNDING)
    return one == other


def _extrapolated(draws: Float[np.ndarray, "perm"], given: dict[str, Any]) -> Tail | None:
    """Return p by the shape of the tail that the observed score lies in."""
    side = 1 if given["tail"] == "upper" else -1
    return extrapolate(side * draws, side * given["observed"], named_seed(given["seed"], f"tail of {given['measure']}"))


def _result(
    *, draws: Float[np.ndarray, "perm"], exceedances: int, shortfalls: int, method: Method, **given: Any
) -> NullResult:
    """Complete a result by what follows from its draws."""
    m, mean, every = len(draws), float(draws.mean()), method == "enumerated"
    sd = float(draws.std(ddof=0 if every else 1)) if m > 1 else None
    z = (given["observed"] - mean) / sd if sd is not None and sd > given["resolution"] else None
    expected = mean if given["exact_mean"] is None else given["exact_mean"]
    calibrated = None if z is None else calibrated_score(given["observed"], expected, given["best"])
    detectable = None if calibrated is None or sd is None else abs(DETECTED * sd / (given["best"] - expected))
    stopped = _stopped(exceedances, method, given["stop_after"])
    counts = z is None or every or stopped or exceedances >= FEW
    tail = None if counts else _extrapolated(draws, given)
    if stopped:
        p, two_sided, (low, high) = exceedances / m, None, negative_binomial(exceedances, m)
    else:
        p, other = (_p(count, m, method) for count in (exceedances, shortfalls))
        two_sided = min(1.0, 2 * min(p, other)) if method != "sequential" else None
        low, high = (p, p) if every else clopper_pearson(exceedances, m)
    return NullResult(
        draws=draws, exceedances=exceedances, shortfalls=shortfalls, method=method, permutations=m, null_mean=mean,
        null_sd=sd, null_skewness=None if z is None else float(scipy.stats.skew(draws)), z=z, calibrated=calibrated,
        detectable=detectable, p_value=p, p_two_sided=two_sided, p_low=low, p_high=high,
        extrapolated_p=tail.p_value if tail else None, extrapolated_high=tail.high if tail else None,
        extrapolated_fit=tail.fit if tail else None, **given,
    )  # fmt: skip
