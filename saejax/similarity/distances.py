"""Distances between all pairs of rows of a matrix, block by block, so that they need never be held at once.

    correlation  1 - corr(x_i, x_j), each row about its own mean over the columns
    cosine       1 - cos(x_i, x_j)
    euclidean    |x_i - x_j| * c, with c a power of two that brings the matrix near 1

All come from products of rows, which is what makes them fast; products leave an absolute error of a few 1e-16 of the
rows' squared norms. Where a Euclidean distance is small beside those, it is computed anew from the difference of the
two rows, which is exact for equal rows and right to the last digits for others.

Distances that are equal in exact arithmetic come out with different last digits. Where order matters (`Rows.upper`)
`TIE_BITS` leading bits are kept of each, so that such distances are equal again: rows of whole numbers, or a third
row's distances to two equal rows. Distances of 0 that are not computed from differences remain a few 1e-16, and are set
to 0.
"""

import dataclasses
from collections.abc import Iterator
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy.spatial.distance import cdist

Inner = Literal["correlation", "cosine", "euclidean"]

ONE_BLOCK = 4096  # up to so many rows all distances are one block, 128 MiB
BLOCK = 2**22  # distances per block above that, 32 MiB
TIE_BITS = 36
CANCELLED = 2.0**-10  # share of the squared norms below which a squared distance is computed from the difference

# How far distances that are 0 in exact arithmetic may be from it.
ROUNDING: dict[Inner, float] = {"correlation": 1e-12, "cosine": 1e-12, "euclidean": 0.0}


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of a matrix, ready for their distances: 8 n d bytes, for euclidean 16 n d.

    Attributes:
        inner: which distance.
        reduced: rows of unit norm (correlation, cosine) or about the column means, of which products are taken.
        points: rows of which differences are taken, for euclidean; else the same array.
    """

    inner: Inner
    reduced: Float[np.ndarray, "n d"]
    points: Float[np.ndarray, "n d"]

    @classmethod
    def of(cls, values: Float[np.ndarray, "n d"], inner: Inner) -> "Rows":
        """Prepare a matrix: not constant and, but for euclidean, with rows that have a direction."""
        if inner == "euclidean":
            points = _near_one(values, None)
            return cls(inner, points - points.mean(axis=0), points)
        rows = _near_one(values, 1)
        if inner == "correlation":
            rows -= rows.mean(axis=1, keepdims=True)
        rows /= np.sqrt(np.einsum("nd,nd->n", rows, rows))[:, None]
        return cls(inner, rows, rows)

    def sample(self, most: int) -> "Rows":
        """Return at most so many rows, evenly spaced, at the same distances from each other as here."""
        step = -(-len(self.points) // most)
        return Rows(self.inner, self.reduced[::step], self.points[::step])

    def blocks(self) -> Iterator[tuple[int, Float[np.ndarray, "block rest"]]]:
        """Yield distances of consecutive rows to the rows from the first of them on.

        Yields:
            The number of the first row of the block, s, and distances [i, j] of row s + i and row s + j, of which
            only those with i < j are meant: below, they may differ in the last digits, and on the diagonal from 0.
        """
        n = len(self.points)
        step = n if n <= ONE_BLOCK else max(1, BLOCK // n)
        for start in range(0, n, step):
            product = self.reduced[start : start + step] @ self.reduced[start:].T
            distances = self._euclidean(start, product) if self.inner == "euclidean" else self._angular(product)
            yield start, distances

    def upper(self) -> Iterator[Float[np.ndarray, "pairs"]]:
        """Yield the distances of pairs i < j, row after row, in consecutive pieces, rounded so that equal ones tie."""
        for _, block in self.blocks():
            yield _leading_bits(np.concatenate([row[i + 1 :] for i, row in enumerate(block)]))

    def _angular(self, product: Float[np.ndarray, "block rest"]) -> Float[np.ndarray, "block rest"]:
        np.subtract(1, product, out=product)
        np.clip(product, 0, 2, out=product)
        product[product <= ROUNDING[self.inner]] = 0
        return product

    def _euclidean(self, start: int, product: Float[np.ndarray, "block rest"]) -> Float[np.ndarray, "block rest"]:
        squares = np.einsum("nd,nd->n", self.reduced, self.reduced)
        norms = squares[start : start + len(product), None] + squares[start:]
        product *= -2
        product += norms
        norms *= CANCELLED
        cancelled = np.triu(product < norms, 1)
        for i in np.flatnonzero(cancelled.any(axis=1)):
            others = np.flatnonzero(cancelled[i])
            product[i, others] = cdist(self.points[None, start + i], self.points[start + others], "sqeuclidean")[0]
        np.maximum(product, 0, out=product)
        return np.sqrt(product, out=product)


def _near_one(values: Float[np.ndarray, "n d"], axis: int | None) -> Float[np.ndarray, "n d"]:
    """Multiply by powers of two, which changes no digit, so that squares neither overflow nor vanish.

    Args:
        values: the matrix.
        axis: 1 to bring every row near 1, None to bring the matrix about its column means near 1.
    """
    near = np.ldexp(values, -np.frexp(np.abs(values).max(axis=axis, keepdims=True))[1])
    if axis is None:
        near = np.ldexp(near, -np.frexp(np.abs(near - near.mean(axis=0)).max())[1])
    return near


def _leading_bits(distances: Float[np.ndarray, "pairs"]) -> Float[np.ndarray, "pairs"]:
    """Round to `TIE_BITS` bits after the first, in place; not below 0, so that the bits order as the numbers do."""
    dropped = np.finfo(np.float64).nmant - TIE_BITS
    bits = distances.view(np.int64)
    bits += 1 << (dropped - 1)
    bits &= -(1 << dropped)
    return distances
