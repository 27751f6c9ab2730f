"""From null draws to p: counts, intervals and the result that is reported.

With m random re-pairings of which b score at least as much as the observed pairing, p = (b + 1) / (m + 1): the
observed pairing is itself one of the re-pairings, so p is never 0 and the test keeps its level for every m
(Phipson and Smyth, "Permutation p-values should never be zero", 2010). How far b / m may be from the p of all n!
re-pairings is said by its Clopper-Pearson interval (Clopper and Pearson, 1934).
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import betaincinv

from saejax.similarity import Measure

# Cores that are equal in exact arithmetic differ by rounding in float64; all are of order 1.
TIE = 1e-12
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class NullResult:
    """One measure of one pairing, held against random re-pairings of it.

    Attributes:
        measure: name of the measure.
        n: number of pairs.
        observed: score of the pairing as it stands, in float64.
        null_mean: mean score of the re-pairings.
        null_sd: their standard deviation, with m - 1; None for a single one.
        z: (observed - null_mean) / null_sd; None where all re-pairings score the same to within the measure's
            tolerance. It grows with n, so z at different n cannot be compared.
        p_value: (exceedances + 1) / (permutations + 1), one-sided toward more similar.
        p_low: lower 95 % Clopper-Pearson bound from `exceedances` out of `permutations`; 0 when there are none.
        p_high: the upper bound.
        permutations: number of random re-pairings, m.
        exceedances: how many were at least as similar as the observed pairing, ties counted, b.
        scheme: which re-pairings were equally likely.
        tail: `upper` when larger scores are more similar, else `lower`.
        method: `sampled`: re-pairings were drawn at random, with repetition.
        draws: the score of each re-pairing, in order of its number.
    """

    measure: str
    n: int
    observed: float
    null_mean: float
    null_sd: float | None
    z: float | None
    p_value: float
    p_low: float
    p_high: float
    permutations: int
    exceedances: int
    scheme: str
    tail: str
    method: str
    draws: Float[np.ndarray, "perm"] = dataclasses.field(repr=False, compare=False)

    def record(self) -> dict[str, Any]:
        """Return everything but the draws, as plain JSON values."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "draws"}


def p_value(exceedances: int, permutations: int) -> float:
    """Return (b + 1) / (m + 1).

    Args:
        exceedances: re-pairings at least as similar as the observed pairing, b.
        permutations: re-pairings drawn, m.
    """
    return (exceedances + 1) / (permutations + 1)


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


def count_exceedances(cores: Float[np.ndarray, "perm"], observed: float) -> int:
    """Count the draws that are at least as similar as the observed pairing, ties included."""
    return int(np.sum(cores - observed >= -TIE))


def judge(
    measure: Measure, own: Any, n: int, observed: float, cores: Float[np.ndarray, "perm"], scheme: str
) -> NullResult:
    """Hold an observed core against its null draws.

    Args:
        measure: the measure that made both.
        own: its state, in float64.
        n: number of pairs.
        observed: the core of the pairing.
        cores: the cores of random re-pairings, at least one.
        scheme: name of the scheme that they were drawn under.

    Returns:
        The result, in scores.
    """
    m, b = len(cores), count_exceedances(cores, observed)
    draws, score = measure.scores(own, cores), float(measure.scores(own, np.array(observed)))
    mean = float(draws.mean())
    sd = float(draws.std(ddof=1)) if m > 1 else None
    varies = m > 1 and cores.std(ddof=1) > measure.tolerance
    low, high = clopper_pearson(b, m)
    return NullResult(
        measure=measure.name, n=n, observed=score, null_mean=mean, null_sd=sd,
        z=(score - mean) / sd if varies and sd else None, p_value=p_value(b, m), p_low=low, p_high=high,
        permutations=m, exceedances=b, scheme=scheme, tail="upper" if measure.larger_is_more_similar else "lower",
        method="sampled", draws=draws,
    )  # fmt: skip
