"""What a caller says about a pairing, and what a scheme makes of it."""

import dataclasses
from collections.abc import Callable, Hashable, Iterator
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import UInt32

from saejax import artifacts
from saejax.errors import InputError
from saejax.nulls.identity import Ids
from saejax.nulls.shuffles import Shuffle
from saejax.similarity import Pair
from saejax.types import Permutation

Duplicates = Literal["refuse", "accept"]


@dataclasses.dataclass(frozen=True)
class Told:
    """What a caller says about the rows of a pairing.

    Attributes:
        x_ids: which feature each row of x is.
        y_ids: the same for y.
        row_labels: the stratum of each pair, or the document of each stimulus.
        duplicates: whether features in several pairs are refused, or accepted as if each pair were of its own.
        coupled: the side whose features draw by what they are, `x` or `y`, and the name of the set that its ids are
            of; rows draw by their places when None.
    """

    x_ids: Ids | None = None
    y_ids: Ids | None = None
    row_labels: Ids | None = None
    duplicates: str = "refuse"
    coupled: tuple[str, Hashable] | None = None

    def __post_init__(self) -> None:
        """Refuse a word for duplicates that is none of the two."""
        if self.duplicates not in get_args(Duplicates):
            raise InputError(f"duplicates {self.duplicates!r} must be one of {', '.join(get_args(Duplicates))}")


class Arrangement(NamedTuple):
    """What a scheme makes of a pairing.

    Attributes:
        pair: the matrices whose rows are re-paired.
        shuffle: the re-pairings that are equally likely.
        rows: number of pairs that it was made of.
        repeats: pairs with a feature that stands in an earlier pair too, accepted all the same.
        fixed: units that have no other to be exchanged with.
        beside: digests of what decides the null beside `pair` and `shuffle`.
        pairing: the matrices of a re-pairing of the units, where each re-pairing has its own.
        picks: number of random picks of pairs, one of each unit, where those are what is re-paired.
        pick: makes them from the key of a null.
    """

    pair: Pair
    shuffle: Shuffle
    rows: int
    repeats: int = 0
    fixed: int = 0
    beside: tuple[str, ...] = ()
    pairing: Callable[[Permutation], Pair] | None = None
    picks: int = 0
    pick: Callable[[UInt32[np.ndarray, "2"]], Iterator[Pair]] | None = None

    @property
    def plain(self) -> bool:
        """Whether any row of `pair` may take any place, and nothing else changes: what exact moments are of."""
        return self.shuffle.plain and self.pairing is None and self.pick is None

    def digests(self) -> dict[str, str]:
        """Return what identifies the matrices, and their re-pairings where those are not all of them."""
        found = {name: artifacts.array_sha256(side.values) for name, side in self.pair.sides}
        if not self.plain:
            strata = [] if self.shuffle.strata is None else self.shuffle.strata.tolist()
            found["shuffle"] = artifacts.fingerprint([strata, self.shuffle.together, self.beside])
        if self.shuffle.names is not None:
            found["names"] = artifacts.array_sha256(self.shuffle.names)
        return found
