"""Does one set of pairs match more than another? The difference of two arms, with an interval.

SAE features against raw neurons, a layer against another, a subspace against random pairs of the same number. That one
arm is significant and the other is not says nothing of that: z and p grow with the number of pairs. Nor do raw scores,
whose null means differ with n and with the number of directions. So both arms are scored at one n, and by calibrated
scores, of which the null mean is 0 and a perfect match 1 (`NullResult.calibrated`); measures that lay directions on
each other (CCA and its kin) at one number of directions.

An arm of N > n pairs is cut to n at random, `replicates` times, and stands for the mean. How far the calibrated score
of an arm would be another for other features of its kind is told by subsets of m = N / 2 of its pairs, drawn without
replacement: copies of a row would be pairs at distance 0, which no data have. With v the variance of the score over
such subsets,

    SE^2 = v m / (N - m)     for each arm,   and their sum for the difference,

since over subsets the score varies by s^2 (1 / m - 1 / N) if over samples of N it varies by s^2 / N. Where an arm
matches no more than chance its variance falls faster than 1 / N, and the interval is too wide. The interval of the
difference is 1.96 SE to either side. It held the true difference in 93 to 97 % of 150 simulated pairs of arms that
match (N = 60 and 60, or 60 and 180, debiased CKA and RSA), and in 99 % of those that do not.

Arms are resampled apart from each other. Where they share features, what they have in common cancels in the difference,
and the interval is too wide.

Source: Politis and Romano, "Large sample confidence regions based on subsamples under minimal assumptions", 1994;
Shao and Wu, "A general theory for jackknife variance estimation", 1989 (the factor).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from saejax.errors import InputError
from saejax.nulls import permutations as drawing
from saejax.nulls.budget import Impl
from saejax.nulls.engine import MEMORY_GIB, permutation_test
from saejax.nulls.identity import Ids
from saejax.nulls.numbers import check_numbers, whole
from saejax.nulls.results import NullResults, Results, aligned
from saejax.nulls.schemes import Told
from saejax.nulls.selection import check_pairing, find_measures
from saejax.progress import progress
from saejax.rng import named_seed
from saejax.similarity import Pair

NORMAL = 1.959964  # 97.5 % quantile
FEWEST = 16  # pairs of an arm, half of which make a subset


@dataclasses.dataclass(frozen=True, eq=False)
class Arm:
    """Two matrices with paired rows, one side of a comparison.

    Attributes:
        name: what it is called in results.
        x: `[n, dx]`, whatever `permutation_test` reads.
        y: `[n, dy]`; row i is paired with row i of x.
        x_ids: which feature each row of x is; without ids, features are told apart by their rows.
        y_ids: the same for y.
    """

    name: str
    x: Any = dataclasses.field(repr=False)
    y: Any = dataclasses.field(repr=False)
    x_ids: Ids | None = dataclasses.field(default=None, repr=False)
    y_ids: Ids | None = dataclasses.field(default=None, repr=False)


@dataclasses.dataclass(frozen=True)
class ArmDifference:
    """How much more one arm matches than another, by one measure.

    Attributes:
        measure: name of the measure.
        first: name of one arm.
        second: name of the other.
        n: pairs at which both are scored.
        first_pairs: pairs that the first arm has.
        second_pairs: those of the second.
        first_score: calibrated score of the first arm at n pairs.
        second_score: that of the second.
        difference: first_score - second_score.
        se: its standard error over features of either arm.
        low: lower end of the 95 % interval of the difference.
        high: upper end.
        kx: directions of x that the measure lays on those of y, in both arms; None for other measures.
        ky: those of y.
        replicates: random subsets of each arm.
        permutations: re-pairings that the null mean of a subset is found by, where it is not known exactly.
        scheme: who may be re-paired.
        seed: seed of subsets and re-pairings.
    """

    measure: str
    first: str
    second: str
    n: int
    first_pairs: int
    second_pairs: int
    first_score: float
    second_score: float
    difference: float
    se: float
    low: float
    high: float
    kx: int | None
    ky: int | None
    replicates: int
    permutations: int
    scheme: str
    seed: int


class ArmDifferences(Results[ArmDifference]):
    """Results in the order of the measures; prints as a table."""

    def records(self) -> list[dict[str, Any]]:
        """Return all fields of every result."""
        return [dataclasses.asdict(result) for result in self]

    def lines(self) -> list[str]:
        """Return the lines of the table."""
        names = (self[0].first, self[0].second) if self else ("first", "second")
        head = ("measure", "n", *(f"calibrated {name}" for name in names), "difference", "SE", "95 % interval")
        return aligned([head, *map(_cells, self)])


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What all subsets have in common."""

    measures: Sequence[str]
    replicates: int
    seed: int
    options: dict[str, Any]


