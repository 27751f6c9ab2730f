"""A null of many one-to-one picks from a many-to-one pairing, all re-paired together.

Each feature that repeats is paired with one of its partners, drawn at random, and that for a number of picks. The
statistic is the mean score over picks. A re-pairing exchanges whole features: the same in every pick, so that what
moves is a feature with all partners that were drawn for it. That makes the mean a statistic of exchangeable units, and
its p a valid one, whatever the picks. How far scores of single picks lie apart is what pairing one-to-one by chance
would have done.

A core is the mean score, with its sign turned where larger scores are less similar.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt32

from saejax.nulls.recomputed import reporting_scores, signed
from saejax.nulls.scoring import Null, Plan, settle
from saejax.nulls.shuffles import Shuffle
from saejax.similarity.measure import Bounds
from saejax.types import Permutation, Permutations


@dataclasses.dataclass(frozen=True)
class Representatives:
    """Nulls of several picks, as one; what `Null` is to others.

    Attributes:
        nulls: one per pick, of the same units, measures and key.
        plan: the measures, of cores that are mean scores.
        own: nothing, by measure.
        picked: signed scores of the pairing as it stands.
        constant: whether every re-pairing has the observed core, by measure.
    """

    nulls: tuple[Null, ...]
    plan: Plan
    own: tuple[None, ...]
    picked: Float[np.ndarray, "measures picks"]
    constant: tuple[bool, ...]

    @classmethod
    def of(cls, nulls: Sequence[Null]) -> "Representatives":
        """Join the nulls of picks."""
        measures, picked, told = nulls[0].plan.measures, [], []
        for place, measure in enumerate(measures):
            cores = np.array([null.observed[place] for null in nulls])
            low, middle, high = (_scores(nulls, place, cores + side * measure.tolerance) for side in (-1, 0, 1))
            error = max(measure.score_error(null.own[place]) for null in nulls)
            picked.append(middle)
            told.append(reporting_scores(measure, float(np.max(high - low)) / 2, error))
        constant = tuple(all(null.constant[place] for null in nulls) for place in range(len(measures)))
        return cls(tuple(nulls), Plan(tuple(told), (), ()), (None,) * len(told), np.array(picked), constant)

    @property
    def observed(self) -> tuple[float, ...]:
        """Core of the pairing as it stands, by measure."""
        return tuple(self.picked.mean(axis=1).tolist())

    @property
    def shuffle(self) -> Shuffle:
        """Which re-pairings are equally likely."""
        return self.nulls[0].shuffle

    @property
    def listed(self) -> bool:
        """Whether re-pairing i is number i in the list of all, not a random one."""
        return self.nulls[0].listed

    @property
    def key(self) -> UInt32[np.ndarray, "2"]:
        """Threefry key of the re-pairings."""
        return self.nulls[0].key

    @property
    def n(self) -> int:
        """Number of features that are re-paired."""
        return self.nulls[0].n

    def parallel(self) -> int:
        """Return how many devices share a batch."""
        return self.nulls[0].parallel()

    def largest_batch(self) -> int:
        """Return how many re-pairings may be scored together."""
        return min(null.largest_batch() for null in self.nulls)

    def state_bytes(self) -> int:
        """Return the bytes of all states."""
        return sum(null.state_bytes() for null in self.nulls)

    def held_bytes(self) -> int:
        """Return the bytes of all states and of the largest batch, of which there is one at a time."""
        return self.state_bytes() + self.largest_batch() * self.nulls[0].bytes_each()

    def perms(self, numbers: Int[np.ndarray, "perm"]) -> Permutations:
        """Return re-pairings by their numbers, on the host."""
        return self.nulls[0].perms(numbers)

    def score_range(self, start: int, stop: int) -> list[Bounds]:
        """Return the cores of re-pairings `start` to `stop - 1`, by measure, as intervals of arrays."""
        by_pick = [null.score_range(start, stop) for null in self.nulls]
        return [Bounds(*(self._mean(by_pick, place, end) for end in (0, 1))) for place in range(len(self.observed))]

    def _mean(self, by_pick: Sequence[Sequence[Bounds]], place: int, end: int) -> Float[np.ndarray, "perm"]:
        return _scores(self.nulls, place, np.array([bounds[place][end] for bounds in by_pick])).mean(axis=0)

    def settle(self, start: int, bounds: Sequence[Bounds]) -> tuple[np.ndarray, np.ndarray]:
        """Score draws again in float64 that float32 cannot tell."""
        return settle(self, start, bounds)

    def rescore(self, chosen: Sequence[int], perm: Permutation) -> list[float]:
        """Return the float64 core of one re-pairing by each of some measures."""
        cores = np.array([null.rescore(chosen, perm) for null in self.nulls])
        return [float(_scores(self.nulls, place, cores[:, row]).mean()) for row, place in enumerate(chosen)]


def _scores(
    nulls: Sequence[Null], place: int, cores: Float[np.ndarray, "picks *perm"]
) -> Float[np.ndarray, "picks *perm"]:
    """Return the signed scores of cores of one measure, by pick."""
    measures = [null.plan.measures[place] for null in nulls]
    pairs = zip(measures, nulls, cores, strict=True)
    return np.array(
        [signed(measure, measure.scores(null.own[place], np.asarray(core))) for measure, null, core in pairs]
    )
