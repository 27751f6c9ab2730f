"""Read a store: in shuffled batches for training, or block by block for statistics.

Shuffling rewrites nothing and keeps no state. Every epoch the store's chunks are put in a random order and
cut into windows; a window is read whole, chunk by chunk, and its rows are served in a random order. Both
orders are functions of the seed, so the rows of a step depend on the seed and the step alone, and a run
resumes at any step at once. Rows of special tokens are left out, and what a filter leaves out.
"""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from saejax.activations.index_permutation import IndexPermutation
from saejax.activations.prefetch import prefetch
from saejax.activations.store import Store, aligned
from saejax.errors import InputError

WINDOW_ROWS = 131_072


def shuffled_batches(
    store: Store,
    hook: str,
    batch: int,
    seed: int,
    start_step: int = 0,
    *,
    kept: Bool[np.ndarray, "rows"] | None = None,
    window_rows: int = WINDOW_ROWS,
) -> Iterator[Float32[np.ndarray, "batch width"]]:
    """Yield batches of shuffled rows without end, epoch after epoch in a new order.

    Every row that is kept comes once per epoch; a batch may span two epochs. Memory: two windows
    in the stored dtype, 2 x window_rows x (width x bytes per entry + 8), and three batches.

    Args:
        store: what to read.
        hook: whose activations.
        batch: rows in a batch.
        seed: decides the order.
        start_step: the first batch yielded is that of this step, counted from 0.
        kept: which rows are read (`saejax.activations.filters`); all that are no special tokens when not given.
        window_rows: rows that are shuffled among each other; more mix text from further apart.

    Returns:
        An iterator that prepares batches ahead in a thread.

    Raises:
        InputError: the store lacks the hook or has fewer rows than a batch; while iterating: it is damaged.
    """
    store.require(hook=hook)
    kept = store.kept if kept is None else kept
    if not 1 <= batch <= kept.sum():
        raise InputError(f"batch {batch} is not from 1 to the store's {kept.sum()} rows; extract more or lower it")
    if start_step < 0 or window_rows < store.chunk_rows:
        raise InputError(
            f"start_step {start_step} or window_rows {window_rows} is too low; they are from 0 and from "
            f"{store.chunk_rows}, a chunk"
        )
    chunks_per_window = window_rows // store.chunk_rows
    windows = prefetch(
        (store.read_spans(hook, spans), order)
        for spans, order in _windows(store, seed, start_step * batch, kept, chunks_per_window)
    )
    return prefetch(batches_of(windows, batch))


