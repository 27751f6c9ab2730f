"""`encode_top_k` for TPUs, in Pallas: the product is made tile by tile in vector memory, and never whole.

A step of the grid multiplies 128 rows with up to 512 latents and merges what is large enough into the k largest that
the rows have so far, which stay in vector memory until all latents have passed: it takes the largest entry of each row,
puts it in the place of the smallest that is kept, and repeats while any row has a larger one. Of a row's entries in
random order the n-th is among its k largest with probability k / n, so a row is merged into some k (1 + log(d_sae / k))
times.

It has not run on a TPU. Tests interpret it on the CPU and lower it for a TPU; libtpu 0.0.52 compiled it for TPU v5e and
v5p, up to d_model 2,304, d_sae 65,536 and k 64.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Float, Float32, Int32

ROWS, LANES = 128, 128  # of a tile; the kept entries of a row take a multiple of the lanes
TILE_BYTES = 2**21  # of the weights of a tile, of which two lie in vector memory


@partial(jax.jit, static_argnames=("k", "interpret"))
def encode_top_k_tpu(
    x: Float[jax.Array, "rows d_model"],
    W: Float[jax.Array, "d_sae d_model"],
    b: Float32[jax.Array, "d_sae"],
    k: int,
    *,
    interpret: bool = False,
) -> tuple[Float32[jax.Array, "rows k"], Int32[jax.Array, "rows k"]]:
    """Find the k largest of x @ W.T + b in each row, largest first; of equal ones those of the lowest latents.

    Memory beyond the arguments: rows x (k rounded up to 128) numbers twice; copies of `x`, `W` and `b` unless rows are
    a multiple of 128 and latents of 512 (of fewer where rows of `W` are long).

    Args:
        x: one vector per row, float32 or bfloat16.
        W: one vector per latent, of the same dtype.
        b: one number per latent.
        k: entries to find per row.
        interpret: run on the CPU, for tests.

    Returns:
        The entries and their latents.
    """
    rows, d_sae = len(x), len(W)
    tile_latents = max(
        size for size in (128, 256, 512) if size == 128 or size * W.shape[1] * W.dtype.itemsize <= TILE_BYTES
    )
    x = jnp.pad(x, ((0, -rows % ROWS), (0, 0)))
    W = jnp.pad(W, ((0, -d_sae % tile_latents), (0, 0)))
    b = jnp.pad(b, (0, -d_sae % tile_latents), constant_values=-jnp.inf)[None]
    width = -(-k // LANES) * LANES
    kept = pl.BlockSpec((ROWS, width), lambda row, tile: (row, 0))
    kernel = pl.pallas_call(
        partial(_merge_tile, k=k),
        out_shape=[jax.ShapeDtypeStruct((len(x), width), dtype) for dtype in (jnp.float32, jnp.int32)],
        grid=(len(x) // ROWS, len(W) // tile_latents),
        in_specs=[
            pl.BlockSpec((ROWS, x.shape[1]), lambda row, tile: (row, 0)),
            pl.BlockSpec((tile_latents, x.shape[1]), lambda row, tile: (tile, 0)),
            pl.BlockSpec((1, tile_latents), lambda row, tile: (0, tile)),
        ],
        out_specs=[kept, kept],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
    )
    with jax.enable_x64(False):  # Mosaic has no 64-bit loop counters
        values, latents = kernel(x, W, b)
    # Entries lie where there was a place; equal ones are put in the order of their latents.
    negated, latents = lax.sort((-values[:rows, :k], latents[:rows, :k]), num_keys=2)
    return -negated, latents


def _merge_tile(x: Any, W: Any, b: Any, values: Any, latents: Any, *, k: int) -> None:
    """Merge the products of some rows with one tile of latents into the largest that these rows have so far."""
    tile = pl.program_id(1)
    place = lax.broadcasted_iota(jnp.int32, values.shape, 1)

    @pl.when(tile == 0)
    def begin() -> None:
        # Places beyond k hold what nothing is larger than.
        values[...] = jnp.where(place < k, -jnp.inf, jnp.inf)
        latents[...] = jnp.full(latents.shape, jnp.iinfo(jnp.int32).max, jnp.int32)

    exactly = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    z = lax.dot_general(x[...], W[...], (((1,), (1,)), ((), ())), precision=exactly, preferred_element_type=jnp.float32)
    z += b[...]
    latent = tile * z.shape[1] + lax.broadcasted_iota(jnp.int32, z.shape, 1)

    def unfinished(state: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        z, values, _ = state
        return jnp.any(jnp.max(z, axis=1) > jnp.min(values, axis=1))

    def take(state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        z, values, latents = state
        largest = jnp.max(z, axis=1, keepdims=True)
        where = jnp.min(jnp.where(z == largest, latent, jnp.iinfo(jnp.int32).max), axis=1, keepdims=True)
        smallest = jnp.min(values, axis=1, keepdims=True)
        # Of equal ones the highest latent gives way, which is the last that came.
        last = jnp.max(jnp.where(values == smallest, latents, -1), axis=1, keepdims=True)
        among = (values == smallest) & (latents == last)
        first = jnp.min(jnp.where(among, place, jnp.iinfo(jnp.int32).max), axis=1, keepdims=True)
        here = (place == first) & (largest > smallest)
        return (
            jnp.where(latent == where, -jnp.inf, z),
            jnp.where(here, largest, values),
            jnp.where(here, where, latents),
        )

    merged = lax.while_loop(unfinished, take, (z, values[...], latents[...]))
    values[...], latents[...] = merged[1:]
