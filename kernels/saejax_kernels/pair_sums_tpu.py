"""`pair_sums` for TPUs, in Pallas.

A step of the grid takes 8 rows of `a` and the rows of `b` that belong to them, which the pipeline fetches ahead into
vector memory: the permutation goes before as scalars, so that it may choose the blocks. A row of length n lies as
n / 128 sublanes of 128 lanes. A TPU gathers within the 128 lanes of a register, so every sublane of the row is
gathered from in turn, and each number kept where its place lies in that sublane: n^3 / 128 selections per permutation.

It has not run on a TPU. Tests interpret it on the CPU and lower it for a TPU; libtpu 0.0.42 compiled it for TPU v4,
v5e, v5p and v6e, up to n = 32,768.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Float32, Integer, Num

from saejax_kernels.padding import pad_pair
from saejax_kernels.summation import pairwise_sum, two_sum

LANES = 128
ROWS = 8  # rows of a in one step of the grid
DTYPES = ("float32", "int16", "int32")


@partial(jax.jit, static_argnames="interpret")
def pair_sums_tpu(
    a: Num[jax.Array, "n n"],
    b: Num[jax.Array, "n n"],
    perms: Integer[jax.Array, "perm n"],
    *,
    interpret: bool = False,
) -> Float32[jax.Array, "perm"]:
    """Sum a[i, j] b[p_i, p_j] over i < j for every permutation p, in float32, one permutation after another.

    Each product is rounded, and added with twice the digits; so is the sum of 8 rows, and that of all. The error is at
    most three roundings of the sum of the terms' sizes, 2e-7 of it. Memory beyond the arguments: n^2 bytes, and copies
    of `a` and `b` in another layout.

    Args:
        a: symmetric matrix with a zero diagonal, of dtype float32, int16 or int32.
        b: symmetric matrix with a zero diagonal, of the same dtype.
        perms: one permutation of 0 .. n - 1 per row.
        interpret: run on the CPU, for tests.

    Returns:
        One sum per permutation.

    Raises:
        ValueError: the dtype is another one.
    """
    if a.dtype not in DTYPES or a.dtype != b.dtype:
        raise ValueError(f"dtypes {a.dtype} and {b.dtype} are not one of {', '.join(DTYPES)}; convert both matrices")
    a, b, perms = pad_pair(a, b, perms, ROWS * LANES)
    n, depth = len(a), len(a) // LANES

    def row_of_b(k: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, depth, LANES), lambda step, perm: (perm[step * ROWS + k], 0, 0))

    kernel = pl.pallas_call(
        _sum_rows,
        out_shape=jax.ShapeDtypeStruct((n // ROWS, depth, LANES), jnp.float32),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(n // ROWS,),
            in_specs=[
                pl.BlockSpec((depth, LANES), lambda step, perm: (0, 0)),
                pl.BlockSpec((ROWS, depth, LANES), lambda step, perm: (step, 0, 0)),
                *map(row_of_b, range(ROWS)),
            ],
            out_specs=pl.BlockSpec((1, depth, LANES), lambda step, perm: (step, 0, 0)),
            scratch_shapes=[pltpu.VMEM((depth, LANES), jnp.float32)],
        ),
        interpret=interpret,
    )
    a, b = (matrix.reshape(n, depth, LANES) for matrix in (a, b))

    def one(perm: jax.Array) -> jax.Array:
        with jax.enable_x64(False):  # Mosaic has no 64-bit loop counters
            partial_sums = kernel(perm, perm.reshape(depth, LANES), a, *[b] * ROWS)
        return pairwise_sum(partial_sums.reshape(-1)) / 2

    return jax.lax.map(one, perms)


def _sum_rows(_: Any, perm: Any, a: Any, *refs: Any) -> None:
    """Add the products of 8 rows, place by place."""
    *b_rows, sums, row = refs
    places = perm[...]
    sublanes, lanes = places >> 7, places & (LANES - 1)
    zeros = jnp.zeros(places.shape, jnp.float32)

    def gather_from(sublane: jax.Array, gathered: jax.Array) -> jax.Array:
        source = jnp.broadcast_to(row[pl.ds(sublane, 1), :], places.shape)
        candidates = jnp.take_along_axis(source, lanes, axis=1, mode="promise_in_bounds")
        return jnp.where(sublanes == sublane, candidates, gathered)

    high = low = zeros
    for k, b_row in enumerate(b_rows):
        row[...] = b_row[0].astype(jnp.float32)
        product = a[k].astype(jnp.float32) * jax.lax.fori_loop(0, len(places), gather_from, zeros)
        high, lost = two_sum(high, product)
        low += lost
    sums[0] = high + low
