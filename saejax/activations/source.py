"""What a trainer reads: batches of rows in an order that depends on the seed and the step alone."""

import dataclasses
from collections.abc import Generator, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32

from saejax.activations.filters import RowFilter
from saejax.activations.lanes import ALL
from saejax.activations.reader import blocks, documents_per_batch, require_chunks, shuffled_batches
from saejax.activations.store import Dtype, Store
from saejax.artifacts import read_manifest
from saejax.errors import InputError
from saejax.storage import Place

LIVE = "live"
"""Kind of the run that is a live source."""
HELD = 7
"""Batches that are held while an SAE trains on them: of what is read the last, the next, and what that is made of; on
the devices two that were put there ahead, that of the step, and that of the step before, which may still run."""


@runtime_checkable
class BatchSource(Protocol):
    """Where the rows come from: a store, or a model that runs meanwhile."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the manifest says of model and text."""
        ...

    @property
    def hook(self) -> str:
        """Whose activations."""
        ...

    @property
    def width(self) -> int:
        """Entries of a row."""
        ...

    @property
    def rows(self) -> int | None:
        """Rows of an epoch, where somebody has counted them."""
        ...

    @property
    def held_bytes(self) -> int:
        """Bytes of rows that are held while an SAE trains on them: what `held_bytes` of this module counts."""
        ...

    def batches(self, start_step: int = 0, part: slice = ALL) -> Generator[Float32[np.ndarray, "_ width"], None, None]:
        """Yield a part of the rows of each batch without end, from that of a step on, counted from 0."""
        ...

    def measured(
        self, rows_per_block: int, trained: int, share: int = 0, of: int = 1
    ) -> Iterator[Float32[np.ndarray, "rows width"]]:
        """Yield one of some shares of the rows on which an SAE is measured that was trained on the first `trained` of
        the stream.
        """
        ...

    def mixing(self) -> tuple[float, float | None]:
        """Measure from how many documents a batch comes, and would if all rows were shuffled."""
        ...


def open_source(
    place: Place, hook: str, rows: RowFilter, *, batch: int, seed: int, window_rows: int, lanes: int = 1
) -> "BatchSource":
    """Open what a trainer reads.

    Args:
        place: a store, or a live source.
        hook: whose activations.
        rows: which rows are read.
        batch: rows in a batch.
        seed: decides the order.
        window_rows: rows that are shuffled among each other.
        lanes: parts of a batch that are read apart.

    Raises:
        InputError: it is absent or damaged, lacks the hook, or has fewer rows left than a batch or chunks than lanes.
    """
    order = {"batch": batch, "seed": seed, "window_rows": window_rows, "lanes": lanes}
    if read_manifest(place)["kind"] == LIVE:
        from saejax.activations.live import LiveRows  # takes seconds to import, with all models

        return LiveRows.of(place, hook, rows, **order)
    return StoredRows.of(Store.open(place), hook, rows, **order)


@dataclasses.dataclass(frozen=True)
class StoredRows:
    """Rows of one hook of a store, shuffled; a `BatchSource`.

    Attributes:
        store: the store.
        hook: whose activations.
        kept: which rows are read.
        batch: rows in a batch.
        seed: decides the order.
        window_rows: rows that are shuffled among each other.
        lanes: parts of a batch that are read apart.
    """

    store: Store
    hook: str
    kept: Bool[np.ndarray, "rows"]
    batch: int
    seed: int
    window_rows: int
    lanes: int

    @classmethod
    def of(
        cls, store: Store, hook: str, rows: RowFilter, *, batch: int, seed: int, window_rows: int, lanes: int
    ) -> "StoredRows":
        """Find out which rows are read.

        Raises:
            InputError: the store lacks the hook, or has fewer rows left than a batch or chunks than lanes.
        """
        store.require(hook=hook)
        require_chunks(store, lanes)
        kept = rows.kept(store, hook)
        if batch > kept.sum():
            raise InputError(f"batch {batch} is larger than the store's {kept.sum()} rows; lower it or extract more")
        return cls(store, hook, kept, batch, seed, max(window_rows, lanes * store.chunk_rows), lanes)

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the store's manifest says."""
        return self.store.manifest["facts"]

    @property
    def width(self) -> int:
        """Entries of a row."""
        return self.store.width(self.hook)

    @property
    def rows(self) -> int:
        """Rows of an epoch."""
        return int(self.kept.sum())

    @property
    def held_bytes(self) -> int:
        """Bytes as `held_bytes` counts them, and of the flags of all rows."""
        return held_bytes(self.width, self.facts["dtype"], self.window_rows, self.batch, self.lanes) + self.store.rows

    def batches(self, start_step: int = 0, part: slice = ALL) -> Generator[Float32[np.ndarray, "_ width"], None, None]:
        """Yield a part of the rows of each batch without end, from that of a step on, counted from 0."""
        return shuffled_batches(
            self.store, self.hook, self.batch, self.seed, start_step,
            kept=self.kept, window_rows=self.window_rows, lanes=self.lanes, part=part,
        )  # fmt: skip

    def measured(
        self, rows_per_block: int, trained: int, share: int = 0, of: int = 1
    ) -> Iterator[Float32[np.ndarray, "rows width"]]:
        """Yield every row of a share once, in the order of the corpus, however many the SAE was `trained` on."""
        return (x for _, x in blocks(self.store, self.hook, rows_per_block, kept=self.kept, share=share, of=of))

    def mixing(self) -> tuple[float, float]:
        """Measure from how many documents a batch comes, and would if all rows were shuffled."""
        return documents_per_batch(
            self.store, self.batch, self.seed, kept=self.kept, window_rows=self.window_rows, lanes=self.lanes
        )


def held_bytes(width: int, dtype: Dtype, window_rows: int, batch: int, lanes: int) -> int:
    """Return the bytes of two windows with the numbers and places of their rows, and of `HELD` batches, of which lanes
    have one more, in which they come together.

    Args:
        width: entries of a row.
        dtype: of a window.
        window_rows: rows of a window.
        batch: rows of a batch, which are float32.
        lanes: parts of a batch that are read apart.
    """
    batches = HELD if lanes == 1 else HELD + 1
    return 2 * window_rows * (width * np.dtype(dtype).itemsize + 24) + batches * batch * width * 4
