"""The entries of a re-paired matrix at the places that a list names for each row.

    listed_entries[q, i, a] = matrix[p_i, p_j]    with j the a-th entry of the list of row i, p = perm_q

It reads n k of the n^2 entries, in rows of the matrix that the permutation scatters: the cost is that of reaching
memory. At n = 4,000 and k = 10 numba took 0.11 ms per permutation on two cores.
"""

from typing import Literal, no_type_check

import jax
import jax.numpy as jnp
import numba
import numpy as np
from jaxtyping import Float, Integer

from saejax_kernels.compiled import compiled


def listed_entries(
    matrix: Float[jax.Array | np.ndarray, "n n"],
    lists: Integer[jax.Array | np.ndarray, "n k"],
    perms: Integer[jax.Array | np.ndarray, "perm n"],
    *,
    impl: Literal["jax", "numba"],
) -> Float[jax.Array | np.ndarray, "perm n k"]:
    """Read a re-paired matrix at listed places.

    Args:
        matrix: any square matrix.
        lists: columns wanted of each row, numbered from 1; 0 stands for none.
        perms: one permutation of 0 .. n - 1 per row.
        impl: `jax` traces under `jit` and `vmap` on any device; `numba` runs on the CPU from the host.

    Returns:
        The entries in the dtype of the matrix, 0 where none was wanted.
    """
    if impl == "jax":
        matrix, lists = jnp.asarray(matrix), jnp.asarray(lists, jnp.int32)
        return jax.vmap(_entries, in_axes=(None, None, 0))(matrix, lists, jnp.asarray(perms, jnp.int32))
    if impl != "numba":
        raise ValueError(f"impl {impl!r} is unknown; choose jax or numba")
    matrix, lists = np.asarray(matrix), np.ascontiguousarray(lists, dtype=np.uint32)
    entries = np.empty((len(perms), *lists.shape), dtype=matrix.dtype)
    _gathered_entries(matrix, lists, np.ascontiguousarray(perms, dtype=np.uint32), entries)
    return entries


def _entries(matrix: jax.Array, lists: jax.Array, perm: jax.Array) -> jax.Array:
    return jnp.where(lists > 0, matrix[perm[:, None], perm[lists - 1]], 0)


@compiled(parallel=True)
@no_type_check
def _gathered_entries(matrix, lists, perms, entries):
    count, n, k = entries.shape
    for q in numba.prange(count):
        perm = perms[q]
        for i in range(n):
            row = matrix[perm[i]]
            for a in range(k):
                j = lists[i, a]
                entries[q, i, a] = row[perm[j - 1]] if j > 0 else 0
