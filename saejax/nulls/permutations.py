"""Permutation i of a null is a function of (seed, i), to the bit, wherever it is computed.

Each row j of a pairing gets a random word, the first output of Threefry-2x32 with 20 rounds under the key seed and
the counter (i, j); permutation i is the stable argsort of the words. So permutations can be drawn in any order, in
batches of any size and on any device, and two runs over disjoint ranges of i merge into their union. Two rows with
the same word (at n = 4,000, in one permutation out of 540) keep their order, a bias that no test could see.

The generator is written out rather than taken from `jax.random`, whose streams depend on options and versions of
JAX and cannot be had in numpy.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt32

from saejax.errors import InputError
from saejax.types import AnyArray, Array, Permutations, Words

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = np.uint32(0x1BD11BDA)
MOST_PERMUTATIONS = 2**32


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


def threefry2x32(key: UInt32[AnyArray, "2"], first: Words, second: Words) -> tuple[Words, Words]:
    """Encrypt pairs of words with 20 rounds of Threefry-2x32, in numpy or JAX alike.

    Args:
        key: two words.
        first: first words of the counters, of any shape.
        second: second words, of the same shape.

    Returns:
        First and second words of the output.
    """
    schedule = (key[0], key[1], key[0] ^ key[1] ^ PARITY)
    first, second = first + schedule[0], second + schedule[1]
    for group in range(5):
        for rotation in ROTATIONS[group % 2]:
            first = first + second
            second = ((second << rotation) | (second >> (32 - rotation))) ^ first
        first = first + schedule[(group + 1) % 3]
        second = second + schedule[(group + 2) % 3] + np.uint32(group + 1)
    return first, second


def words(key: UInt32[AnyArray, "2"], indices: UInt32[AnyArray, "perm"], n: int) -> UInt32[AnyArray, "perm n"]:
    """Return the words whose order makes the permutations, in the library of `indices`.

    Args:
        key: from `key_of`.
        indices: which permutations.
        n: rows to permute.
    """
    xp = np if isinstance(indices, np.ndarray) else jnp
    shape = (len(indices), n)
    rows = xp.arange(n, dtype=xp.uint32)
    return threefry2x32(key, xp.broadcast_to(indices[:, None], shape), xp.broadcast_to(rows, shape))[0]


def on_host(key: UInt32[np.ndarray, "2"], indices: UInt32[np.ndarray, "perm"], n: int) -> Permutations:
    """Return permutations `indices` of n rows, by numpy.

    A word and its row number are packed into one 64-bit integer: an unstable sort of those, which has a vector form,
    gives the stable argsort of the words. Memory: 8 n bytes per permutation, a few times over.
    """
    packed = words(key, indices, n).astype(np.uint64) << np.uint64(32)
    packed |= np.arange(n, dtype=np.uint64)
    packed.sort(axis=1)
    return packed.astype(np.uint32)


def on_device(key: UInt32[AnyArray, "2"], indices: UInt32[Array, "perm"], n: int) -> Permutations:
    """Return permutations `indices` of n rows, by JAX; traces under `jit`."""
    return jnp.argsort(words(key, indices, n), axis=1, stable=True)


def as_indices(start: int, stop: int) -> UInt32[np.ndarray, "perm"]:
    """Return permutation numbers `start` to `stop - 1` as words; those past 2^32 wrap around."""
    return np.arange(start, stop, dtype=np.uint64).astype(np.uint32)
