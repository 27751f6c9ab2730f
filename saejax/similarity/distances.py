"""Distances between all pairs of rows of a matrix, block by block, so that they need never be held at once.

    correlation  1 - corr(x_i, x_j), each row about its own mean over the columns
    cosine       1 - cos(x_i, x_j)
    euclidean    |x_i - x_j| * c, with c a power of two that brings the matrix near 1

All come from products of rows, which is what makes them fast; products leave an absolute error of a few 1e-16 of the
rows' squared norms. Where a distance is small beside those, it is computed anew from the difference of the two rows,
which is exact for equal rows and right to the last digits for others. Correlations and cosines near -1 are as close
to a limit as those near 1, and where one direction outweighs all others most rows are near one or the other. So they
are computed anew from the sum of the two rows, and given as orders:

    d = 1 - r  for r >= 0,    1 / (1 + r)  for r < 0

which grows as the distance does, from 0 to infinity, and keeps the digits at both ends.

Distances that are equal in exact arithmetic come out with different last digits. Where order matters (`Rows.upper`)
`TIE_BITS` leading bits are kept of each, and of cosines no more than 47 behind the point, so that they are equal again:
rows of whole numbers, or a third row's distances to two equal rows. Rows of one direction, or of opposite ones, as far
as float64 tells, are at the limit.
"""

import dataclasses
from collections.abc import Iterator
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial.distance import cdist

Inner = Literal["correlation", "cosine", "euclidean"]

BLOCK = 2**21  # distances per block, 16 MiB
BLOCK_ENTRY_BYTES = 40  # with the masks and copies that one is worked on by
TIE_BITS = 36
CANCELLED = 2.0**-10  # share of the squared norms below which a squared distance is computed from the difference
NEAR = 2.0**-20  # distance of a cosine from 1 or -1 below which it is computed from the difference or the sum
COARSE = 48.0  # adding and taking away this number rounds to multiples of 2^-47, sixteen times the errors of products
ROUNDINGS = 4.0  # of the numbers that a unit row was made of, in units of their spacing


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of a matrix, ready for their distances: 8 n d bytes, for euclidean 16 n d.

    Attributes:
        inner: which distance.
        reduced: rows of unit norm (correlation, cosine) or about the column means, of which products are taken.
        points: rows of which differences are taken, for euclidean; else the same array.
        error: how far rounding may have moved each row of unit norm; 0 for euclidean.
    """

    inner: Inner
    reduced: Float[np.ndarray, "n d"]
    points: Float[np.ndarray, "n d"]
    error: Float[np.ndarray, "n"]

    @classmethod
    def of(cls, values: Float[np.ndarray, "n d"], inner: Inner) -> "Rows":
        """Prepare a matrix: not constant and, but for euclidean, with rows that have a direction."""
        if inner == "euclidean":
            points = _near_one(values, None)
            return cls(inner, points - points.mean(axis=0), points, np.zeros(len(points)))
        rows = np.ascontiguousarray(_near_one(values, 1))  # so that numpy adds along rows pairwise
        before = np.linalg.norm(rows, axis=1)
        if inner == "correlation":
            rows -= rows.mean(axis=1, keepdims=True)
        norms = np.linalg.norm(rows, axis=1)
        rows /= norms[:, None]
        return cls(inner, rows, rows, ROUNDINGS * np.finfo(np.float64).eps * before / norms)

    @staticmethod
    def making_bytes(values: Float[np.ndarray, "n d"]) -> int:
        """Return the bytes of the rows of a matrix, of steps towards them, and of a block of distances with masks."""
        return 3 * values.nbytes + BLOCK_ENTRY_BYTES * min(max(BLOCK, len(values)), len(values) ** 2)

    def sample(self, most: int) -> "Rows":
        """Return at most so many rows, evenly spaced, at the same distances from each other as here."""
        step = -(-len(self.points) // most)
        return Rows(self.inner, self.reduced[::step], self.points[::step], self.error[::step])

    def blocks(self) -> Iterator[tuple[int, Float[np.ndarray, "block rest"]]]:
        """Yield distances, or their orders, of consecutive rows to the rows from the first of them on.

        Yields:
            The number of the first row of the block, s, and distances [i, j] of row s + i and row s + j, of which
            only those with i < j are meant: below, they may differ in the last digits, and on the diagonal from 0.
        """
        n = len(self.points)
        step = max(1, BLOCK // n)
        for start in range(0, n, step):
            product = self.reduced[start : start + step] @ self.reduced[start:].T
            yield start, (self._euclidean if self.inner == "euclidean" else self._angular)(start, product)

    def upper(self) -> Iterator[Float[np.ndarray, "pairs"]]:
        """Yield the distances of pairs i < j, row after row, in consecutive pieces, rounded so that equal ones tie."""
        for _, block in self.blocks():
            yield _leading_bits(np.concatenate([row[i + 1 :] for i, row in enumerate(block)]))

    def _angular(self, start: int, product: Float[np.ndarray, "block rest"]) -> Float[np.ndarray, "block rest"]:
        opposite = product < 0
        product = np.subtract(1, np.abs(product, out=product), out=product)
        near = product < NEAR
        product += COARSE
        product -= COARSE
        for sign, marks in ((1, near & ~opposite), (-1, near & opposite)):
            for i, others in _marked(marks):
                halves = cdist(sign * self.points[None, start + i], self.points[start + others], "sqeuclidean")[0] / 2
                halves[halves <= (self.error[start + i] + self.error[start + others]) ** 2 / 2] = 0
                product[i, others] = halves
        with np.errstate(divide="ignore"):  # opposite rows are infinitely far
            return np.divide(1, product, out=product, where=opposite)

    def _euclidean(self, start: int, product: Float[np.ndarray, "block rest"]) -> Float[np.ndarray, "block rest"]:
        squares = np.einsum("nd,nd->n", self.reduced, self.reduced)
        norms = squares[start : start + len(product), None] + squares[start:]
        product *= -2
        product += norms
        norms *= CANCELLED
        for i, others in _marked(product < norms):
            product[i, others] = cdist(self.points[None, start + i], self.points[start + others], "sqeuclidean")[0]
        np.maximum(product, 0, out=product)
        return np.sqrt(product, out=product)


def _marked(block: Bool[np.ndarray, "block rest"]) -> Iterator[tuple[int, Int[np.ndarray, "_"]]]:
    """Yield the rows of a block that have marks above its diagonal, and the columns where they are."""
    above = np.triu(block, 1)
    for i in np.flatnonzero(above.any(axis=1)):
        yield int(i), np.flatnonzero(above[i])


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
