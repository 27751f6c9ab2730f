"""Sums over pairs of rows of two symmetric matrices, one of them re-paired: the quadratic assignment statistic.

    pair_sums[q] = sum_{i < j} a[i, j] b[perm_q[i], perm_q[j]]

The work is a gather of n^2 / 2 numbers per permutation. In numba every core takes blocks of permutations and walks
the rows of `a` once per block, so that a row of `a` is read from memory once for the whole block. The row of `b` that
belongs to it is copied first: the copy runs through memory in order, which the processor foresees, and leaves the
row in the cache nearest to it for the gather. At n = 300 and 4,000 on two cores that took 0.009 and 2.8 ms per
permutation in float32 (0.007 and 4.4 without the copy), 0.008 and 1.8 in int16.

On accelerators `pair_sums_gpu` and `pair_sums_tpu` hold that row in on-chip memory, where XLA's gather would go to
main memory for every number.
"""

from typing import Literal, no_type_check

import jax
import jax.numpy as jnp
import numba
import numpy as np
from jaxtyping import Float, Integer, Num

from saejax_kernels.compiled import compiled
from saejax_kernels.summation import FAST_SUMS, pairwise_sum

BLOCK = 8  # permutations that share one walk over the rows of a


def pair_sums(
    a: Num[jax.Array | np.ndarray, "n n"],
    b: Num[jax.Array | np.ndarray, "n n"],
    perms: Integer[jax.Array | np.ndarray, "perm n"],
    *,
    impl: Literal["jax", "numba", "pallas"],
) -> Float[jax.Array | np.ndarray, "perm"]:
    """Sum a[i, j] b[p_i, p_j] over i < j for every permutation p.

    Errors are relative to S = sum_{i < j} |a[i, j] b[p_i, p_j]|. Memory beyond the arguments, which are not copied:
    in numba 12 n bytes per permutation, else two rows and n sums.

    Args:
        a: symmetric matrix with a zero diagonal, of dtype float32, float64, int16 or int32. Rows and columns of zeros
            at the end cost next to nothing in numba.
        b: symmetric matrix with a zero diagonal, of the same dtype.
        perms: one permutation of 0 .. n - 1 per row.
        impl: `jax` traces under `jit` and `vmap` on any device. It multiplies in the dtype of `a`, integers in float32,
            and sums with twice the digits (`saejax_kernels.summation`): the error is at most three roundings of S,
            2e-7 S in float32.
            `numba` runs on the CPU from the host. It sums int16 in int64, without any error while the sum is below
            2^53; all else in float64, where the error is at most 2 n roundings of S, 1e-12 S at n = 4,096, and none
            while S is below 2^53 and the numbers are integers.
            `pallas` traces for a GPU or a TPU alone and sums in the same way; the two kernels state their errors,
            memory and dtypes.

    Returns:
        One sum per permutation: float64 from numba.
    """
    if impl == "pallas":
        return _on_accelerator(jnp.asarray(a), jnp.asarray(b), jnp.asarray(perms))
    if impl == "jax":
        return jax.vmap(_pair_sum, in_axes=(None, None, 0))(jnp.asarray(a), jnp.asarray(b), jnp.asarray(perms))
    if impl != "numba":
        raise ValueError(f"impl {impl!r} is unknown; choose jax, numba or pallas")
    number = np.int64 if a.dtype == np.int16 else np.float64
    sums = np.empty(len(perms))
    blocks = _round_up(_round_up(len(perms), BLOCK) // BLOCK, numba.get_num_threads())
    a, b = np.asarray(a), np.asarray(b)
    rows = len(a)
    while rows > 1 and not a[rows - 1].any():  # zeros that were appended
        rows -= 1
    _pair_sums(a, b, np.ascontiguousarray(perms, dtype=np.uint32), rows, number, blocks, sums)
    return sums


def _on_accelerator(a: jax.Array, b: jax.Array, perms: jax.Array) -> jax.Array:
    from saejax_kernels.pair_sums_gpu import pair_sums_gpu  # here, because Pallas takes long to import
    from saejax_kernels.pair_sums_tpu import pair_sums_tpu

    return jax.lax.platform_dependent(a, b, perms, cuda=pair_sums_gpu, tpu=pair_sums_tpu)


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _pair_sum(a: jax.Array, b: jax.Array, perm: jax.Array) -> jax.Array:
    dtype = a.dtype if jnp.issubdtype(a.dtype, jnp.floating) else jnp.float32

    def row(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        a_row, partner = pair
        return pairwise_sum(a_row.astype(dtype) * b[partner][perm].astype(dtype))

    return pairwise_sum(jax.lax.map(row, (a, perm))) / 2


@compiled(fastmath=FAST_SUMS)
@no_type_check
def _row_sum(a_row, b_row, perm, stop, number):
    total = number(0)
    for j in range(stop):
        total += number(a_row[j]) * number(b_row[perm[j]])
    return total


@compiled(parallel=True)
@no_type_check
def _pair_sums(a, b, perms, rows, number, blocks, sums):
    n, count = len(a), len(perms)
    for block in numba.prange(blocks):
        first, last = block * count // blocks, (block + 1) * count // blocks
        totals, b_row = np.zeros(last - first, number), np.empty(n, b.dtype)
        for i in range(1, rows):
            for q in range(first, last):
                b_row[:] = b[perms[q, i]]
                totals[q - first] += _row_sum(a[i], b_row, perms[q], i, number)
        sums[first:last] = totals
