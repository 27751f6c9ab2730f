"""Weighted squares of a product of bases: the core of squared canonical correlations, CKA, regression and GULP.

    core = sum_ab wx[a] M[a, b]^2 wy[b]

with M the product of `saejax.similarity.bases`. One pass over M and no memory but M: 0.2 ms beside the 17 ms of a
product with n = 4,000, kx = 512 and ky = 768 on two cores.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from saejax_kernels.summation import pairwise_sum

from saejax.similarity.measure import Bounds, exactly
from saejax.similarity.moments import Moments, centred_moments, factor_sums
from saejax.similarity.pair import Pair, Side
from saejax.similarity.third_moment import factor_third
from saejax.types import AnyArray, Permutation


class SquaresState(NamedTuple):
    """What no re-pairing changes.

    Attributes:
        wx: weights of the directions of x, none below 0.
        wy: weights of those of y.
    """

    wx: Float[AnyArray, "kx"]
    wy: Float[AnyArray, "ky"]


def weighted_squares(product: AnyArray, wx: Float[AnyArray, "kx"], wy: Float[AnyArray, "ky"]) -> jax.Array:
    """Return sum_ab wx[a] M[a, b]^2 wy[b], summed so that float32 keeps its digits.

    Args:
        product: M, `[kx, ky]`.
        wx: weights of its rows.
        wy: weights of its columns.
    """
    rows = pairwise_sum(jnp.square(jnp.asarray(product)) * wy)
    return pairwise_sum(rows * wx)


def squares_core(own: SquaresState, values: tuple[AnyArray, ...], perm: Permutation) -> Bounds:
    """Return the core of one re-pairing; pure JAX."""
    return exactly(weighted_squares(values[0], own.wx, own.wy))


def squares_moments(own: Callable[[Pair], SquaresState], pair: Pair, skewness: bool) -> Moments:
    """Return the exact moments of the core over all re-pairings.

    Args:
        own: makes the weights.
        pair: the matrices.
        skewness: whether to find the third moment: n^2 k / 2 flop more for each side.
    """
    weights = own(pair)
    a, b = _weighted(pair.x, weights.wx), _weighted(pair.y, weights.wy)
    thirds = (factor_third(a), factor_third(b)) if skewness else None
    return centred_moments(factor_sums(a), factor_sums(b), thirds)


def _weighted(side: Side, weights: Float[AnyArray, "k"]) -> Float[np.ndarray, "n r"]:
    return side.left * np.sqrt(np.asarray(weights)[: side.rank])
