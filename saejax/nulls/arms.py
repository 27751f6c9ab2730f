"""Does one set of pairs match more than another? The difference of two arms, with an interval.

SAE features against raw neurons, a layer against another, a subspace against random pairs of the same number. That one
arm is significant and the other is not says nothing of that: z and p grow with the number of pairs. Nor do raw scores,
whose null means differ with n and with the number of directions. So both arms are scored at one n, and by calibrated
scores, of which the null mean is 0 and a perfect match 1 (`NullResult.calibrated`); measures that lay directions on
each other (CCA and its kin) at one number of directions.

An arm of N > n pairs is cut to n at random, `replicates` times, and stands for the mean. How far it would be another
for other features of its kind is told by its standard error over features (`saejax.nulls.subsampling`), and the
interval of the difference is 1.96 times the root of both squared to either side. It held the true difference in 93 to
97 % of 150 simulated pairs of arms that match (N = 60 and 60, or 60 and 180, debiased CKA and RSA), and in 99 % of
those that do not.

Arms are resampled apart from each other. Where they share features, what they have in common cancels in the difference,
and the interval is too wide.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from saejax.errors import InputError
from saejax.nulls.budget import Impl
from saejax.nulls.engine import MEMORY_GIB
from saejax.nulls.numbers import whole
from saejax.nulls.results import Results, aligned
from saejax.nulls.subsampling import FEWEST, NORMAL, Arm, Subsets, units_of


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
    subsets = Subsets.checked(measures, scheme, permutations, replicates, seed, impl, memory_gib)
    if first.name == second.name:
        raise InputError(f"arms are both called {first.name!r}; give each its own name")
    pairs = [units_of(arm, scheme) for arm in (first, second)]
    n = min(pair.n for pair in pairs) if n is None else whole("n", n)
    for arm, pair in zip((first, second), pairs, strict=True):
        if not FEWEST <= n <= pair.n:
            raise InputError(f"n {n} must be from {FEWEST} to the {pair.n} pairs of arm {arm.name!r}")
    scored = [subsets.scored(arm.name, pair, n) for arm, pair in zip((first, second), pairs, strict=True)]
    results = ArmDifferences()
    for measure, *each in zip(subsets.measures, *scored, strict=True):
        (one, one_se, one_k), (other, other_se, other_k) = each
        kx, ky = _common(measure, sorted({*one_k, *other_k}))
        difference, se = one - other, float(np.hypot(one_se, other_se))
        results.append(
            ArmDifference(
                measure=measure, first=first.name, second=second.name, n=n, first_pairs=pairs[0].n,
                second_pairs=pairs[1].n, first_score=one, second_score=other, difference=difference, se=se,
                low=difference - NORMAL * se, high=difference + NORMAL * se, kx=kx, ky=ky,
                replicates=subsets.replicates, permutations=subsets.options["permutations"], scheme=scheme,
                seed=subsets.seed,
            )
        )  # fmt: skip
    return results


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


def _cells(result: ArmDifference) -> tuple[str, ...]:
    scores = (f"{value:.4f}" for value in (result.first_score, result.second_score, result.difference, result.se))
    return (result.measure, str(result.n), *scores, f"{result.low:.4f} to {result.high:.4f}")
