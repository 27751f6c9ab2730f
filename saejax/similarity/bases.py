"""The product of two bases under a re-pairing, from which every measure of aligned directions is made.

With Ux and Uy orthonormal bases of the column-centred matrices, largest singular value first,

    M(p) = Ux' Uy[p]

is all that a re-pairing p changes in canonical correlations, in CKA, in Procrustes distances and in regression: those
weigh the rows and columns of M by singular values, cut them, or sum its singular values or its squares. So measures
that are asked for together share this one product, 2 n kx ky flop.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from saejax.similarity.measure import CrossStatistic
from saejax.similarity.padding import with_zeros
from saejax.similarity.pair import Pair, Side
from saejax.similarity.products import PADDING, multiply, multiply_batch, multiply_exact, pad_columns, scratch
from saejax.types import AnyArray


class BasesState(NamedTuple):
    """What no re-pairing changes.

    Attributes:
        ux: orthonormal basis of centred x.
        uy: the same for y.
    """

    ux: Float[AnyArray, "n kx"]
    uy: Float[AnyArray, "n ky"]


def prepare(pair: Pair, extent: tuple[int, int] | None = None) -> BasesState:
    """Find both bases, in float64; 8 n (kx + ky) bytes.

    Args:
        pair: the matrices.
        extent: numbers of leading directions to keep of x and y; all of them when None.
    """
    kx, ky = extent or (pair.x.rank, pair.y.rank)
    return BasesState(_basis(pair.x, kx), _basis(pair.y, ky))


def padded(weights: Float[np.ndarray, "k"]) -> Float[np.ndarray, "padded"]:
    """Append zeros, as many as the bases get."""
    return with_zeros(weights, -(-len(weights) // PADDING) * PADDING)


def weighted(product: AnyArray, wx: Float[AnyArray, "_ kx"] | AnyArray, wy: AnyArray) -> AnyArray:
    """Return wx[a] M[a, b] wy[b], over the directions that have both a weight and a place in the product.

    Args:
        product: M, `[..., a, b]`; wider than the weights where another measure reads more directions.
        wx: weights of the directions of x; those that the product lacks are 0.
        wy: weights of those of y.
    """
    product = product[..., : len(wx), : len(wy)]
    return product * (wx[: product.shape[-2], None] * wy[: product.shape[-1]])


def _basis(side: Side, k: int) -> Float[np.ndarray, "n padded"]:
    return pad_columns(side.left[:, :k])


def _size(pair: Pair) -> int:
    kx, ky = (min(side.values.shape) for _, side in pair.sides)
    return 12 * pair.n * (kx + ky + 2 * PADDING)


def _making(pair: Pair) -> int:
    """Return the bytes of both decompositions, of finding the larger one, and of what PWCCA keeps of that of x."""
    kept, passing = zip(*((side.decomposition_bytes, side.decomposing_bytes) for _, side in pair.sides), strict=True)
    return sum(kept) + max(passing) + 12 * pair.x.values.shape[1] * min(pair.x.values.shape)


BASES = CrossStatistic(
    name="product of bases",
    prepare=prepare,
    compute=multiply,
    size=_size,
    making=_making,
    scratch=scratch,
    compute_batch=multiply_batch,
    compute_exact=multiply_exact,
)
