"""Read a store: in shuffled batches for training, or block by block for statistics.

Shuffling rewrites nothing and keeps no state. Every epoch the store's chunks are put in a random order and
cut into windows; a window is read whole, chunk by chunk, and its rows are served in a random order. Both
orders are functions of the seed, so the rows of a step depend on the seed and the step alone, and a run
resumes at any step at once. Rows that a filter leaves out are not served, by default those of special tokens. Lanes
(`saejax.activations.lanes`) deal the chunks of an epoch out in turn, and each has windows of its own.
"""

import itertools
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from saejax.activations.index_permutation import IndexPermutation
from saejax.activations.lanes import ALL, Batch, require_lanes, side_by_side
from saejax.activations.prefetch import prefetch
from saejax.activations.store import Store, aligned
from saejax.errors import InputError

WINDOW_ROWS = 131_072

Window: TypeAlias = tuple[Int[np.ndarray, "order"], Int[np.ndarray, "order"], list[Float[np.ndarray, "rows _"]]]
"""Numbers of rows in the order in which they are served, their places in the window, and the window of each stream."""


def shuffled_batches(
    store: Store,
    hook: str,
    batch: int,
    seed: int,
    start_step: int = 0,
    *,
    kept: Bool[np.ndarray, "rows"] | None = None,
    window_rows: int = WINDOW_ROWS,
    lanes: int = 1,
    part: slice = ALL,
) -> Generator[Float32[np.ndarray, "_ width"], None, None]:
    """Yield batches of shuffled rows without end: those of `aligned_batches` of one stream.

    Args:
        store: what to read.
        hook: whose activations.
        batch: rows in a batch.
        seed: decides the order.
        start_step: the first batch yielded is that of this step, counted from 0.
        kept: which rows are read (`saejax.activations.filters`); all that are no special tokens when not given.
        window_rows: rows that are shuffled among each other; more mix text from further apart.
        lanes: parts of a batch that are read apart.
        part: rows of each batch that are yielded.

    Returns:
        An iterator that prepares batches ahead in threads.

    Raises:
        InputError: as `aligned_batches`.
    """
    streams = [(store, hook)]
    batches = aligned_batches(
        streams, batch, seed, start_step, kept=kept, window_rows=window_rows, lanes=lanes, part=part
    )
    return (x for _, (x,) in batches)


