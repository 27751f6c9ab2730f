"""Weighted sums of the squares of the entries of every matrix of a batch.

    sums[q] = sum_ab wx[a] m[q, a, b]^2 wy[b],    sizes[q] = sum_ab |wx[a]| m[q, a, b]^2 |wy[b]|

The second says what rounding may have done to the first where weights of both signs cancel. One pass over the
matrices. In numba every core takes whole matrices and sums in float64.
"""

from typing import Literal, no_type_check

import jax
import jax.numpy as jnp
import numba
import numpy as np
from jaxtyping import Float

from saejax_kernels.compiled import compiled
from saejax_kernels.summation import FAST_SUMS, pairwise_sum


def weighted_squares(
    m: Float[jax.Array | np.ndarray, "perm a b"],
    wx: Float[jax.Array | np.ndarray, "a"],
    wy: Float[jax.Array | np.ndarray, "b"],
    *,
    impl: Literal["jax", "numba"],
) -> tuple[Float[jax.Array | np.ndarray, "perm"], Float[jax.Array | np.ndarray, "perm"]]:
    """Sum the weighted squares of every matrix, and their sizes.

    Args:
        m: the matrices.
        wx: weights of their rows, of either sign.
        wy: weights of their columns, of either sign.
        impl: `jax` traces under `jit` and `vmap` on any device and sums pairwise in the dtype of `m`: the error of a
            sum is at most 2 (log2 a b + 3) roundings of its size. `numba` runs on the CPU from the host, in float64.

    Returns:
        sums, sizes: one of each per matrix; float64 from numba. Sizes are good to a few digits.
    """
    if impl == "jax":
        squares = jnp.square(jnp.asarray(m))
        sums = pairwise_sum(pairwise_sum(squares * wy) * wx)
        return sums, jnp.sum(jnp.sum(squares * jnp.abs(wy), axis=2) * jnp.abs(wx), axis=1)
    if impl != "numba":
        raise ValueError(f"impl {impl!r} is unknown; choose jax or numba")
    sums, sizes = np.empty(len(m)), np.empty(len(m))
    _sum_squares(np.asarray(m), np.asarray(wx, np.float64), np.asarray(wy, np.float64), sums, sizes)
    return sums, sizes


@compiled(fastmath=FAST_SUMS)
@no_type_check
def _row_sums(row, wy):
    total, size = 0.0, 0.0
    for b in range(len(row)):
        weighted = np.float64(row[b]) * np.float64(row[b]) * wy[b]
        total += weighted
        size += abs(weighted)
    return total, size


@compiled(parallel=True)
@no_type_check
def _sum_squares(m, wx, wy, sums, sizes):
    for q in numba.prange(len(m)):
        total, size = 0.0, 0.0
        for a in range(len(wx)):
            row_total, row_size = _row_sums(m[q, a], wy)
            total += wx[a] * row_total
            size += abs(wx[a]) * row_size
        sums[q], sizes[q] = total, size