def compare_arms(
    first: Arm,
    second: Arm,
    *,
    measures: Sequence[str],
    scheme: str,
    permutations: int,
    replicates: int,
    seed: int,
    n: int | None = None,
    impl: Impl | None = None,
    memory_gib: float = MEMORY_GIB,
) -> ArmDifferences:
    """Say how much more one arm matches than another, at one number of pairs.

    Args:
        first: one arm.
        second: the other; the larger set where a subspace is held against random pairs of its number.
        measures: names, as in `permutation_test`; of CCA and its kin with as many directions in both arms
            (`svcca:components=20`).
        scheme: who may be re-paired: uniform, or collapse for many-to-one pairings, whose units are then resampled.
        permutations: random re-pairings by which the null mean of each subset is found where it has no closed form.
        replicates: random subsets of each arm, at least 2; 100 know the SE to 7 %.
        seed: seed of subsets and re-pairings.
        n: pairs at which both arms are scored; as many as the smaller has when None.
        impl: as in `permutation_test`.
        memory_gib: as in `permutation_test`.

    Returns:
        One result per measure.

    Raises:
        InputError: anything about the input is wrong; an arm has fewer than n pairs; a measure is constant in an arm,
            or lays another number of directions on each other in each.
    """
    permutations, replicates = whole("permutations", permutations), whole("replicates", replicates)
    seed = whole("seed", seed)
    check_numbers(permutations, 0, None, memory_gib, impl)
    if replicates < 2:
        raise InputError(f"replicates {replicates} must be at least 2")
    if first.name == second.name:
        raise InputError(f"arms are both called {first.name!r}; give each its own name")
    chosen = find_measures(measures)
    pairs = [_units(arm, scheme) for arm in (first, second)]
    n = min(pair.n for pair in pairs) if n is None else whole("n", n)
    for arm, pair in zip((first, second), pairs, strict=True):
        if not FEWEST <= n <= pair.n:
            raise InputError(f"n {n} must be from {FEWEST} to the {pair.n} pairs of arm {arm.name!r}")
    options = {
        "scheme": "uniform", "permutations": permutations, "impl": impl, "memory_gib": memory_gib,
    }  # fmt: skip
    settings = _Settings([measure.name for measure in chosen], replicates, seed, options)
    scored = [_scored(arm, pair, n, settings) for arm, pair in zip((first, second), pairs, strict=True)]
    results = ArmDifferences()
    for place, measure in enumerate(chosen):
        (one, one_se, one_k), (other, other_se, other_k) = (each[place] for each in scored)
        kx, ky = _common(measure.name, sorted({*one_k, *other_k}))
        difference, se = one - other, float(np.hypot(one_se, other_se))
        results.append(
            ArmDifference(
                measure=measure.name, first=first.name, second=second.name, n=n, first_pairs=pairs[0].n,
                second_pairs=pairs[1].n, first_score=one, second_score=other, difference=difference, se=se,
                low=difference - NORMAL * se, high=difference + NORMAL * se, kx=kx, ky=ky,
                replicates=replicates, permutations=permutations, scheme=scheme, seed=seed,
            )
        )  # fmt: skip
    return results


def _units(arm: Arm, scheme: str) -> Pair:
    """Return the pairs of an arm that are exchangeable one by one.

    Raises:
        InputError: the scheme makes no such pairs of it.
    """
    arrangement = check_pairing(arm.x, arm.y, (), scheme, Told(arm.x_ids, arm.y_ids))
    if not arrangement.plain:
        raise InputError(f"scheme {scheme} has no units that arms could be resampled by; choose uniform or collapse")
    return arrangement.pair


def _common(measure: str, directions: Sequence[tuple[int, int]]) -> tuple[int, int] | tuple[None, None]:
    """Return the numbers of directions that a measure lays on each other in all subsets; None if it does not.

    Raises:
        InputError: they differ.
    """
    if len(directions) > 1:
        (kx, ky), (other_kx, other_ky) = directions[0], directions[-1]
        raise InputError(
            f"{measure} lays from {kx} and {ky} to {other_kx} and {other_ky} directions on each other, so that arms "
            f"differ by their number; compare them at one, by svcca:components={min(map(min, directions))}"
        )
    return directions[0] if directions else (None, None)


def _scored(arm: Arm, pair: Pair, n: int, settings: _Settings) -> list[tuple[float, float, set[tuple[int, int]]]]:
    """Return by measure the calibrated score of an arm at n pairs, its standard error, and numbers of directions."""
    half, cut = pair.n // 2, settings.replicates if n < pair.n else 1
    sizes = {i: n for i in range(cut)} | {settings.replicates + i: half for i in range(settings.replicates)}
    tests = []
    with progress(f"subsets of {arm.name}", total=len(sizes)) as advance:
        for number, size in sizes.items():
            tests.append(_test(arm, pair, size, number, settings))
            advance()
    at_n, halves = tests[:cut], tests[cut:]
    found = []
    for place in range(len(settings.measures)):
        variance = np.var([_calibrated(arm, each, place) for each in halves], ddof=1)
        score = float(np.mean([_calibrated(arm, each, place) for each in at_n]))
        told = [(each[place].kx, each[place].ky) for each in at_n]
        directions = {(kx, ky) for kx, ky in told if kx is not None and ky is not None}
        found.append((score, float(np.sqrt(variance * half / (pair.n - half))), directions))
    return found


def _test(arm: Arm, pair: Pair, size: int, number: int, settings: _Settings) -> NullResults:
    """Hold a random subset of an arm against its null; all of it as it stands where the size is its own."""
    key = drawing.key_of(named_seed(settings.seed, f"arms.{arm.name}"))
    order = drawing.on_host(key, drawing.as_indices(number, number + 1), pair.n)[0]
    rows = np.arange(pair.n) if size == pair.n else np.sort(order[:size])
    ids: Any = np.arange(size)
    seed = named_seed(settings.seed, f"arms.{arm.name}.{number}")
    return permutation_test(
        pair.x.values[rows], pair.y.values[rows], measures=settings.measures, x_ids=ids, y_ids=ids, seed=seed,
        **settings.options,
    )  # fmt: skip


def _calibrated(arm: Arm, results: NullResults, place: int) -> float:
    result = results[place]
    if result.calibrated is None:
        raise InputError(
            f"{result.measure} scores every pairing of {result.n} pairs of arm {arm.name!r} the same; leave it out of "
            "measures, or keep fewer directions"
        )
    return result.calibrated


def _cells(result: ArmDifference) -> tuple[str, ...]:
    scores = (f"{value:.4f}" for value in (result.first_score, result.second_score, result.difference, result.se))
    return (result.measure, str(result.n), *scores, f"{result.low:.4f} to {result.high:.4f}")
