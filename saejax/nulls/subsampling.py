"""How far the score of a set of pairs would be another for other features of its kind.

A calibrated score (`NullResult.calibrated`) has null mean 0 and is 1 for a perfect match, so it can be asked how sure
it is; z and raw scores move with the number of pairs. Rows cannot be drawn with replacement: copies of a row would be
pairs at distance 0, which no data have. So subsets of m = N / 2 of the N pairs are drawn without; with v the variance
of the score over them,

    SE^2 = v m / (N - m)

since over subsets the score varies by s^2 (1 / m - 1 / N) if over samples of N it varies by s^2 / N. Where pairs match
no more than chance the variance falls faster than 1 / N, and the interval, 1.96 SE to either side, is too wide.

Sources: Politis and Romano, "Large sample confidence regions based on subsamples under minimal assumptions", 1994;
Shao and Wu, "A general theory for jackknife variance estimation", 1989 (the factor).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from saejax.errors import InputError
from saejax.nulls import permutations as drawing
from saejax.nulls.arrangement import Told
from saejax.nulls.budget import Impl
from saejax.nulls.engine import MEMORY_GIB, permutation_test
from saejax.nulls.identity import Ids
from saejax.nulls.numbers import check_numbers, whole
from saejax.nulls.results import NullResults, Results, aligned
from saejax.nulls.selection import check_pairing, find_measures
from saejax.progress import progress
from saejax.rng import named_seed
from saejax.similarity import Pair

NORMAL = 1.959964  # 97.5 % quantile
FEWEST = 16  # pairs, half of which make a subset


@dataclasses.dataclass(frozen=True, eq=False)
class Arm:
    """Two matrices with paired rows: one side of a comparison.

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
class ArmScore:
    """How much a set of pairs matches, by one measure, and how sure that is.

    Attributes:
        measure: name of the measure.
        name: name of the arm.
        n: pairs.
        score: calibrated score.
        se: its standard error over features.
        low: lower end of the 95 % interval.
        high: upper end.
        replicates: random halves of the pairs.
        permutations: re-pairings that the null mean of each is found by, where it is not known exactly.
        scheme: who may be re-paired.
        seed: seed of halves and re-pairings.
    """

    measure: str
    name: str
    n: int
    score: float
    se: float
    low: float
    high: float
    replicates: int
    permutations: int
    scheme: str
    seed: int


class ArmScores(Results[ArmScore]):
    """Results in the order of the measures; prints as a table."""

    def records(self) -> list[dict[str, Any]]:
        """Return all fields of every result."""
        return [dataclasses.asdict(result) for result in self]

    def lines(self) -> list[str]:
        """Return the lines of the table."""
        head = ("arm", "measure", "n", "calibrated", "SE", "95 % interval")
        return aligned([head, *map(_cells, self)])


def score_arm(
    arm: Arm,
    *,
    measures: Sequence[str],
    scheme: str,
    permutations: int,
    replicates: int,
    seed: int,
    impl: Impl | None = None,
    memory_gib: float = MEMORY_GIB,
) -> ArmScores:
    """Say how much a set of pairs matches, with an interval over features.

    Args:
        arm: the pairs.
        measures: names, as in `permutation_test`.
        scheme: who may be re-paired: uniform, or collapse for many-to-one pairings, whose units are then resampled.
        permutations: random re-pairings by which the null mean of each half is found where it has no closed form.
        replicates: random halves, at least 2; 100 know the SE to 7 %.
        seed: seed of halves and re-pairings.
        impl: as in `permutation_test`.
        memory_gib: as in `permutation_test`.

    Returns:
        One result per measure.

    Raises:
        InputError: anything about the input is wrong, there are fewer than 16 pairs, or a measure is constant.
    """
    subsets = Subsets.checked(measures, scheme, permutations, replicates, seed, impl, memory_gib)
    pair = units_of(arm, scheme)
    if pair.n < FEWEST:
        raise InputError(f"arm {arm.name!r} has {pair.n} pairs; give at least {FEWEST}")
    return ArmScores(
        ArmScore(
            measure=name, name=arm.name, n=pair.n, score=found.score, se=found.se,
            low=found.score - NORMAL * found.se, high=found.score + NORMAL * found.se,
            replicates=subsets.replicates, permutations=subsets.options["permutations"], scheme=scheme,
            seed=subsets.seed,
        )
        for name, found in zip(subsets.measures, subsets.scored(arm.name, pair, pair.n), strict=True)
    )  # fmt: skip


