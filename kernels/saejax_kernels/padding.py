"""Zero rows and columns at the end of a pair of matrices, which change no sum over pairs of rows.

Accelerators move memory in tiles. A caller that keeps its matrices padded already pays nothing here.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Int32, Integer, Num


def pad_pair(
    a: Num[jax.Array, "n n"], b: Num[jax.Array, "n n"], perms: Integer[jax.Array, "perm n"], multiple: int
) -> tuple[Num[jax.Array, "m m"], Num[jax.Array, "m m"], Int32[jax.Array, "perm m"]]:
    """Return both matrices and the permutations with n rounded up, the new rows left where they are.

    Args:
        a: first matrix; copied unless n is a multiple already.
        b: second matrix, likewise.
        perms: one permutation of 0 .. n - 1 per row.
        multiple: what n is rounded up to a multiple of.
    """
    n = len(a)
    m = -(-n // multiple) * multiple
    perms = perms.astype(jnp.int32)
    if m == n:
        return a, b, perms
    fixed = jnp.broadcast_to(jnp.arange(n, m, dtype=jnp.int32), (len(perms), m - n))
    a, b = (jnp.pad(matrix, (0, m - n)) for matrix in (a, b))
    return a, b, jnp.concatenate([perms, fixed], axis=1)
