"""Weighted sums of the rows of a table, one sum per bag of pairs (weight, row), for NVIDIA GPUs from Hopper on.

A decode of sparse codes is such a sum: a bag holds the k codes of one activation. So is the gradient of a weight
matrix: a bag holds the activations that one latent is active on. The second would else be a scatter, which needs atomic
additions, whose order, and so the last bits, differ from run to run.

A block of threads takes one bag and a stretch of columns, and walks the bag's pairs in order; a row goes from memory
into registers as it lies. Without a GPU, tests lower it for one and interpret it on the CPU.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Float32, Int32

from saejax_kernels.mosaic import interpreter

THREADS = 128  # of a block
WIDEST = 1024  # columns that a block takes at most
AT_ONCE = 4  # rows whose loads are under way together

# Axes of the grid. No device mesh around the kernel may have one of that name: Mosaic would take the place of the
# device along it for that of the block.
BAGS, STRETCHES = "bag_sums_bags", "bag_sums_stretches"


@partial(jax.jit, static_argnames="interpret")
def bag_sums_gpu(
    weights: Float32[jax.Array, "pairs"],
    rows: Int32[jax.Array, "pairs"],
    starts: Int32[jax.Array, "bags_and_end"],
    table: Float32[jax.Array, "size d"],
    *,
    interpret: bool = False,
) -> Float32[jax.Array, "bags d"]:
    """Sum weights[p] * table[rows[p]] over the pairs p of each bag, in their order.

    Memory beyond the arguments: a copy of the table unless d is a multiple of 128.

    Args:
        weights: of each pair.
        rows: row of the table of each pair.
        starts: first pair of each bag, ascending, and then the number of pairs.
        table: the rows.
        interpret: run on the CPU, for tests.

    Returns:
        One sum per bag; zero for an empty one.
    """
    width = table.shape[1]
    table = jnp.pad(table, ((0, 0), (0, -width % THREADS)))
    stretch = max(size for size in range(THREADS, WIDEST + 1, THREADS) if table.shape[1] % size == 0)
    grid = (table.shape[1] // stretch, len(starts) - 1)
    kernel = plgpu.kernel(
        partial(_sum_bag, stretch=stretch, interpret=interpret),
        out_type=jax.ShapeDtypeStruct((len(starts) - 1, table.shape[1]), jnp.float32),
        grid=grid,
        grid_names=(STRETCHES, BAGS),
        interpret=interpreter() if interpret else None,
    )
    return kernel(weights, rows, starts, table)[:, :width]


def _sum_bag(weights: Any, rows: Any, starts: Any, table: Any, sums: Any, *, stretch: int, interpret: bool) -> None:
    bag = jax.lax.axis_index(BAGS)
    columns = pl.ds(jax.lax.axis_index(STRETCHES) * stretch, stretch)
    per_thread = stretch // THREADS
    vector = max(size for size in (1, 2, 4) if per_thread % size == 0)
    layout = plgpu.Layout.WG_STRIDED((stretch,), vec_size=vector)
    start, stop = starts[bag], starts[bag + 1]

    def spread(values: jax.Array) -> jax.Array:
        return values if interpret else plgpu.layout_cast(values, layout)

    def add(step: jax.Array, total: jax.Array) -> jax.Array:
        places = [start + step * AT_ONCE + i for i in range(AT_ONCE)]
        inside = [jnp.minimum(place, stop - 1) for place in places]
        found = [spread(table[rows[place], columns]) for place in inside]
        for place, safe, row in zip(places, inside, found, strict=True):
            total += jnp.where(place < stop, weights[safe], 0.0) * row
        return total

    zero = spread(jnp.zeros(stretch, jnp.float32))
    sums[bag, columns] = jax.lax.fori_loop(0, (stop - start + AT_ONCE - 1) // AT_ONCE, add, zero)
