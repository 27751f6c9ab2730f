"""Do tests keep their level? Shares of simulated pairings without a match that are rejected all the same.

A p is valid when P(p <= a) <= a for every a. Where the observed score may tie with draws, P(p <= a) falls short of a;
then p with the place of the observed score among its ties drawn at random, (g + U (t + 1)) / (m + 1) with g draws
above, t ties and U uniform, is uniform all the same if the units are exchangeable. So both are looked at: shares of
rejections against a binomial law, and the randomised p against the uniform one by Kolmogorov and Smirnov's test.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import scipy.stats
from jaxtyping import Float

from saejax.nulls.arrangement import Duplicates
from saejax.nulls.budget import Impl
from saejax.nulls.replicates import replicate_tests
from saejax.nulls.results import NullResult
from saejax.nulls.schemes import find_scheme
from saejax.nulls.worlds import World

LEVELS = (0.01, 0.05, 0.1)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How a measure's p is distributed over pairings of one world.

    Attributes:
        measure: name of the measure.
        p_values: p of each pairing, one-sided towards more similar.
        randomised: the same with ties broken at random.
        mean_z: mean of z, by the draws' mean and standard deviation.
        sd_z: its standard deviation, near 1 for a score whose null is near normal.
    """

    measure: str
    p_values: Float[np.ndarray, "replicates"] = dataclasses.field(repr=False)
    randomised: Float[np.ndarray, "replicates"] = dataclasses.field(repr=False)
    mean_z: float
    sd_z: float

    def rejected(self, level: float) -> int:
        """Return how many pairings are rejected at a level."""
        return int(np.sum(self.p_values <= level))

    def excess_p(self, level: float) -> float:
        """Return the chance of as many rejections if each pairing is rejected with the chance of the level."""
        return float(scipy.stats.binom.sf(self.rejected(level) - 1, len(self.p_values), level))

    def uniform_p(self) -> float:
        """Return the p of Kolmogorov and Smirnov's test that the randomised p is uniform."""
        return float(scipy.stats.kstest(self.randomised, "uniform").pvalue)

    def record(self) -> dict[str, Any]:
        """Return shares of rejections and moments of z as plain JSON values."""
        shares = {f"at_{level:g}": self.rejected(level) / len(self.p_values) for level in LEVELS}
        return {
            "measure": self.measure, **shares, "uniform_p": self.uniform_p(), "mean_z": self.mean_z, "sd_z": self.sd_z,
        }  # fmt: skip


def calibrate(
    world: World,
    *,
    measures: Sequence[str],
    scheme: str,
    seeds: Iterable[int],
    n: int = 40,
    dx: int = 6,
    dy: int = 5,
    permutations: int = 99,
    duplicates: Duplicates = "refuse",
    impl: Impl = "jax",
) -> list[Calibration]:
    """Test pairings of a world, each with re-pairings of its own.

    Args:
        world: makes the pairings, from `saejax.nulls.worlds`.
        measures: as in `permutation_test`.
        scheme: name of the set of re-pairings that are equally likely.
        seeds: consecutive numbers, one for each pairing; they decide all chance.
        n: rows of a pairing.
        dx: width of x.
        dy: width of y.
        permutations: re-pairings of each pairing.
        duplicates: as in `permutation_test`.
        impl: as in `replicate_tests`.

    Returns:
        One for each measure.
    """
    seeds = list(seeds)
    labels = find_scheme(scheme).needs_labels
    cells = (world(np.random.default_rng(seed), n, dx, dy) for seed in seeds)
    results = replicate_tests(
        (cell if labels else dataclasses.replace(cell, row_labels=None) for cell in cells),
        measures=measures, scheme=scheme, permutations=permutations, seed=seeds[0], duplicates=duplicates, impl=impl,
    )  # fmt: skip
    return [_calibration(by_measure, seeds) for by_measure in zip(*results, strict=True)]


def _calibration(results: Sequence[NullResult], seeds: Sequence[int]) -> Calibration:
    z = np.array([np.nan if result.z is None else result.z for result in results])
    ties = zip(results, seeds, strict=True)
    return Calibration(
        measure=results[0].measure,
        p_values=np.array([result.p_value for result in results]),
        randomised=np.array([randomised_p(result, np.random.default_rng([seed, 1]).random()) for result, seed in ties]),
        mean_z=float(np.nanmean(z)),
        sd_z=float(np.nanstd(z, ddof=1)),
    )


def randomised_p(result: NullResult, place: float) -> float:
    """Return p with the observed score at a given place among the draws that tie with it.

    Args:
        result: of re-pairings drawn at random.
        place: 0 to 1, uniform where ties are broken at random.
    """
    ties = result.exceedances + result.shortfalls - result.permutations
    return (result.exceedances - ties + place * (ties + 1)) / (result.permutations + 1)