def units_of(arm: Arm, scheme: str) -> Pair:
    """Return the pairs of an arm that are exchangeable one by one.

    Raises:
        InputError: the scheme makes no such pairs of it.
    """
    arrangement = check_pairing(arm.x, arm.y, (), scheme, Told(arm.x_ids, arm.y_ids))
    if not arrangement.plain:
        raise InputError(f"scheme {scheme} has no units that arms could be resampled by; choose uniform or collapse")
    return arrangement.pair


class Subsampled(NamedTuple):
    """A calibrated score, its standard error over features, and the numbers of directions that it lays on each other.

    There are several of those where they differ between subsets, and none for measures that do not do so.
    """

    score: float
    se: float
    directions: set[tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Subsets:
    """How arms are resampled, and what their subsets are scored by."""

    measures: Sequence[str]
    replicates: int
    seed: int
    options: dict[str, Any]

    @classmethod
    def checked(
        cls,
        measures: Sequence[str],
        scheme: str,
        permutations: int,
        replicates: int,
        seed: int,
        impl: Impl | None,
        memory_gib: float,
    ) -> "Subsets":
        """Refuse numbers and names that leave nothing to compare.

        Raises:
            InputError: the offender, its value and the remedy.
        """
        permutations, replicates = whole("permutations", permutations), whole("replicates", replicates)
        check_numbers(permutations, 0, None, memory_gib, impl)
        if replicates < 2:
            raise InputError(f"replicates {replicates} must be at least 2")
        names = [measure.name for measure in find_measures(measures)]
        options = {"scheme": "uniform", "permutations": permutations, "impl": impl, "memory_gib": memory_gib}
        return cls(names, replicates, whole("seed", seed), options)

    def scored(self, name: str, pair: Pair, n: int) -> list[Subsampled]:
        """Return by measure the calibrated score of an arm at n of its pairs, and how sure it is.

        Args:
            name: name of the arm.
            pair: its pairs, at least `FEWEST`.
            n: at most as many.

        Raises:
            InputError: a measure scores all pairings the same.
        """
        half, cut = pair.n // 2, self.replicates if n < pair.n else 1
        sizes = {i: n for i in range(cut)} | {self.replicates + i: half for i in range(self.replicates)}
        tests = []
        with progress(f"subsets of {name}", total=len(sizes)) as advance:
            for number, size in sizes.items():
                tests.append(self._test(name, pair, size, number))
                advance()
        at_n, halves = tests[:cut], tests[cut:]
        found = []
        for place in range(len(self.measures)):
            variance = np.var([_calibrated(name, each, place) for each in halves], ddof=1)
            score = float(np.mean([_calibrated(name, each, place) for each in at_n]))
            told = [(each[place].kx, each[place].ky) for each in at_n]
            directions = {(kx, ky) for kx, ky in told if kx is not None and ky is not None}
            found.append(Subsampled(score, float(np.sqrt(variance * half / (pair.n - half))), directions))
        return found

    def _test(self, name: str, pair: Pair, size: int, number: int) -> NullResults:
        """Hold a random subset of an arm against its null; all of it as it stands where the size is its own."""
        key = drawing.key_of(named_seed(self.seed, f"arms.{name}"))
        order = drawing.on_host(key, drawing.as_indices(number, number + 1), pair.n)[0]
        rows = np.arange(pair.n) if size == pair.n else np.sort(order[:size])
        ids: Any = np.arange(size)
        return permutation_test(
            pair.x.values[rows], pair.y.values[rows], measures=self.measures, x_ids=ids, y_ids=ids,
            seed=named_seed(self.seed, f"arms.{name}.{number}"), **self.options,
        )  # fmt: skip


def _calibrated(name: str, results: NullResults, place: int) -> float:
    result = results[place]
    if result.calibrated is None:
        raise InputError(
            f"{result.measure} scores every pairing of {result.n} pairs of arm {name!r} the same; leave it out of "
            "measures, or keep fewer directions"
        )
    return result.calibrated


def _cells(result: ArmScore) -> tuple[str, ...]:
    interval = f"{result.low:.4f} to {result.high:.4f}"
    return (result.name, result.measure, str(result.n), f"{result.score:.4f}", f"{result.se:.4f}", interval)
