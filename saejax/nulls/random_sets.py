"""Is the *set* of paired features special? A set is held against random features of both pools.

This is another question than that of a permutation test. There the two sets stand and their pairing is random; here
the sets are random too. A set may stand out because its features are alike in frequency or kind, paired well or not,
so a large score against random sets says nothing about the pairing. Nothing here is exchangeable, unless the set
itself was a random one, so the share of random sets that are at least as similar is told as a share, not as a p.

Each draw takes as many features of each pool as there are pairs, none twice, in random order, and scores them from
nothing: seconds a draw for thousands of features.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from saejax.errors import InputError
from saejax.nulls import permutations as drawing
from saejax.nulls.inference import clopper_pearson
from saejax.nulls.numbers import whole
from saejax.nulls.recomputed import TIE, score_anew, signed
from saejax.nulls.results import Results, aligned, number
from saejax.nulls.selection import find_measures
from saejax.progress import progress
from saejax.rng import named_seed
from saejax.similarity import Measure, Pair


@dataclasses.dataclass(frozen=True)
class RandomSetResult:
    """One measure of a set of pairs, held against random sets of both pools.

    Attributes:
        measure: name of the measure.
        n: number of pairs, and of features that a random set takes of each pool.
        x_pool: features in the pool of x.
        y_pool: features in that of y.
        observed: score of the set.
        mean: mean score of the random sets.
        sd: their standard deviation, with draws - 1; None for a single one.
        at_least: how many of them were at least as similar, ties counted.
        draws: number of random sets.
        share: at_least / draws; not the p of a permutation test.
        share_low: lower 95 % Clopper-Pearson bound of the share.
        share_high: the upper bound.
        seed: seed of the random sets.
        scores: the score of each random set.
    """

    measure: str
    n: int
    x_pool: int
    y_pool: int
    observed: float
    mean: float
    sd: float | None
    at_least: int
    draws: int
    share: float
    share_low: float
    share_high: float
    seed: int
    scores: Float[np.ndarray, "draws"] = dataclasses.field(repr=False, compare=False)

    def record(self) -> dict[str, Any]:
        """Return everything but the scores, as plain JSON values."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "scores"}


class RandomSetResults(Results[RandomSetResult]):
    """Results in the order of the measures; prints as a table."""

    def records(self) -> list[dict[str, Any]]:
        """Return everything but the scores."""
        return [result.record() for result in self]

    def lines(self) -> list[str]:
        """Return the lines of the table."""
        head = ("measure", "n", "observed", "mean of sets", "SD of sets", "share at least", "95 % interval")
        return aligned([head, *map(_cells, self)])


def random_set_test(
    pool_x: Any, pool_y: Any, pairs: Any, *, measures: Sequence[str], draws: int, seed: int
) -> RandomSetResults:
    """Hold the score of paired features against that of random features of both pools.

    Args:
        pool_x: `[n, dx]`, a row per feature that could have been chosen, the chosen ones among them.
        pool_y: `[m, dy]`.
        pairs: `[pairs, 2]`, row of `pool_x` and row of `pool_y` of each pair; neither stands in two.
        measures: names, as in `permutation_test`.
        draws: number of random sets.
        seed: seed of the random sets, 0 to 2^64 - 1.

    Returns:
        One result per measure.

    Raises:
        InputError: the pools or pairs are not what they should be, or a measure cannot compare a random set.
    """
    chosen, draws, seed = find_measures(measures), whole("draws", draws), whole("seed", seed)
    if draws < 1:
        raise InputError(f"draws {draws} must be at least 1")
    pools = [np.asarray(pool) for pool in (pool_x, pool_y)]
    for name, pool in zip("xy", pools, strict=True):
        if pool.ndim != 2:
            raise InputError(f"pool_{name} has shape {pool.shape}; give a matrix, one row per feature")
    rows = _checked(pairs, pools)
    observed = [score_anew(measure, _set(pools, rows.T))[0] for measure in chosen]
    scores = np.empty((len(chosen), draws))
    with progress(f"random sets by {', '.join(measures)}", total=draws) as advance:
        for draw in range(draws):
            pair = _set(pools, [_sample(*side, seed, draw, len(rows)) for side in zip(pools, "xy", strict=True)])
            scores[:, draw] = [score_anew(measure, pair)[0] for measure in chosen]
            advance()
    sizes = {"n": len(rows), "x_pool": len(pools[0]), "y_pool": len(pools[1]), "seed": seed}
    return RandomSetResults(_result(*each, sizes) for each in zip(chosen, observed, scores, strict=True))


def _checked(pairs: Any, pools: Sequence[np.ndarray]) -> Int[np.ndarray, "pairs 2"]:
    rows = np.asarray(pairs)
    if rows.ndim != 2 or rows.shape[1] != 2 or not np.issubdtype(rows.dtype, np.integer):
        raise InputError(f"pairs has shape {rows.shape} and dtype {rows.dtype}; give two row numbers for each pair")
    for name, pool, column in zip("xy", pools, rows.T, strict=True):
        outside = column[(column < 0) | (column >= len(pool))]
        if len(outside):
            raise InputError(f"pairs names row {outside[0]} of pool_{name}, which has rows 0 to {len(pool) - 1}")
        values, counts = np.unique(column, return_counts=True)
        if np.any(counts > 1):
            raise InputError(
                f"pairs names row {values[counts > 1][0]} of pool_{name} twice, and random sets take no feature twice; "
                "give one-to-one pairs"
            )
    return rows.astype(np.int64)


def _set(pools: Sequence[np.ndarray], rows: Any) -> Pair:
    x, y = (pool[each] for pool, each in zip(pools, rows, strict=True))
    return Pair.of(x, y)


def _sample(pool: np.ndarray, name: str, seed: int, draw: int, count: int) -> np.ndarray:
    """Return the first rows of a random order of a pool."""
    key = drawing.key_of(named_seed(seed, f"random_sets.{name}"))
    return drawing.on_host(key, drawing.as_indices(draw, draw + 1), len(pool))[0, :count]


def _result(
    measure: Measure, observed: float, scores: Float[np.ndarray, "draws"], about: dict[str, int]
) -> RandomSetResult:
    """Count the random sets that are at least as similar, from signed scores."""
    at_least, draws = int(np.sum(scores - observed >= -TIE * max(1.0, abs(observed)))), len(scores)
    low, high = clopper_pearson(at_least, draws)
    told = signed(measure, scores)
    return RandomSetResult(
        measure=measure.name, observed=signed(measure, observed), mean=float(told.mean()),
        sd=float(told.std(ddof=1)) if draws > 1 else None, at_least=at_least, draws=draws, share=at_least / draws,
        share_low=low, share_high=high, scores=told, **about,
    )  # fmt: skip


def _cells(result: RandomSetResult) -> tuple[str, ...]:
    scores = (number(value, ".5f") for value in (result.observed, result.mean, result.sd))
    interval = f"{result.share_low:.2g} - {result.share_high:.2g}"
    return (result.measure, str(result.n), *scores, f"{result.share:.2g}", interval)
