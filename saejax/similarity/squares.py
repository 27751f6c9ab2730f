"""Weighted squares of a product of bases: the core of squared canonical correlations, CKA, regression and GULP.

    core = sum_ab wx[a] M[a, b]^2 wy[b]

with M the product of `saejax.similarity.bases`. One pass over M and no memory but M: 0.2 ms beside the 17 ms of a
product with n = 4,000, kx = 512 and ky = 768 on two cores.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float
from saejax_kernels.summation import pairwise_sum

from saejax.similarity.measure import Bounds, exactly
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
