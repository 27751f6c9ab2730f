"""Ranks of all pairs of rows by their distance, as whole numbers.

A pair's mid-rank r among the N = n (n - 1) / 2 pairs is a whole or half number; twice r less the mean rank,

    t = 2 r - (N + 1),   -N < t < N,

is whole and sums to 0. Pearson's correlation of t is Spearman's correlation of the distances.

With 32 bits t is kept as it is: exact. Up to n = 4,096 it is below 2^24, so that float32 holds it exactly, and above
that it is an int32. Either way 4 n^2 bytes for one side. Distances are computed twice, in blocks: once to be sorted,
and once to be found among the sorted ones (`saejax_kernels.mid_ranks`), which takes 2 n^2 bytes more meanwhile.

With 16 bits q = round(t / step), step = max |t| / 32,767, at least 1: 2 n^2 bytes. Sorting is replaced by counting.
First the pairs in each of 4 million cells of distance are counted; sums of the counts are the mid-ranks of the cells.
Then every pair gets its cell's q. That takes 0.4 GiB besides the rows and n^2 bytes.

Cells are as fine as the distances are dense: by the leading bits of the float between the quantiles 1e-4 and 1 - 1e-4
of a sample.

What 16 bits lose is known. Let t_cell be the mid-ranks of the cells, s q their projection on the centred q, and w a
bound on |t - t_cell|^2. Seen as vectors over pairs, t and q enclose an angle with

    sin^2(angle) <= (|t_cell - s q|^2 + w) / (|t_cell|^2 + w),   w = sum over cells of (c^3 - c - g^3 + g) / 3

where of the c pairs in a cell g were found to be equally far, so that they tie, and the rest may be in any order.
Distances of 0, and those of opposite rows, have cells of their own and tie there. A correlation of two such vectors is
the cosine of an angle that moves by at most the sum of both sides' angles, for this and for every re-pairing. For
distances without ties that is 1.5e-5 for each side. Large groups of ties that share a cell widen it: to 1e-3 for rows
of which some stand there up to 600 times (n = 9,451), where scores moved by 2e-7.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped
from saejax_kernels import mid_ranks
from scipy.spatial.distance import squareform

from saejax.similarity.distances import Rows

LARGEST_EXACT = 4096  # rows up to which t is below 2^24
MOST_ROWS = 65536  # rows up to which t is below 2^31
LARGEST_LEVEL = 32767
CELLS = 2**22
CELL_BYTES = {32: 24, 16: 80}  # of the tables with a number per cell, by bits of a rank
SAMPLE = 2048
OUTSIDE = 1e-4


class Ranks(NamedTuple):
    """The ranks of one side's pairs.

    Attributes:
        matrix: whole numbers, symmetric with a zero diagonal.
        total: their sum over pairs i < j.
        norm: their norm over pairs about the mean.
        angle: bound on the angle to the exact ranks, in radians.
    """

    matrix: Shaped[np.ndarray, "n n"]
    total: float
    norm: float
    angle: float


def ranking_bytes(values: Float[np.ndarray, "n d"], bits: int) -> int:
    """Return the bytes that it takes to rank the distances of rows, besides the ranks themselves."""
    n = len(values)
    cells = min(CELLS, n**2) if bits == 32 else CELLS
    return Rows.making_bytes(values) + bits // 16 * n**2 + CELL_BYTES[bits] * cells


def exact_ranks(rows: Rows) -> Ranks:
    """Rank pairs by distance, equal distances at the mean of their ranks."""
    n = len(rows.points)
    pairs = n * (n - 1) // 2
    grid = _Grid.of(rows, min(CELLS, 1 << (pairs.bit_length() - 1)))
    ordered, starts, place = np.empty(pairs), np.zeros(grid.count + 1, np.int64), 0
    for distances in rows.upper():
        ordered[place : place + len(distances)] = distances
        place += len(distances)
        starts[1:] += np.bincount(grid.cells(distances), minlength=grid.count)
    ordered.sort()
    np.cumsum(starts, out=starts)
    ranks, square, place = np.empty(pairs, np.float32 if n <= LARGEST_EXACT else np.int32), 0.0, 0
    for distances in rows.upper():
        found = mid_ranks(ordered, starts, distances, grid.cells(distances), impl="numba")
        ranks[place : place + len(found)] = found
        place += len(found)
        square += float(np.sum(np.square(found, dtype=np.float64)))
    del ordered
    return Ranks(squareform(ranks), 0.0, math.sqrt(square), 0.0)


def quantised_ranks(rows: Rows) -> Ranks:
    """Rank pairs by distance in 16 bits, equal distances at the mean of their ranks."""
    n = len(rows.points)
    pairs = n * (n - 1) // 2
    grid = _Grid.of(rows, CELLS)
    counts, example = np.zeros(CELLS, np.int64), np.zeros(CELLS)
    for distances in rows.upper():
        cells = grid.cells(distances)
        counts += np.bincount(cells, minlength=CELLS)
        example[cells] = distances
    ranks = (2 * np.cumsum(counts) - counts - pairs).astype(np.float64)
    step = max(1.0, float(np.abs(ranks[counts > 0]).max()) / LARGEST_LEVEL)
    levels = np.clip(np.rint(ranks / step), -LARGEST_LEVEL, LARGEST_LEVEL).astype(np.int16)
    tied = np.zeros(CELLS, np.int64)
    quantised, place = np.empty(pairs, np.int16), 0
    for distances in rows.upper():
        cells = grid.cells(distances)
        quantised[place : place + len(cells)] = levels[cells]
        place += len(cells)
        tied += np.bincount(cells[distances == example[cells]], minlength=CELLS)
    tied[[0, -1]] = counts[[0, -1]]
    total = float(counts @ levels)
    spread = float(np.sum(_spread(counts) - _spread(tied)))
    norm, angle = _norm_and_angle(counts.astype(np.float64), ranks, levels - total / pairs, spread)
    return Ranks(squareform(quantised), total, norm, angle)


class _Grid(NamedTuple):
    """Cells of distance, growing with it: the first and last for limits, those beside for what lies out of range."""

    count: int
    low: int
    shift: int

    @classmethod
    def of(cls, rows: Rows, count: int) -> "_Grid":
        sample = np.concatenate(list(rows.sample(SAMPLE).upper()))
        bits = np.sort(sample[(sample > 0) & np.isfinite(sample)]).view(np.int64)
        if not len(bits):
            return cls(count, 0, 0)
        outside = int(len(bits) * OUTSIDE)
        low, high = int(bits[outside]), int(bits[-1 - outside])
        return cls(count, low, max(0, (high - low).bit_length() - count.bit_length() + 1))

    def cells(self, distances: Float[np.ndarray, "pairs"]) -> Int[np.ndarray, "pairs"]:
        cells = distances.view(np.int64) - self.low
        cells >>= self.shift
        cells += 2
        np.clip(cells, 1, self.count - 2, out=cells)
        cells[distances == 0] = 0
        cells[np.isinf(distances)] = self.count - 1
        return cells


def _spread(counts: Int[np.ndarray, "cells"]) -> Float[np.ndarray, "cells"]:
    """Return the squared distance of so many untied ranks from their mid-rank, doubled."""
    count = counts.astype(np.float64)
    return count * (count**2 - 1) / 3


def _norm_and_angle(
    counts: Float[np.ndarray, "cells"],
    ranks: Float[np.ndarray, "cells"],
    levels: Float[np.ndarray, "cells"],
    spread: float,
) -> tuple[float, float]:
    """Return the norm of the centred levels over pairs, and the bound on their angle to the exact ranks."""
    square = counts @ levels**2
    apart = counts @ (ranks - counts @ (ranks * levels) / square * levels) ** 2
    sine = math.sqrt((apart + spread) / (counts @ ranks**2 + spread))
    return math.sqrt(square), math.asin(min(sine, 1.0))
