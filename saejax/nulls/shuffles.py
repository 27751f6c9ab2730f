"""The re-pairings that a scheme makes equally likely: drawn at random, or all of them in a list.

What is exchanged is a unit: a row, or a block of consecutive rows that move together. Units go to each other's places
among all of them, or within strata. Drawn at random, re-pairing i is a function of the seed and i
(`saejax.nulls.permutations`). Where there are few, all can be listed: number i in the factorial number system says
for each stratum, and for each place in it, which of the units that are left goes there.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Int, Int32, UInt32

from saejax.nulls import permutations as drawing

MOST_LISTED = drawing.MOST_PERMUTATIONS


@dataclasses.dataclass(frozen=True, eq=False)
class Shuffle:
    """Which rows of y may take whose place.

    Attributes:
        n: rows.
        strata: a number per unit, at least 0; units are exchanged among those of their number. All when None.
        together: consecutive rows of a unit, a divisor of n.
        names: two words per unit, so that re-pairing i puts two units in the same order in every shuffle that has
            both; each shuffle draws for itself when None.
    """

    n: int
    strata: Int32[np.ndarray, "units"] | None = None
    together: int = 1
    names: UInt32[np.ndarray, "units 2"] | None = None

    @property
    def plain(self) -> bool:
        """Whether every row may take any place: all n! re-pairings, of which exact moments are known."""
        return self.strata is None and self.together == 1

    @property
    def drawn_on_devices(self) -> bool:
        """Whether a device can draw it: any row to any place, by its number."""
        return self.plain and self.names is None

    @property
    def units(self) -> int:
        """Number of units."""
        return self.n // self.together

    @property
    def sizes(self) -> Int[np.ndarray, "strata"]:
        """Units of each stratum."""
        return np.array([self.units]) if self.strata is None else np.unique(self.strata, return_counts=True)[1]

    @property
    def count(self) -> int | None:
        """Number of different re-pairings; None where it is above `MOST_LISTED`."""
        count = 1
        for size in self.sizes[self.sizes > 1].tolist():
            for factor in range(2, size + 1):
                count *= factor
                if count > MOST_LISTED:
                    return None
        return count

    def numbered(
        self, key: UInt32[np.ndarray, "2"], numbers: Int[np.ndarray, "perm"], listed: bool
    ) -> UInt32[np.ndarray, "perm n"]:
        """Return re-pairings by their numbers, on the host: from the list of all, or at random."""
        return self.listed(numbers) if listed else self.drawn(key, numbers.astype(np.uint32))

    def drawn(self, key: UInt32[np.ndarray, "2"], indices: UInt32[np.ndarray, "perm"]) -> UInt32[np.ndarray, "perm n"]:
        """Return random re-pairings by their numbers, on the host."""
        return self._of_rows(drawing.on_host(key, indices, self.units, self.strata, self.names))

    def listed(self, indices: Int[np.ndarray, "perm"]) -> UInt32[np.ndarray, "perm n"]:
        """Return re-pairings by their places in the list of all, the first of which changes nothing.

        Args:
            indices: places, from 0; past the end, the list begins anew.
        """
        perms = np.tile(np.arange(self.units, dtype=np.uint32), (len(indices), 1))
        rest = indices.astype(np.int64)
        strata = np.zeros(self.units, np.int32) if self.strata is None else self.strata
        for members in np.split(np.argsort(strata, kind="stable"), np.cumsum(self.sizes)[:-1]):
            rest, code = np.divmod(rest, math.factorial(len(members)) if len(members) > 1 else 1)
            left = np.tile(members, (len(indices), 1))
            for place in range(len(members) - 1):
                chosen, code = np.divmod(code, math.factorial(len(members) - 1 - place))
                perms[:, members[place]] = np.take_along_axis(left, chosen[:, None], axis=1)[:, 0]
                left = left[np.arange(left.shape[1]) != chosen[:, None]].reshape(len(indices), -1)
            perms[:, members[-1]] = left[:, 0]
        return self._of_rows(perms)

    def _of_rows(self, perms: UInt32[np.ndarray, "perm units"]) -> UInt32[np.ndarray, "perm n"]:
        """Return permutations of rows that move units as they are told."""
        if self.together == 1:
            return perms
        first = perms[:, :, None] * np.uint32(self.together)
        return (first + np.arange(self.together, dtype=np.uint32)).reshape(len(perms), self.n)
