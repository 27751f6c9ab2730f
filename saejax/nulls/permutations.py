"""Permutation i of a null is a function of (seed, i), to the bit, wherever it is computed.

Each row j of a pairing gets a random word, the first output of Threefry-2x32 with 20 rounds under the key seed and
the counter (i, j); permutation i is the stable argsort of the words (`saejax_kernels.draw_permutations`). So
permutations can be drawn in any order, in batches of any size and on any device, and two runs over disjoint ranges of
i merge into their union. Two rows with the same word (at n = 4,000, in one permutation out of 540) keep their order,
a bias that no test could see.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int32, Integer, UInt32
from saejax_kernels import draw_permutations
from saejax_kernels.draw_permutations import words

from saejax.errors import InputError
from saejax.types import AnyArray, Array, Permutations

MOST_PERMUTATIONS = 2**32
LARGEST_WORD = np.uint32(2**32 - 1)


def key_of(seed: int) -> UInt32[np.ndarray, "2"]:
    """Return the Threefry key of a seed: its high and its low 32 bits.

    Args:
        seed: integer from 0 to 2^64 - 1.

    Raises:
        InputError: the seed does not fit in 64 bits.
    """
    if not 0 <= seed < 2**64:
        raise InputError(f"seed {seed} must be at least 0 and below 2^64")
    return np.array([seed >> 32, seed & 0xFFFFFFFF], dtype=np.uint32)


def on_host(
    key: UInt32[np.ndarray, "2"],
    indices: UInt32[np.ndarray, "perm"],
    n: int,
    strata: Int32[np.ndarray, "n"] | None = None,
    names: UInt32[np.ndarray, "n 2"] | None = None,
) -> UInt32[np.ndarray, "perm n"]:
    """Return permutations `indices` of n rows, by numba.

    Args:
        key: from `key_of`.
        indices: which permutations.
        n: rows to permute.
        strata: a number per row; rows are permuted among those of their number. All n when None.
        names: two words per row, by which it draws wherever it stands; by its number when None.
    """
    return np.asarray(draw_permutations(key, indices, n, impl="numba", strata=strata, names=names))


def extended(perms: Integer[np.ndarray, "perm n"], rows: int) -> Integer[np.ndarray, "perm rows"]:
    """Return permutations of more rows; those past the n-th stay in place.

    Args:
        perms: permutations of n rows, from the host.
        rows: n or more.
    """
    n = perms.shape[1]
    if rows == n:
        return perms
    rest = np.arange(n, rows, dtype=np.uint32)
    return np.concatenate([perms, np.broadcast_to(rest, (len(perms), len(rest)))], axis=1)


def on_device(
    key: UInt32[AnyArray, "2"],
    indices: UInt32[Array, "perm"],
    n: int | Integer[AnyArray, ""],
    rows: int | None = None,
) -> Permutations:
    """Return permutations `indices` of n rows, by JAX; traces under `jit`.

    Args:
        key: from `key_of`.
        indices: which permutations.
        n: rows to permute; traced only where `rows` is given.
        rows: n or more; rows past the n-th stay in place.
    """
    rows = int(n) if rows is None else rows
    drawn = words(jnp.asarray(key), indices, rows)
    # The largest word sends them to the end, and a stable sort leaves them in order, behind a row that drew it.
    return jnp.argsort(jnp.where(jnp.arange(rows) < n, drawn, LARGEST_WORD), axis=1, stable=True)


def as_indices(start: int, stop: int) -> UInt32[np.ndarray, "perm"]:
    """Return permutation numbers `start` to `stop - 1` as words; those past 2^32 wrap around."""
    return np.arange(start, stop, dtype=np.uint64).astype(np.uint32)
