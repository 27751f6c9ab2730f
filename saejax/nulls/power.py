"""How often a true match of so many pairs would be seen: the power of each measure, by simulation.

A result that is not significant says little where a match would not have been seen. So pairings are simulated in which
a share of the pairs match, up to a rotation and noise (`saejax.nulls.worlds.planted`), and each is tested. Their rows
are normal, alike in all directions. Those of a dictionary are not: dx and dy that hold most of its variance say more
than its full widths.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from saejax.errors import InputError
from saejax.nulls.budget import Impl, default_impl
from saejax.nulls.inference import clopper_pearson
from saejax.nulls.numbers import check_numbers, whole
from saejax.nulls.replicates import replicate_tests
from saejax.nulls.results import Results, aligned
from saejax.nulls.worlds import planted
from saejax.progress import progress

SMALL = 64  # pairs up to which a CPU scores pairings faster together


@dataclasses.dataclass(frozen=True)
class Power:
    """How often a match is seen.

    Attributes:
        measure: name of the measure.
        n: pairs.
        dx: width of x.
        dy: width of y.
        fraction: share of the pairs that match.
        noise: standard deviation of the noise over that of what matches.
        level: a pairing is seen to match when p is at most this.
        permutations: re-pairings of each pairing.
        pairings: simulated pairings.
        power: share of them that were seen to match.
        low: lower 95 % Clopper-Pearson bound of the power.
        high: the upper bound.
    """

    measure: str
    n: int
    dx: int
    dy: int
    fraction: float
    noise: float
    level: float
    permutations: int
    pairings: int
    power: float
    low: float
    high: float


class Powers(Results[Power]):
    """Results in the order of the measures; prints as a table."""

    def records(self) -> list[dict[str, Any]]:
        """Return the fields of every result."""
        return [dataclasses.asdict(result) for result in self]

    def lines(self) -> list[str]:
        """Return the lines of the table."""
        head = ("measure", "n", "matching", "noise", "level", "power", "95 % interval")
        return aligned([head, *map(_cells, self)])


def simulate_power(
    *,
    measures: Sequence[str],
    n: int,
    dx: int,
    dy: int,
    fraction: float,
    noise: float,
    level: float = 0.05,
    permutations: int = 99,
    pairings: int = 200,
    seed: int,
    impl: Impl | None = None,
) -> Powers:
    """Simulate how often a match of n pairs is seen.

    Args:
        measures: names, as in `permutation_test`.
        n: pairs.
        dx: width of x; the directions that hold most of the variance of its rows.
        dy: the same for y.
        fraction: share of the pairs that match, 0 to 1.
        noise: standard deviation of the noise in what matches, over that of what matches; at 1, a row of y has
            correlation .71 with its partner, rotated.
        level: a pairing is seen to match when p is at most this.
        permutations: re-pairings of each pairing; more raise the power a little.
        pairings: simulated pairings; 200 tell power to .07.
        seed: seed of all chance, 0 to 2^63 - 1.
        impl: as in `permutation_test`.

    Returns:
        One result per measure.

    Raises:
        InputError: a number is out of its range, no p can be as small as the level, or a measure cannot score n pairs
            of such widths.
    """
    sizes = {"n": n, "dx": dx, "dy": dy, "permutations": permutations, "pairings": pairings}
    sizes = {name: whole(name, number) for name, number in sizes.items()}
    for name, number in sizes.items():
        if number < 1:
            raise InputError(f"{name} {number} must be at least 1")
    n, permutations, seed = sizes["n"], sizes["permutations"], whole("seed", seed)
    check_numbers(permutations, 0, None, 1.0, impl)
    if not 0 <= fraction <= 1:
        raise InputError(f"fraction {fraction} must lie between 0 and 1")
    if not 0 <= noise < math.inf:
        raise InputError(f"noise {noise} must be at least 0, and finite")
    if not 1 / (permutations + 1) <= level < 1:
        raise InputError(
            f"level {level} must lie between 1 / (permutations + 1), {1 / (permutations + 1):.3g}, and 1; ask for more "
            "permutations or a larger level"
        )
    chance = np.random.default_rng(seed)
    with progress(f"power of {', '.join(measures)}", total=sizes["pairings"]) as advance:

        def simulated() -> Any:
            for _ in range(sizes["pairings"]):
                yield planted(chance, n, sizes["dx"], sizes["dy"], fraction, noise)
                advance()

        results = replicate_tests(
            simulated(), measures=measures, scheme="uniform", permutations=permutations, seed=seed,
            impl=impl or ("jax" if n <= SMALL else default_impl()),
        )  # fmt: skip
    return Powers(_power(by_measure, sizes, fraction, noise, level) for by_measure in zip(*results, strict=True))


def _power(results: Sequence[Any], sizes: dict[str, int], fraction: float, noise: float, level: float) -> Power:
    """Return the share of results that reject."""
    seen, made = sum(result.p_value <= level for result in results), len(results)
    low, high = clopper_pearson(seen, made)
    return Power(
        measure=results[0].measure, fraction=fraction, noise=noise, level=level, power=seen / made, low=low, high=high,
        **sizes,
    )  # fmt: skip


def _cells(result: Power) -> tuple[str, ...]:
    interval = f"{result.low:.2f} - {result.high:.2f}"
    numbers = (f"{result.fraction:g}", f"{result.noise:g}", f"{result.level:g}", f"{result.power:.2f}")
    return (result.measure, str(result.n), *numbers, interval)