def documents_per_batch(
    store: Store,
    batch: int,
    seed: int,
    *,
    kept: Bool[np.ndarray, "rows"] | None = None,
    window_rows: int = WINDOW_ROWS,
    batches: int = 20,
) -> tuple[float, float]:
    """Measure how well batches are mixed: from how many documents a batch comes, and would if all rows were shuffled.

    Args:
        store: what to read.
        batch: rows in a batch.
        seed: decides the order.
        kept: which rows are read.
        window_rows: rows that are shuffled among each other.
        batches: batches of the first epoch to look at, at most.

    Returns:
        Mean number of different documents in a batch; what is expected of a batch drawn from all rows.
    """
    kept = store.kept if kept is None else kept
    document = store.ledger(0, store.rows, ["document"])["document"]
    spans_of = _windows(store, seed, 0, kept, max(window_rows // store.chunk_rows, 1))
    windows = (
        (np.concatenate([document[low:high] for low, high in spans])[:, None], order) for spans, order in spans_of
    )
    looked_at = max(min(batches, int(kept.sum()) // batch), 1)
    found = [len(np.unique(rows)) for rows in itertools.islice(batches_of(windows, batch), looked_at)]
    share = np.bincount(document[kept]) / kept.sum()
    return float(np.mean(found)), float(np.sum(1 - (1 - share) ** batch))


def _windows(
    store: Store, seed: int, first: int, kept: Bool[np.ndarray, "rows"], chunks_per_window: int
) -> Iterator[tuple[list[tuple[int, int]], Int[np.ndarray, "order"]]]:
    """Yield the spans of each window and the order in which to serve its rows, from place `first` of the stream on."""
    of_chunk = np.add.reduceat(kept, np.arange(0, store.rows, store.chunk_rows), dtype=np.int64)
    first_epoch, passed = divmod(first, int(of_chunk.sum()))
    chunks = np.arange(len(of_chunk))
    for epoch in itertools.count(first_epoch):
        order = IndexPermutation(len(chunks), (seed, epoch))(chunks)
        for start in range(0, len(chunks), chunks_per_window):
            chosen = order[start : start + chunks_per_window]
            count = int(of_chunk[chosen].sum())
            if count <= passed:
                passed -= count
                continue
            ends = np.minimum((chosen + 1) * store.chunk_rows, store.rows)
            spans = list(zip((chosen * store.chunk_rows).tolist(), ends.tolist(), strict=True))
            rows = np.flatnonzero(np.concatenate([kept[low:high] for low, high in spans]))
            shuffle = IndexPermutation(count, (seed, epoch, start))
            yield spans, rows[shuffle(np.arange(passed, count))]
            passed = 0


def batches_of(
    windows: Iterable[tuple[Float[np.ndarray, "rows width"], Int[np.ndarray, "order"]]], batch: int
) -> Iterator[Float32[np.ndarray, "batch width"]]:
    """Cut windows into batches.

    Args:
        windows: rows of each, and the order in which to serve them.
        batch: rows in a batch, which may come from several windows.
    """
    parts, missing = [], batch
    for rows, order in windows:
        while len(order):
            taken, order = order[:missing], order[missing:]
            parts.append(rows[taken].astype(np.float32))
            missing -= len(taken)
            if not missing:
                yield np.concatenate(parts) if len(parts) > 1 else parts[0]
                parts, missing = [], batch


def blocks(
    store: Store, hook: str, rows_per_block: int = 8192, *, kept: Bool[np.ndarray, "rows"] | None = None
) -> Iterator[tuple[Int[np.ndarray, "rows"], Float32[np.ndarray, "rows width"]]]:
    """Yield row numbers and activations in the order of the corpus, each block from `rows_per_block` store
    rows.

    Args:
        store: what to read.
        hook: whose activations.
        rows_per_block: store rows read at a time, of which those that are not kept are then left out.
        kept: which rows are read; all that are no special tokens when not given.

    Returns:
        An iterator that reads one block ahead in a thread.

    Raises:
        InputError: the store lacks the hook; while iterating: it is damaged.
    """
    store.require(hook=hook)

    def read() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, store.rows, rows_per_block):
            stop = min(start + rows_per_block, store.rows)
            chosen = (store.kept if kept is None else kept)[start:stop]
            yield start + np.flatnonzero(chosen), store.read(hook, start, stop)[chosen]

    return prefetch(read())


def paired_blocks(
    x: Store, x_hook: str, y: Store, y_hook: str, rows_per_block: int = 8192
) -> Iterator[tuple[Int[np.ndarray, "rows"], Float32[np.ndarray, "rows x_width"], Float32[np.ndarray, "rows y_width"]]]:
    """Yield row numbers and the activations of the same tokens in two stores.

    Args:
        x: the first store.
        x_hook: its hook.
        y: a store of the same tokens.
        y_hook: its hook.
        rows_per_block: store rows read at a time; special tokens are then left out.

    Returns:
        An iterator that reads one block of each store ahead.

    Raises:
        InputError: the stores are of different tokens or lack a hook; while iterating: one is damaged.
    """
    aligned(x, y)
    pairs = zip(blocks(x, x_hook, rows_per_block), blocks(y, y_hook, rows_per_block), strict=True)
    return ((rows, of_x, of_y) for (rows, of_x), (_, of_y) in pairs)
