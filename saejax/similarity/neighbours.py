"""Nearest neighbours by cosine distance, and how many of them two matrices share under a re-pairing.

The k neighbours of row i of x are the k other rows j of smallest cosine distance 1 - <x_i, x_j> / (|x_i| |x_j|),
nearest first. With lists N and N' of x and y and row i of x paired with row p_i of y, the neighbours that pair i
shares are the j in N(i) with p_j in N'(p_i). Their ranks in both lists are all that `knn_jaccard` and
`rank_similarity` read, so measures of one k share them: 2 n k steps per permutation.

Lists must have one order. Rows of one direction (equal, or positive multiples of each other) are refused, and so are
rows that lie at one distance from a third among its first k + 1. Any rule that broke such ties, row numbers
included, would break them alike in x and y and find neighbours shared where nothing is; orthonormal rows, all at
distance 1, would score 1. Many-to-one pairings repeat rows, so they need one representative of each.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple
from weakref import WeakKeyDictionary

import jax
import numpy as np
from jaxtyping import Float, Integer
from saejax_kernels import neighbour_matches

from saejax.errors import InputError
from saejax.similarity.measure import CrossStatistic
from saejax.similarity.pair import Pair, Side
from saejax.types import AnyArray, Matrix, Permutation, Permutations

NEIGHBOURS = 10
MOST_NEIGHBOURS = 255

# Cosine distances this close may be equal: float64 left up to 1.1e-15 between those that are in exact arithmetic, for
# d from 3 to 8,192.
ROUNDING = 4e-15

BLOCK_BYTES = 16 * 2**20  # of distances that are held at once while neighbours are looked for


class Nearest(NamedTuple):
    """The k nearest rows to each row of a matrix, and the next one, where there is one; the row itself is left out.

    Attributes:
        rows: their numbers, nearest first.
        distances: their cosine distances.
    """

    rows: Integer[np.ndarray, "n found"]
    distances: Float[np.ndarray, "n found"]


class MatchesState(NamedTuple):
    """What no re-pairing changes.

    Attributes:
        nx: neighbours of each row of x, nearest first, numbered from 1 so that 0 stands for nobody.
        ny: the same for y.
    """

    nx: Integer[AnyArray, "n k"]
    ny: Integer[AnyArray, "n k"]


def measure_name(measure: str, k: int) -> str:
    """Return what a measure of k neighbours is called.

    Raises:
        InputError: k lies outside 1 to 255.
    """
    if not 1 <= k <= MOST_NEIGHBOURS:
        raise InputError(f"{measure}: k {k} must be from 1 to {MOST_NEIGHBOURS} neighbours")
    return measure if k == NEIGHBOURS else f"{measure}:k={k}"


def unit_rows(values: Matrix) -> Float[np.ndarray, "n d"]:
    """Return rows of length 1, also where squares would overflow or vanish."""
    rows = values / np.abs(values).max(axis=1, keepdims=True)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def distance_blocks(values: Matrix) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield slices of rows with their cosine distances to all rows, in float64; 16 MiB at once."""
    units = unit_rows(values)
    step = max(BLOCK_BYTES // (8 * len(units)), 1)
    for start in range(0, len(units), step):
        block = slice(start, min(start + step, len(units)))
        distances = units[block] @ units.T
        np.subtract(1, distances, out=distances)
        yield block, distances


def nearest(side: Side, k: int) -> Nearest:
    """Find the k nearest rows to each row, once in the life of a side.

    Exact, in float64; 2 n^2 d flop, and 12 n (k + 1) bytes are kept.

    Args:
        side: a matrix without rows of zeros.
        k: neighbours of each, below n.
    """
    kept = _KEPT.setdefault(side, {})
    if k not in kept:
        kept[k] = _search(side.values, min(k + 1, len(side.values) - 1))
    return kept[k]


_KEPT: WeakKeyDictionary[Side, dict[int, Nearest]] = WeakKeyDictionary()


def _search(values: Matrix, count: int) -> Nearest:
    n = len(values)
    found = Nearest(np.empty((n, count), np.int32), np.empty((n, count)))
    for block, distances in distance_blocks(values):
        numbers = np.arange(block.start, block.stop)
        distances[numbers - block.start, numbers] = np.inf
        rows = np.argpartition(distances, count - 1, axis=1)[:, :count]
        near = np.take_along_axis(distances, rows, axis=1)
        order = np.argsort(near, axis=1)
        found.rows[block] = np.take_along_axis(rows, order, axis=1)
        found.distances[block] = np.take_along_axis(near, order, axis=1)
    return found


def refuse_ambiguous(measure: str, k: int, pair: Pair) -> None:
    """Refuse rows whose k nearest neighbours are undefined or have no single order.

    Args:
        measure: what the error is about.
        k: neighbours of each row.
        pair: the matrices.

    Raises:
        InputError: there are not more rows than neighbours, a row is zero, or neighbours are tied.
    """
    if pair.n <= k:
        raise InputError(f"{measure}: {pair.n} pairs have no {k} neighbours each; give at least {k + 1} or lower k")
    for name, side in pair.sides:
        zero = np.flatnonzero(~side.values.any(axis=1))
        if len(zero):
            raise InputError(
                f"{measure}: row {zero[0]} of {name} is zero ({len(zero)} such row(s)), so it has no direction; "
                "leave that pair out"
            )
        _refuse_ties(measure, k, name, side)


def _refuse_ties(measure: str, k: int, name: str, side: Side) -> None:
    rows, distances = nearest(side, k)
    parallel = np.flatnonzero(distances[:, 0] <= ROUNDING)
    if len(parallel):
        first, second = sorted((int(parallel[0]), int(rows[parallel[0], 0])))
        how = "are equal" if np.array_equal(*side.values[[first, second]]) else "point the same way"
        raise InputError(
            f"{measure}: rows {first} and {second} of {name} {how} ({len(parallel)} rows have such a twin), so their "
            "neighbours' order is arbitrary; keep one of them"
        )
    tied = np.argwhere(np.diff(distances, axis=1) <= ROUNDING)
    if len(tied):
        row, rank = tied[0]
        first, second = sorted(rows[row, rank : rank + 2].tolist())
        raise InputError(
            f"{measure}: rows {first} and {second} of {name} are equally far from row {row} as far as float64 tells "
            f"(cosine distance {distances[row, rank]:.6g}; {len(tied)} such tie(s)), so its {k} nearest are "
            f"arbitrary; leave {measure} out"
        )


@functools.cache
def matches(k: int) -> CrossStatistic:
    """Return the statistic: at which rank of N'(p_i) each of the k neighbours in N(i) is found, `[n, k]`, or 0."""
    return CrossStatistic(
        name=f"shared ranks of {k} neighbours", prepare=functools.partial(matches_state, k), compute=_compute,
        size=functools.partial(_size, k), making=functools.partial(_making, k), scratch=_scratch,
        compute_batch=_compute_batch,
    )  # fmt: skip


def matches_state(k: int, pair: Pair, extent: tuple[int, int] | None = None) -> MatchesState:
    """Return the neighbours of both sides, numbered from 1; 8 n k bytes."""
    nx, ny = (nearest(side, k).rows[:, :k] + np.int32(1) for _, side in pair.sides)
    return MatchesState(nx, ny)


def _compute(state: MatchesState, perm: Permutation) -> jax.Array:
    return neighbour_matches(state.nx, state.ny, perm[None], impl="jax")[0]


def _compute_batch(state: MatchesState, perms: Permutations) -> np.ndarray:
    return np.asarray(neighbour_matches(state.nx, state.ny, perms, impl="numba"))


def _size(k: int, pair: Pair) -> int:
    return 8 * pair.n * k


def _making(k: int, pair: Pair) -> int:
    """Return the bytes of unit rows of one side, of a block of distances and its order, and of what is found."""
    largest = max(side.values.nbytes for _, side in pair.sides)
    block = max(8 * pair.n, min(BLOCK_BYTES, 8 * pair.n**2))
    return 2 * largest + 4 * block + 48 * pair.n * (k + 1)


def _scratch(state: MatchesState) -> int:
    """Return the bytes of the ranks and of two gathered lists."""
    return 10 * state.nx.size
