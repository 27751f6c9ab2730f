"""Which feature each row is, and which rows are one feature: by id, or by equal rows where there are no ids."""

import dataclasses
import hashlib
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt32

from saejax.errors import InputError
from saejax.types import AnyArray

Ids = AnyArray | Sequence[Hashable]


@dataclasses.dataclass(frozen=True)
class Features:
    """The features of one side.

    Attributes:
        side: `x` or `y`.
        told: whether ids were given, rather than found from equal rows.
        names: the id of each feature, or its first row, in the order of their first rows.
        of_row: which feature each row is, by its place in `names`.
    """

    side: str
    told: bool
    names: tuple[Hashable, ...]
    of_row: Int[np.ndarray, "n"]

    @classmethod
    def of(cls, rows: np.ndarray, ids: Ids | None, side: str) -> "Features":
        """Find the features of a side.

        Args:
            rows: `[n, d]`.
            ids: which feature each row is; equal rows are one feature when None.
            side: `x` or `y`.

        Raises:
            InputError: there is not one id per row, or an id names nothing.
        """
        keys = [row.tobytes() for row in rows + 0.0] if ids is None else plain_values(ids, f"{side}_ids", "feature")
        if len(keys) != len(rows):
            raise InputError(f"{side}_ids has {len(keys)} ids for {len(rows)} rows of {side}; give one id per row")
        places: dict[Hashable, int] = {}
        of_row = np.array([places.setdefault(key, len(places)) for key in keys])
        first = np.unique(of_row, return_index=True)[1]
        return cls(side, ids is not None, tuple(first.tolist()) if ids is None else tuple(places), of_row)

    def rows_of(self, rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "features d"]:
        """Return the row of every feature.

        Raises:
            InputError: rows of one feature differ.
        """
        first = np.unique(self.of_row, return_index=True)[1]
        unlike = np.flatnonzero((rows != rows[first[self.of_row]]).any(axis=1))
        if len(unlike):
            row, feature = int(unlike[0]), int(self.of_row[unlike[0]])
            raise InputError(
                f"{self.side}_ids names feature {self.names[feature]} for rows {first[feature]} and {row}, which "
                "differ; give every feature its own row wherever it stands"
            )
        return rows[first]

    def words(self, of: Hashable) -> UInt32[np.ndarray, "features 2"]:
        """Return two words for every feature, from its id and the name of the set that ids are of."""
        digests = (hashlib.sha256(repr((of, name)).encode()).digest() for name in self.names)
        return np.stack([np.frombuffer(digest[:8], "<u4") for digest in digests]).astype(np.uint32)

    @property
    def later(self) -> Bool[np.ndarray, "n"]:
        """Which rows have a feature that stands in an earlier row too."""
        return np.diff(np.maximum.accumulate(self.of_row), prepend=-1) == 0

    @property
    def repeats(self) -> int:
        """Number of such rows."""
        return len(self.of_row) - len(self.names)

    def first_repeat(self) -> str:
        """Say which rows are the first of one feature."""
        later = int(np.flatnonzero(self.later)[0])
        earlier = int(np.flatnonzero(self.of_row == self.of_row[later])[0])
        if self.told:
            return f"{self.side}_ids names feature {self.names[self.of_row[later]]} for rows {earlier} and {later}"
        return f"rows {earlier} and {later} of {self.side} are equal"


def plain_values(values: Any, name: str, what: str) -> list[Hashable]:
    """Return one plain value per row, whatever library they are of: scalars of some are told apart by where they lie.

    Args:
        values: a list or an array of one axis.
        name: what errors call it.
        what: what a value names.

    Raises:
        InputError: there is another number of axes, or a value names nothing.
    """
    listed: Any = values if isinstance(values, Sequence) else np.asarray(values)
    if isinstance(listed, np.ndarray) and listed.ndim != 1:
        raise InputError(f"{name} has shape {listed.shape}; give one per row")
    keys = [each.item() if hasattr(each, "item") else each for each in listed]
    for row, key in enumerate(keys):
        if not isinstance(key, Hashable) or key != key:  # NaN is not itself
            raise InputError(f"{name} has {key!r} for row {row}, which names no {what}; give a number or a word")
    return keys
