"""A null whose every draw is scored from nothing.

Other nulls do once what a re-pairing leaves alone: column means, bases, norms, ranks. Where a draw changes which rows
there are, and not only their order, none of that stays. So each draw here is a pair of matrices of its own, scored in
float64 by the same algebra: as slow as a script that does everything anew, seconds a draw at n = 4,000.

A core is the score, with its sign turned where larger scores are less similar.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt32

from saejax.nulls.scoring import Plan
from saejax.nulls.shuffles import Shuffle
from saejax.similarity import Measure, Pair
from saejax.similarity.measure import Bounds, exactly
from saejax.types import Permutation

BATCH = 16  # draws between commits
TIE = 1e-11  # of scores that are equal in exact arithmetic, relative to 1 or to the observed score


@dataclasses.dataclass(frozen=True)
class Recomputed:
    """Re-pairings of units that each make two matrices of their own; what `Null` is to others.

    Attributes:
        shuffle: which re-pairings of the units are equally likely.
        listed: whether re-pairing i is number i in the list of all, not a random one.
        key: Threefry key of the re-pairings.
        pairing: the matrices of a re-pairing.
        measures: the measures.
        plan: the same, of cores that are scores.
        own: nothing, by measure: what `NullResult` is made by asks for it.
        observed: core of the pairing as it stands, by measure.
    """

    shuffle: Shuffle
    listed: bool
    key: UInt32[np.ndarray, "2"]
    pairing: Callable[[Permutation], Pair]
    measures: tuple[Measure, ...]
    plan: Plan
    own: tuple[None, ...]
    observed: tuple[float, ...]

    @classmethod
    def prepare(
        cls,
        shuffle: Shuffle,
        pairing: Callable[[Permutation], Pair],
        measures: Sequence[Measure],
        key: UInt32[np.ndarray, "2"],
        *,
        listed: bool,
    ) -> "Recomputed":
        """Score the observed pairing.

        Args:
            shuffle: which re-pairings of the units are equally likely.
            pairing: makes the matrices of a re-pairing.
            measures: the measures.
            key: Threefry key of the re-pairings.
            listed: whether re-pairing i is number i in the list of all, not a random one.
        """
        pair, told, observed = pairing(np.arange(shuffle.n)), [], []
        for measure in measures:
            core, error = score_anew(measure, pair)
            observed.append(core)
            told.append(reporting_scores(measure, TIE * max(1.0, abs(core)), error))
        plan, own = Plan(tuple(told), (), ()), (None,) * len(told)
        return cls(shuffle, listed, key, pairing, tuple(measures), plan, own, tuple(observed))

    @property
    def n(self) -> int:
        """Number of units."""
        return self.shuffle.n

    def parallel(self) -> int:
        """Return 1: draws are made one by one."""
        return 1

    def largest_batch(self) -> int:
        """Return how many draws are made between commits."""
        return BATCH

    def state_bytes(self) -> int:
        """Return 0: what a draw makes is let go with it."""
        return 0

    def held_bytes(self) -> int:
        """Return 0."""
        return 0

    def score_range(self, start: int, stop: int) -> list[Bounds]:
        """Return the cores of re-pairings `start` to `stop - 1`, by measure."""
        perms = self.shuffle.numbered(self.key, np.arange(start, stop), self.listed)
        cores = [[score_anew(measure, pair)[0] for measure in self.measures] for pair in map(self.pairing, perms)]
        return [exactly(np.array(each)) for each in zip(*cores, strict=True)]

    def settle(self, start: int, bounds: Sequence[Bounds]) -> tuple[np.ndarray, np.ndarray]:
        """Return cores `[measures, perm]`, ties as such, and that none was scored again."""
        cores = np.stack([each.low for each in bounds])
        observed = np.array(self.observed)[:, None]
        ties = np.abs(cores - observed) <= np.array([measure.tolerance for measure in self.plan.measures])[:, None]
        return np.where(ties, observed, cores), np.zeros(cores.shape, bool)


def reporting_scores(measure: Measure, tolerance: float, score_error: float) -> Measure:
    """Return a measure whose cores are its scores, with their sign turned where larger is less similar.

    Args:
        measure: the measure.
        tolerance: of scores.
        score_error: bound on how far any score is from the definition's.
    """
    return dataclasses.replace(
        measure, score_of=lambda own, core: signed(measure, core), tolerance=tolerance,
        score_error=lambda own: score_error,
    )  # fmt: skip


def signed(measure: Measure, score: np.ndarray | float) -> Any:
    """Return scores so that larger is more similar."""
    return score if measure.larger_is_more_similar else -score


def score_anew(measure: Measure, pair: Pair) -> tuple[float, float]:
    """Return the signed score of two matrices in float64, and the bound on its error.

    Args:
        measure: the measure.
        pair: the matrices.

    Raises:
        InputError: the measure cannot compare them.
    """
    measure.check(pair)
    state = measure.prepare_pair(pair)
    return signed(measure, measure.score_exact(state, np.arange(pair.n))), measure.score_error(state.own)
