"""The products of `sparse_products` for TPUs, in Pallas.

A table stays in the chip's main memory. Rows of it come into vector memory one by one, 8 of them to a slot of a ring,
and the copies for the other slots are under way while one is used. In a decode and the gradient to its codes a slot
holds what 8 activations name in one column of the codes, so that each vector instruction works for all of them; indices
lie in scalar memory. The gradient of a weight matrix has its codes sorted by latent first: a step of the grid owns some
latents and walks their codes, 8 to a slot, which come into scalar memory a window at a time. So each sum is added up in
one order, over columns or over activations, and nothing is added atomically or held as `[rows, k, d_model]`.

Of the 16 MiB of vector memory that a kernel may take it takes 12 at most, up to a d_model of 65,536; at 2,304 it is 2
to 6. It has not run on a TPU. Tests interpret it on the CPU and lower it for a TPU; libtpu 0.0.42 and 0.0.52 compiled
it for TPU v5e and v5p, up to 8,192 rows, k 64, d_sae 65,536 and d_model 2,304. There the schedule for v5e has 17 cycles
for a row of a decode and 33 for a sorted code, not counting waits for copies.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Float, Float32, Int

SUBLANES, LANES = 8, 128  # of a tile of vector memory
BLOCK_BYTES = 2**22  # of the vectors of a step of the grid, which lie in vector memory twice
RING_BYTES = 2**21  # of the rows of a table that lie there
COLUMNS = 512  # of the codes of a step at most
WINDOW = 4096  # sorted codes that come into scalar memory at once


@partial(jax.jit, static_argnames="interpret")
def weighted_rows_tpu(
    values: Float[jax.Array, "rows k"],
    indices: Int[jax.Array, "rows k"],
    table: Float[jax.Array, "d_sae d_model"],
    *,
    interpret: bool = False,
) -> Float32[jax.Array, "rows d_model"]:
    """Sum the named rows of a table with weights: out[r] = sum_j values[r, j] * table[indices[r, j]].

    Memory beyond the arguments: a copy of the table in float32, unless it is float32 and d_model a multiple of 128.

    Args:
        values: weights.
        indices: which row of the table each weight belongs to.
        table: the rows, float32 or bfloat16.
        interpret: run on the CPU, for tests.

    Returns:
        One vector per row.
    """
    width, table = table.shape[1], _whole_tiles(table)
    blocks = _blocks(indices, table)
    kernel = pl.pallas_call(
        partial(_add_rows, k=values.shape[1]),
        out_shape=jax.ShapeDtypeStruct((len(values), table.shape[1]), jnp.float32),
        grid=blocks.grid,
        in_specs=[blocks.of_indices, blocks.of_codes, pl.BlockSpec(memory_space=pl.ANY)],
        out_specs=blocks.of_vectors,
        scratch_shapes=_ring(table.shape[1]),
        compiler_params=_parameters("parallel", "arbitrary"),
        interpret=interpret,
    )
    with jax.enable_x64(False):  # Mosaic has no 64-bit loop counters
        return kernel(blocks.indices, values.astype(jnp.float32), table)[:, :width]


def _add_rows(indices: Any, values: Any, table: Any, sums: Any, ring: Any, arrived: Any, *, k: int) -> None:
    @pl.when(pl.program_id(1) == 0)
    def begin() -> None:
        sums[...] = jnp.zeros(sums.shape, jnp.float32)

    def add(here: Any, column: Any, rows: Any) -> None:
        own = values[here, :]
        in_column = lax.broadcasted_iota(jnp.int32, own.shape, 1) == column
        sums[here, :] += jnp.sum(jnp.where(in_column, own, 0), axis=1, keepdims=True) * rows[...]

    _for_columns(k, indices, table, ring, arrived, add)


@partial(jax.jit, static_argnames="interpret")
def products_at_tpu(
    x: Float[jax.Array, "rows d_model"],
    indices: Int[jax.Array, "rows k"],
    table: Float[jax.Array, "d_sae d_model"],
    *,
    interpret: bool = False,
) -> Float32[jax.Array, "rows k"]:
    """Take the named entries of `x @ table.T`: out[r, j] = x[r] . table[indices[r, j]].

    Memory beyond the arguments: copies of them in float32, unless they are float32 and d_model a multiple of 128.

    Args:
        x: one vector per row, float32 or bfloat16.
        indices: which rows of the table to multiply with.
        table: the rows, float32 or bfloat16.
        interpret: run on the CPU, for tests.

    Returns:
        One product per row and column of `indices`.
    """
    x, table = _whole_tiles(x), _whole_tiles(table)
    blocks = _blocks(indices, table)
    kernel = pl.pallas_call(
        partial(_multiply_rows, k=indices.shape[1]),
        out_shape=jax.ShapeDtypeStruct(indices.shape, jnp.float32),
        grid=blocks.grid,
        in_specs=[blocks.of_indices, blocks.of_vectors, pl.BlockSpec(memory_space=pl.ANY)],
        out_specs=blocks.of_codes,
        scratch_shapes=_ring(table.shape[1]),
        compiler_params=_parameters("parallel", "parallel"),
        interpret=interpret,
    )
    with jax.enable_x64(False):
        return kernel(blocks.indices, x, table)


def _multiply_rows(indices: Any, x: Any, table: Any, products: Any, ring: Any, arrived: Any, *, k: int) -> None:
    def multiply(here: Any, column: Any, rows: Any) -> None:
        product = jnp.sum(x[here, :] * rows[...], axis=1, keepdims=True)
        others = products[here, :]
        in_column = lax.broadcasted_iota(jnp.int32, others.shape, 1) == column
        products[here, :] = jnp.where(in_column, product, others)

    _for_columns(k, indices, table, ring, arrived, multiply)


@partial(jax.jit, static_argnames=("size", "interpret"))
def outer_sum_tpu(
    values: Float[jax.Array, "rows k"],
    indices: Int[jax.Array, "rows k"],
    x: Float[jax.Array, "rows d_model"],
    size: int,
    *,
    interpret: bool = False,
) -> Float32[jax.Array, "size d_model"]:
    """Compute `codes.T @ x` for sparse codes: out[l] = sum of values[r, j] * x[r] where indices[r, j] = l.

    Memory beyond the arguments: a few arrays like the codes; a copy of `x` in float32, unless it is float32 and d_model
    a multiple of 128, and then one of the sums too.

    Args:
        values: codes.
        indices: the latent of each code.
        x: one vector per row, float32 or bfloat16.
        size: number of latents.
        interpret: run on the CPU, for tests.

    Returns:
        One vector per latent; zero where no row names it.
    """
    width, x = x.shape[1], _whole_tiles(x)
    block = _rows_in_block(x.shape[1], 256)
    grid = pl.cdiv(size, block)
    latents, order = lax.sort_key_val(indices.reshape(-1).astype(jnp.int32), jnp.arange(indices.size, dtype=jnp.int32))
    starts = jnp.searchsorted(latents, jnp.minimum(block * jnp.arange(grid + 1), size)).astype(jnp.int32)
    bits = lax.bitcast_convert_type(values.reshape(-1)[order].astype(jnp.float32), jnp.int32)
    codes = jnp.stack([latents, order // indices.shape[1], bits])
    codes = jnp.pad(codes, ((0, 0), (0, -indices.size % WINDOW)), mode="edge").reshape(3, -1, LANES)
    kernel = pl.pallas_call(
        _add_codes,
        out_shape=jax.ShapeDtypeStruct((size, x.shape[1]), jnp.float32),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(grid,),
            in_specs=[pl.BlockSpec(memory_space=pl.ANY)] * 2,
            out_specs=pl.BlockSpec((block, x.shape[1]), lambda step, _: (step, 0)),
            scratch_shapes=[pltpu.SMEM((3, WINDOW // LANES, LANES), jnp.int32), *_ring(x.shape[1])],
        ),
        compiler_params=_parameters("parallel"),
        interpret=interpret,
    )
    with jax.enable_x64(False):
        return kernel(starts, codes, x)[:, :width]


def _add_codes(starts: Any, all_codes: Any, x: Any, sums: Any, codes: Any, ring: Any, arrived: Any) -> None:
    """Add up the rows of `x` for some latents, whose codes follow each other."""
    block, most = pl.program_id(0), len(sums) - 1
    start, stop = starts[block], starts[block + 1]
    sums[...] = jnp.zeros(sums.shape, jnp.float32)

    def add_window(window: Any, _: None) -> None:
        pltpu.sync_copy(all_codes.at[:, pl.ds(window * (WINDOW // LANES), WINDOW // LANES)], codes)
        first = jnp.maximum(start - window * WINDOW, 0)
        end = jnp.minimum(stop - window * WINDOW, WINDOW)
        begin = lax.div(first, SUBLANES)  # slots begin at multiples of 8

        def part(which: int, step: Any, i: int) -> Any:
            slot = begin + step
            return codes[which, lax.div(slot, LANES // SUBLANES), lax.rem(slot, LANES // SUBLANES) * SUBLANES + i]

        def add(step: Any, rows: Any) -> None:
            # Codes of other blocks, at either end, add nothing to the latent that is next to theirs.
            latents = [jnp.clip(part(0, step, i) - block * len(sums), 0, most) for i in range(SUBLANES)]
            total = sums[pl.ds(latents[0], 1), :]
            for i, latent in enumerate(latents):
                if i:
                    total = jnp.where(latent == latents[i - 1], total, 0)
                place = (begin + step) * SUBLANES + i
                value = lax.bitcast_convert_type(part(2, step, i), jnp.float32)
                total += jnp.where((first <= place) & (place < end), value * rows[pl.ds(i, 1), :], 0)
                sums[pl.ds(latent, 1), :] = total

        steps = lax.div(end + SUBLANES - 1, SUBLANES) - begin
        _for_slots(steps, lambda step, i: part(1, step, i), x, ring, arrived, add)

    lax.fori_loop(lax.div(start, WINDOW), lax.div(stop + WINDOW - 1, WINDOW), add_window, None)


class _Blocks(NamedTuple):
    """How codes and vectors are cut into the steps of a grid, whose second axis is over the columns of the codes."""

    grid: tuple[int, int]
    indices: jax.Array
    """Padded to whole blocks, and inside the table: a row of NaN has no k largest entries, and names none of it."""
    of_indices: pl.BlockSpec
    of_codes: pl.BlockSpec
    of_vectors: pl.BlockSpec


def _blocks(indices: jax.Array, table: jax.Array) -> _Blocks:
    rows, k = indices.shape
    block, columns = _rows_in_block(table.shape[1], 64), min(-(-k // LANES) * LANES, COLUMNS)
    indices = jnp.clip(indices, 0, len(table) - 1).astype(jnp.int32)
    return _Blocks(
        (pl.cdiv(rows, block), pl.cdiv(k, columns)),
        jnp.pad(indices, ((0, -rows % block), (0, -k % columns))),
        pl.BlockSpec((block, columns), lambda row, column: (row, column), memory_space=pltpu.SMEM),
        pl.BlockSpec((block, columns), lambda row, column: (row, column)),
        pl.BlockSpec((block, table.shape[1]), lambda row, column: (row, 0)),
    )


def _for_columns(k: int, indices: Any, table: Any, ring: Any, arrived: Any, use: Callable[[Any, Any, Any], None]):
    """Call `use(8 activations, column, rows of the table)` for all of a block, one column after another."""
    eights = len(indices) // SUBLANES
    columns = jnp.minimum(k - pl.program_id(1) * indices.shape[1], indices.shape[1])

    def named(step: Any, i: int) -> Any:
        return indices[lax.rem(step, eights) * SUBLANES + i, lax.div(step, eights)]

    def use_slot(step: Any, rows: Any) -> None:
        first = pl.multiple_of(lax.rem(step, eights) * SUBLANES, SUBLANES)
        use(pl.ds(first, SUBLANES), lax.div(step, eights), rows)

    _for_slots(columns * eights, named, table, ring, arrived, use_slot)


def _for_slots(
    steps: Any, named: Callable[[Any, int], Any], table: Any, ring: Any, arrived: Any, use: Callable[[Any, Any], None]
) -> None:
    """Call `use(step, rows)` with the 8 rows of the table that each step names, fetched some steps ahead."""
    slots = len(ring)

    def fetch(step: Any) -> None:
        @pl.when(step < steps)
        def start() -> None:
            slot = lax.rem(step, slots)
            for i in range(SUBLANES):
                row, place = table.at[pl.ds(named(step, i), 1)], ring.at[slot, pl.ds(i, 1)]
                pltpu.make_async_copy(row, place, arrived.at[slot]).start()

    def one(step: Any, _: None) -> None:
        fetch(step + slots - 1)  # into the slot that the step before used
        slot = ring.at[lax.rem(step, slots)]
        pltpu.make_async_copy(slot, slot, arrived.at[lax.rem(step, slots)]).wait()  # for as many bytes as a slot has
        use(step, slot)

    lax.fori_loop(0, slots - 1, lambda step, _: fetch(step), None)
    lax.fori_loop(0, steps, one, None)


def _ring(width: int) -> list[Any]:
    slots = max(count for count in (2, 4, 8, 16, 32) if count == 2 or 4 * SUBLANES * width * count <= RING_BYTES)
    return [pltpu.VMEM((slots, SUBLANES, width), jnp.float32), pltpu.SemaphoreType.DMA((slots,))]


def _rows_in_block(width: int, most: int) -> int:
    sizes = (size for size in (8, 16, 32, 64, 128, 256) if size <= most)
    return max(size for size in sizes if size == SUBLANES or 4 * width * size <= BLOCK_BYTES)


def _whole_tiles(vectors: jax.Array) -> jax.Array:
    # Rows of bfloat16 lie in memory in pairs, of which one alone cannot be copied.
    return jnp.pad(vectors.astype(jnp.float32), ((0, 0), (0, -vectors.shape[1] % LANES)))


def _parameters(*semantics: Any) -> pltpu.CompilerParams:
    # Every row that is named is there; checking that for each copy would take longer than what is done with the row.
    return pltpu.CompilerParams(dimension_semantics=semantics, disable_bounds_checks=True)
