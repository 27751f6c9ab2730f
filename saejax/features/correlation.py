"""Pearson correlation of the features of two sources, in blocks of rows and slabs of features.

Two kinds of pass. The first finds every feature's mean and spread: within a block around the block's own
mean, across blocks by the merge of Chan, Golub and LeVeque, in float64; so no large offset is ever squared,
and a constant feature has a spread of exactly zero. The second sums the centred products of a slab of x
features with all y features. One side of a product is enough to centre, since sum((x - mx)(y - my)) = sum(x
(y - my)): dense blocks are centred before the product, sparse blocks stay sparse and the product of the means
is taken off at the end, which loses nothing for sparse codes, whose means are small beside their spread.
"""

import dataclasses
import math
import time
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int

from saejax.errors import InputError
from saejax.features.sources import Block, RowSource
from saejax.progress import progress

BYTES_PER_CELL = 16  # the float64 sum, and one block's product or the working copy of an assignment
SPARSE_PRODUCTS = 4_000_000  # products of two active features expanded at a time, about 30 bytes each


@dataclasses.dataclass(frozen=True)
class Moments:
    """First and second moments of the features of one source.

    Attributes:
        rows: number of rows they were taken over.
        mean: mean of every feature.
        spread: sqrt(sum (x - mean)^2) of every feature, exactly 0 for a constant one.
    """

    rows: int
    mean: Float[np.ndarray, "d"]
    spread: Float[np.ndarray, "d"]

    @property
    def alive(self) -> Bool[np.ndarray, "d"]:
        """Features that vary; a feature that never fired or is constant has no correlation."""
        return self.spread > 0


def moments(source: RowSource, rows_per_block: int) -> Moments:
    """Find mean and spread of every feature in one pass; memory is O(d) beside a block.

    Args:
        source: the features.
        rows_per_block: store rows held at a time.

    Raises:
        InputError: no feature varies, or one holds NaN or infinity.
    """
    rows, mean, squares = 0, np.zeros(source.d), np.zeros(source.d)
    with progress("feature moments", total=math.ceil(source.rows / rows_per_block)) as advance:
        for block in source.blocks(rows_per_block):
            advance()
            new = _rows_of(block)
            if not new:
                continue
            with np.errstate(invalid="ignore"):
                block_mean, block_squares = _block_moments(block, source.d)
            seen, rows = rows, rows + new
            delta = block_mean - mean
            mean += delta * (new / rows)
            squares += block_squares + delta**2 * (seen * new / rows)
    broken = np.flatnonzero(~np.isfinite(squares))
    if len(broken):
        raise InputError(f"{source.name} holds NaN or infinity (feature {broken[0]}); make it again")
    if not squares.any():
        raise InputError(f"{source.name} has no feature that varies over its {rows} rows; give it more text")
    return Moments(rows, mean, np.sqrt(squares))


def slab_height(x_alive: int, y_alive: int, memory_gib: float) -> int:
    """Return how many x features fit in one slab of correlations with all y features.

    Args:
        x_alive: number of x features that vary.
        y_alive: number of y features that vary.
        memory_gib: memory for the slab, in GiB, at `BYTES_PER_CELL`; blocks of rows come on top.

    Raises:
        InputError: not even one x feature fits.
    """
    height = int(memory_gib * 2**30) // (BYTES_PER_CELL * y_alive)
    if height < 1:
        needed = BYTES_PER_CELL * y_alive / 2**30
        raise InputError(f"memory_gib {memory_gib} holds no slab; {y_alive} features need at least {needed:.2g}")
    return min(height, x_alive)


