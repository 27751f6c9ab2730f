"""Which rows of a store are read: filters at read time, so that one store serves every choice.

Attention sinks, first positions mostly, have norms of a hundred times the median in many models: they dominate the
variance that an SAE is measured by, and kill a quarter of its latents early.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Bool

from saejax.activations.ledger import Columns
from saejax.activations.store import Store
from saejax.errors import InputError
from saejax.progress import progress

BLOCK = 65_536
"""Rows of which norms are taken at a time."""


@dataclasses.dataclass(frozen=True)
class RowFilter:
    """Rows to leave out: those of special tokens, unless they are asked for, and what else is named."""

    first_position: int = 0
    """Tokens at the beginning of each document to leave out."""
    last_position: int | None = None
    """Place in the document, in tokens, behind which all are left out."""
    first_document: int = 0
    """Documents at the beginning of the store to leave out."""
    last_document: int | None = None
    """Number of the document, from 0, behind which all are left out."""
    max_norm: float | None = None
    """Multiple of the median norm above which a row is left out; norms are about zero, of rows that are left in."""
    specials: bool = False
    """Rows of special tokens are read too."""

    def __post_init__(self) -> None:
        """Refuse ranges without a row."""
        problems = []
        for unit in ("position", "document"):
            first, last = getattr(self, f"first_{unit}"), getattr(self, f"last_{unit}")
            if first < 0:
                problems.append(f"first_{unit} {first}; give at least 0")
            if last is not None and last < first:
                problems.append(f"last_{unit} {last} is before first_{unit} {first}; raise it")
        if self.max_norm is not None and not 1 <= self.max_norm < math.inf:
            problems.append(f"max_norm {self.max_norm}; give at least 1, the median")
        if problems:
            raise InputError("; ".join(problems))

    def kept(self, store: Store, hook: str) -> Bool[np.ndarray, "rows"]:
        """Say which rows of a store are read.

        Memory: 5 bytes a row. With `max_norm` all activations of the hook are read once.

        Args:
            store: the store.
            hook: whose norms count.

        Returns:
            True for each row to read.

        Raises:
            InputError: no row is left, or the store is damaged.
        """
        kept = np.ones(store.rows, bool) if self.specials else store.kept.copy()
        if (self.first_position, self.last_position, self.first_document, self.last_document) != (0, None, 0, None):
            for start in range(0, store.rows, BLOCK):
                stop = min(start + BLOCK, store.rows)
                kept[start:stop] &= self._in_ranges(store.ledger(start, stop, ["position", "document"]))
        if self.max_norm is not None and kept.any():
            norms = _norms(store, hook)
            kept &= norms <= self.max_norm * np.median(norms[kept])
        if not kept.any():
            raise InputError(f"no row of store {store.path} is left by {self}; leave out less")
        return kept

    def within(self, columns: Columns) -> Bool[np.ndarray, "rows"]:
        """Say which rows are left before any is left out for its norm.

        Args:
            columns: `position`, `document` and `special` of a ledger.
        """
        within = self._in_ranges(columns)
        return within if self.specials else within & ~columns["special"]

    def _in_ranges(self, columns: Columns) -> Bool[np.ndarray, "rows"]:
        kept = np.ones(len(columns["position"]), bool)
        for unit in ("position", "document"):
            first, last = getattr(self, f"first_{unit}"), getattr(self, f"last_{unit}")
            kept &= (columns[unit] >= first) & (columns[unit] <= (np.iinfo(np.int32).max if last is None else last))
        return kept


def _norms(store: Store, hook: str) -> np.ndarray:
    norms = np.empty(store.rows, np.float32)
    with progress("norms of activations", store.rows) as advance:
        for start in range(0, store.rows, BLOCK):
            stop = min(start + BLOCK, store.rows)
            norms[start:stop] = np.linalg.norm(store.read(hook, start, stop), axis=1)
            advance(stop - start)
    return norms