def aligned_batches(
    streams: Sequence[tuple[Store, str]],
    batch: int,
    seed: int,
    start_step: int = 0,
    *,
    kept: Bool[np.ndarray, "rows"] | None = None,
    window_rows: int = WINDOW_ROWS,
    lanes: int = 1,
    part: slice = ALL,
) -> Iterator[Batch]:
    """Yield batches of shuffled rows of several streams without end, epoch after epoch in a new order.

    The r-th rows of the batches of a step are of one token in all streams, and the order is that of the first stream
    alone. Every row that is kept comes once per epoch; a batch may span two epochs. Memory, for each stream: two
    windows in the stored dtype, 2 x window_rows x width x bytes per entry, and three batches: the one that was yielded,
    the next, and what that is made of, with one more that lanes come together in; for all together 48 bytes a row of a
    window; of lanes that have no row in the part, nothing.

    Args:
        streams: stores of the same tokens, each with one of its hooks. The first store's chunks are what is put in a
            random order; chunks of another store that are larger are read several times over.
        batch: rows in a batch.
        seed: decides the order.
        start_step: the first batch yielded is that of this step, counted from 0.
        kept: which rows are read (`saejax.activations.filters`); all that are no special tokens when not given.
        window_rows: rows that are shuffled among each other, those of all lanes together; more mix text from further
            apart.
        lanes: parts of a batch that are read apart.
        part: rows of each batch that are yielded.

    Returns:
        An iterator of row numbers and a batch of each stream, which are prepared ahead in threads.

    Raises:
        InputError: there is no stream, stores are of different tokens, one lacks its hook, they have fewer rows than a
            batch or fewer chunks than lanes; while iterating: one is damaged.
    """
    if not streams:
        raise InputError("there is no stream to read; name a store and a hook")
    first = streams[0][0]
    for store, hook in streams:
        store.require(hook=hook)
        aligned(first, store)
    kept = first.kept if kept is None else kept
    if not 1 <= batch <= kept.sum():
        raise InputError(f"batch {batch} is not from 1 to the store's {kept.sum()} rows; extract more or lower it")
    require_lanes(lanes, batch)
    least = lanes * first.chunk_rows
    if start_step < 0 or window_rows < least:
        raise InputError(
            f"start_step {start_step} or window_rows {window_rows} is too low; they are from 0 and from {least}, a "
            "chunk of each lane"
        )
    require_chunks(first, lanes)
    each, window = batch // lanes, window_rows // lanes

    def of_lane(lane: int) -> Iterator[Batch]:
        windows = _windows(first, seed, start_step * each, kept, window // first.chunk_rows, lane, lanes)
        return prefetch(batches_of(prefetch(_read(streams, windows, min(window, first.rows))), each))

    return side_by_side(of_lane, batch, lanes, part)


def require_chunks(store: Store, lanes: int) -> None:
    """Refuse more lanes than there are chunks to deal out.

    Raises:
        InputError: a lane would have none.
    """
    if lanes > -(-store.rows // store.chunk_rows):
        raise InputError(f"lanes {lanes} are more than the chunks of {store.chunk_rows} rows of the store; lower lanes")


def documents_per_batch(
    store: Store,
    batch: int,
    seed: int,
    *,
    kept: Bool[np.ndarray, "rows"] | None = None,
    window_rows: int = WINDOW_ROWS,
    lanes: int = 1,
    batches: int = 20,
) -> tuple[float, float]:
    """Measure how well batches are mixed: from how many documents a batch comes, and would if all rows were shuffled.

    Args:
        store: what to read.
        batch: rows in a batch.
        seed: decides the order.
        kept: which rows are read.
        window_rows: rows that are shuffled among each other.
        lanes: parts of a batch that are read apart.
        batches: batches of the first epoch to look at, at most.

    Returns:
        Mean number of different documents in a batch; what is expected of a batch drawn from all rows.
    """
    kept = store.kept if kept is None else kept
    document = store.ledger(0, store.rows, ["document"])["document"]
    chunks_per_window = max(window_rows // lanes // store.chunk_rows, 1)

    def of_lane(lane: int) -> Iterator[Batch]:
        windows = _windows(store, seed, 0, kept, chunks_per_window, lane, lanes)
        return batches_of(((rows, places, []) for _, rows, places in windows), batch // lanes)

    looked_at = itertools.islice(side_by_side(of_lane, batch, lanes), max(min(batches, int(kept.sum()) // batch), 1))
    found = [len(np.unique(document[rows])) for rows, _ in looked_at]
    share = np.bincount(document[kept]) / kept.sum()
    return float(np.mean(found)), float(np.sum(1 - (1 - share) ** batch))


def _windows(
    store: Store,
    seed: int,
    passed: int,
    kept: Bool[np.ndarray, "rows"],
    chunks_per_window: int,
    lane: int,
    lanes: int,
) -> Iterator[tuple[list[tuple[int, int]], Int[np.ndarray, "order"], Int[np.ndarray, "order"]]]:
    """Yield the spans of each window of a lane, and its rows in the order in which they are served, behind those
    `passed` already: their numbers, and their places in the window.
    """
    of_chunk = np.add.reduceat(kept, np.arange(0, store.rows, store.chunk_rows), dtype=np.int64)
    chunks = np.arange(len(of_chunk))
    for epoch in itertools.count():
        order = IndexPermutation(len(chunks), (seed, epoch))(chunks)[lane::lanes]
        if passed >= (of_epoch := int(of_chunk[order].sum())):
            passed -= of_epoch
            continue
        for start in range(0, len(order), chunks_per_window):
            chosen = order[start : start + chunks_per_window]
            count = int(of_chunk[chosen].sum())
            if count <= passed:
                passed -= count
                continue
            ends = np.minimum((chosen + 1) * store.chunk_rows, store.rows)
            spans = list(zip((chosen * store.chunk_rows).tolist(), ends.tolist(), strict=True))
            rows = np.concatenate([np.arange(low, high) for low, high in spans])
            shuffle = IndexPermutation(count, (seed, epoch, lane + lanes * start))
            places = np.flatnonzero(kept[rows])[shuffle(np.arange(passed, count))]
            yield spans, rows[places], places
            passed = 0


def _read(
    streams: Sequence[tuple[Store, str]],
    windows: Iterable[tuple[list[tuple[int, int]], Int[np.ndarray, "order"], Int[np.ndarray, "order"]]],
    most_rows: int,
) -> Iterator[Window]:
    """Read windows of all streams, in turn into two places: when the third is read, the first has been served.

    Memory that is new each time costs as much as the reading.
    """
    turns = [[store.empty(hook, most_rows) for store, hook in streams] for _ in range(2)]
    for (spans, rows, places), turn in zip(windows, itertools.cycle(turns), strict=False):
        yield rows, places, [store.read_spans(hook, spans, at) for (store, hook), at in zip(streams, turn, strict=True)]


def batches_of(
    windows: Iterable[Window], batch: int
) -> Iterator[tuple[Int[np.ndarray, "batch"], list[Float32[np.ndarray, "batch _"]]]]:
    """Cut windows into batches.

    Args:
        windows: the windows, each no longer used when the next is asked for.
        batch: rows in a batch, which may come from several windows.

    Returns:
        An iterator of row numbers and a batch of each stream.
    """
    parts, missing = [], batch
    for rows, places, held in windows:
        start = 0
        while start < len(rows):
            taken = slice(start, start + missing)
            parts.append((rows[taken], *(x[places[taken]].astype(np.float32, copy=False) for x in held)))
            count = len(parts[-1][0])
            start += count
            missing -= count
            if not missing:
                whole, *of_streams = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
                parts, missing = [], batch
                yield whole, of_streams


def blocks(
    store: Store,
    hook: str,
    rows_per_block: int = 8192,
    *,
    kept: Bool[np.ndarray, "rows"] | None = None,
    share: int = 0,
    of: int = 1,
) -> Iterator[tuple[Int[np.ndarray, "rows"], Float32[np.ndarray, "rows width"]]]:
    """Yield row numbers and activations in the order of the corpus, each block from `rows_per_block` store
    rows.

    Args:
        store: what to read.
        hook: whose activations.
        rows_per_block: store rows read at a time, of which those that are not kept are then left out: all, perhaps.
        kept: which rows are read; all that are no special tokens when not given.
        share: the number of one of some equal ranges of blocks, which alone is yielded.
        of: how many there are.

    Returns:
        An iterator that reads one block ahead in a thread.

    Raises:
        InputError: the store lacks the hook; while iterating: it is damaged.
    """
    store.require(hook=hook)

    def read() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        starts = range(0, store.rows, rows_per_block)
        for start in starts[len(starts) * share // of : len(starts) * (share + 1) // of]:
            stop = min(start + rows_per_block, store.rows)
            chosen = (store.kept if kept is None else kept)[start:stop]
            held = store.read_spans(hook, [(start, stop)] if chosen.any() else [])
            yield start + np.flatnonzero(chosen), held[chosen[: len(held)]].astype(np.float32, copy=False)

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