def correlation_slabs(
    x: RowSource, y: RowSource, x_moments: Moments, y_moments: Moments, height: int, rows_per_block: int
) -> Iterator[Float[np.ndarray, "_ y_alive"]]:
    """Yield the correlations of the x features that vary with the y features that vary, slab by slab.

    Args:
        x: the source of the slabs' rows.
        y: the source of their columns, over the same rows.
        x_moments: moments of x.
        y_moments: moments of y.
        height: x features per slab; each slab is one pass over both sources.
        rows_per_block: store rows held at a time.

    Yields:
        r(x, y) = sum (x - mx)(y - my) / (spread x * spread y), for the next `height` x features in order.
    """
    x_ids, y_ids = np.flatnonzero(x_moments.alive), np.flatnonzero(y_moments.alive)
    passes, blocks = math.ceil(len(x_ids) / height), math.ceil(x.rows / rows_per_block)
    with progress("correlating", total=passes * blocks) as advance:
        for start in range(0, len(x_ids), height):
            ids = x_ids[start : start + height]
            sums = np.zeros((len(ids), len(y_ids)))
            uncentred = 0
            for x_block, y_block in zip(x.blocks(rows_per_block), y.blocks(rows_per_block), strict=True):
                uncentred += _add_products(sums, _columns(x_block, x_moments, ids), _columns(y_block, y_moments, y_ids))
                advance()
            sums -= np.outer(uncentred * x_moments.mean[ids], y_moments.mean[y_ids])
            sums /= x_moments.spread[ids, None]
            sums /= y_moments.spread[y_ids]
            yield np.clip(sums, -1, 1, out=sums)


def correlation_minutes(x: RowSource, y: RowSource, passes: int, rows_per_block: int) -> float:
    """Estimate how long the correlations of two sources would take, from their first block.

    Args:
        x: the source of the slabs' rows.
        y: the source of their columns.
        passes: number of slabs.
        rows_per_block: store rows held at a time.
    """
    seconds = 0.0
    for _ in range(2):  # the first time, files and code are read too
        began = time.perf_counter()
        blocks = [next(iter(source.blocks(rows_per_block))) for source in (x, y)]
        read = time.perf_counter() - began
        sides = zip(blocks, (x, y), strict=True)
        found = [Moments(_rows_of(block), *_block_moments(block, side.d)) for block, side in sides]
        moments_end = time.perf_counter()
        slab = np.zeros((math.ceil(x.d / passes), y.d))
        columns = [_columns(block, of, np.arange(d)) for block, of, d in zip(blocks, found, slab.shape, strict=True)]
        _add_products(slab, *columns)
        seconds = moments_end - began + passes * (read + time.perf_counter() - moments_end)
    return math.ceil(x.rows / rows_per_block) * seconds / 60


def _rows_of(block: Block) -> int:
    return len(block) if isinstance(block, np.ndarray) else len(block.indptr) - 1


def _block_moments(block: Block, d: int) -> tuple[Float[np.ndarray, "d"], Float[np.ndarray, "d"]]:
    """Return the mean of every column of a block and the sum of squares around it, in float64."""
    if isinstance(block, np.ndarray):
        mean = block.mean(axis=0, dtype=np.float64)
        return mean, np.square(block - mean).sum(axis=0)
    values = block.data.astype(np.float64)
    rows = _rows_of(block)
    mean = np.bincount(block.indices, values, minlength=d) / rows
    active = np.bincount(block.indices, minlength=d)
    squares = np.bincount(block.indices, (values - mean[block.indices]) ** 2, minlength=d)
    return mean, squares + (rows - active) * mean**2


def _columns(block: Block, of: Moments, ids: Int[np.ndarray, "ids"]) -> Block:
    """Return some columns in float64, centred when the block is dense."""
    if isinstance(block, np.ndarray):
        return block[:, ids] - of.mean[ids]
    return block[:, ids].astype(np.float64)


def _add_products(sums: Float[np.ndarray, "slab y_alive"], x: Block, y: Block) -> int:
    """Add x.T @ y to the sums in place; return its rows when neither side was centred, else 0."""
    if isinstance(x, np.ndarray) or isinstance(y, np.ndarray):
        sums += x.T @ y
        return 0
    pairs = int(np.diff(x.indptr).astype(np.int64) @ np.diff(y.indptr))
    rows = _rows_of(x)
    step = math.ceil(rows / (1 + pairs // SPARSE_PRODUCTS))
    for start in range(0, rows, max(step, 1)):
        product = (x[start : start + step].T @ y[start : start + step]).tocoo()
        sums[product.row, product.col] += product.data
    return rows
