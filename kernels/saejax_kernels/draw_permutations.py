"""Random permutations as a function of a key and their number, to the bit, on any device.

Each row j gets a random word, the first output of Threefry-2x32 with 20 rounds under the key and the counter (i, j);
permutation i is the stable argsort of the words; where rows have strata, that of the words in each. A row that has a
name of two words (a, b) gets its word by them, wherever it stands: under the key with a added to its first word by
exclusive or, and the counter (i, b). The generator is
written out rather than taken from `jax.random`, whose streams depend on options and versions of JAX and cannot be had
elsewhere.

In JAX that is an argsort. In numba the words, which are uniform, go by their leading bits into twice as many buckets
as there are rows, and insertion then puts in order the few that share a bucket, in time proportional to n. On one
core of two that took 1.2, 13 and 122 us at n = 300, 4,000 and 32,768, on both half of it; numpy, which makes the
words in many passes, 17, 74 and 548.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from typing import Literal, no_type_check

import jax
import jax.numpy as jnp
import numba
import numpy as np
from jaxtyping import Integer, UInt32

from saejax_kernels.compiled import compiled

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = np.uint32(0x1BD11BDA)


def draw_permutations(
    key: UInt32[jax.Array | np.ndarray, "2"],
    indices: UInt32[jax.Array | np.ndarray, "perm"],
    n: int,
    *,
    impl: Literal["jax", "numba"],
    strata: Integer[jax.Array | np.ndarray, "n"] | None = None,
    names: UInt32[jax.Array | np.ndarray, "n 2"] | None = None,
) -> Integer[jax.Array | np.ndarray, "perm n"]:
    """Return permutations `indices` of 0 .. n - 1.

    Args:
        key: two words.
        indices: which permutations.
        n: rows to permute, from 1 to 2^31.
        impl: `jax` traces under `jit` on any device; `numba` runs on the CPU from the host, one permutation per core
            at a time, in at most 32 n bytes per core beyond the result.
        strata: a number per row; rows are permuted among those of their number. All rows among each other when None.
        names: two words per row, by which it draws; 0 and its number when None.

    Returns:
        One permutation per row, as signed integers from JAX and as words from numba.
    """
    if impl == "jax":
        drawn = jnp.asarray(words(jnp.asarray(key), jnp.asarray(indices), n, names))
        return jnp.argsort(drawn, axis=1, stable=True) if strata is None else _within(jnp.asarray(strata), drawn)
    if impl != "numba":
        raise ValueError(f"impl {impl!r} is unknown; choose jax or numba")
    strata = np.zeros(n, np.int32) if strata is None else np.asarray(strata)
    members = np.argsort(strata, kind="stable").astype(np.uint32)
    edges = np.flatnonzero(np.diff(strata[members])) + 1
    perms = np.empty((len(indices), n), dtype=np.uint32)
    edges = np.concatenate([[0], edges, [n]])
    names = _named(n) if names is None else np.asarray(names)
    _draw(np.asarray(key), np.asarray(indices), names, members, edges, perms)
    return perms


def threefry2x32(
    key: UInt32[jax.Array | np.ndarray, "2"] | tuple[UInt32[jax.Array | np.ndarray, "*n"], ...],
    first: UInt32[jax.Array | np.ndarray, "*n"],
    second: UInt32[jax.Array | np.ndarray, "*n"],
) -> tuple[UInt32[jax.Array | np.ndarray, "*n"], UInt32[jax.Array | np.ndarray, "*n"]]:
    """Encrypt pairs of words with 20 rounds of Threefry-2x32, in numpy or JAX alike.

    Args:
        key: two words, or two arrays of the shape of the counters.
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


def words(
    key: UInt32[jax.Array | np.ndarray, "2"],
    indices: UInt32[jax.Array | np.ndarray, "perm"],
    n: int,
    names: UInt32[jax.Array | np.ndarray, "n 2"] | None = None,
) -> UInt32[jax.Array | np.ndarray, "perm n"]:
    """Return the words whose order makes the permutations, in the library of `indices`.

    Args:
        key: two words.
        indices: which permutations.
        n: rows to permute.
        names: two words per row; 0 and its number when None.
    """
    xp = np if isinstance(indices, np.ndarray) else jnp
    shape = (len(indices), n)
    first, second = (_named(n) if names is None else xp.asarray(names)).T
    keys = (xp.broadcast_to(key[0] ^ first, shape), xp.broadcast_to(key[1], shape))
    return threefry2x32(keys, xp.broadcast_to(indices[:, None], shape), xp.broadcast_to(second, shape))[0]


def _named(n: int) -> UInt32[np.ndarray, "n 2"]:
    """Return the names of rows that have none."""
    return np.stack([np.zeros(n, np.uint32), np.arange(n, dtype=np.uint32)], axis=1)


def _within(strata: Integer[jax.Array, "n"], drawn: UInt32[jax.Array, "perm n"]) -> Integer[jax.Array, "perm n"]:
    """Return the permutations that send the rows of every stratum, in their order, to the argsort of its words."""
    members = jnp.argsort(strata, stable=True)
    return jnp.lexsort((drawn, jnp.broadcast_to(strata, drawn.shape)), axis=1)[:, jnp.argsort(members)]


# The generator once more for one counter in numba, which widens 32 bits to 64 at every step unless told, and whose
# loops over rotations would not become vector code.


@compiled()
@no_type_check
def _word(k0, k1, first, second):
    k2 = np.uint32(k0 ^ k1 ^ PARITY)
    even, odd = ROTATIONS
    first, second = np.uint32(first + k0), np.uint32(second + k1)
    first, second = _four_rounds(first, second, even, k1, k2, 1)
    first, second = _four_rounds(first, second, odd, k2, k0, 2)
    first, second = _four_rounds(first, second, even, k0, k1, 3)
    first, second = _four_rounds(first, second, odd, k1, k2, 4)
    first, second = _four_rounds(first, second, even, k2, k0, 5)
    return first


@compiled()
@no_type_check
def _four_rounds(first, second, rotations, key_first, key_second, group):
    first, second = _round(first, second, rotations[0])
    first, second = _round(first, second, rotations[1])
    first, second = _round(first, second, rotations[2])
    first, second = _round(first, second, rotations[3])
    return np.uint32(first + key_first), np.uint32(second + key_second + group)


@compiled()
@no_type_check
def _round(first, second, rotation):
    first = np.uint32(first + second)
    turned = np.uint32(second << np.uint32(rotation)) | (second >> np.uint32(32 - rotation))
    return first, np.uint32(turned ^ first)


@compiled()
@no_type_check
def _argsort(row_words, perm):
    """Write the stable argsort of words, in linear time if they are uniform."""
    n = len(row_words)
    shift = 31
    while shift > 0 and (1 << (31 - shift)) < n:
        shift -= 1
    starts = np.zeros((1 << (32 - shift)) + 1, dtype=np.uint32)
    for word in row_words:
        starts[(word >> shift) + 1] += 1
    for bucket in range(1, len(starts)):
        starts[bucket] += starts[bucket - 1]
    packed = np.empty(n, dtype=np.uint64)
    for j in range(n):
        bucket = row_words[j] >> shift
        packed[starts[bucket]] = np.uint64(row_words[j]) << np.uint64(32) | np.uint64(j)
        starts[bucket] += 1
    for j in range(1, n):
        moving, place = packed[j], j
        while place > 0 and packed[place - 1] > moving:
            packed[place] = packed[place - 1]
            place -= 1
        packed[place] = moving
    for j in range(n):
        perm[j] = np.uint32(packed[j])


@compiled(parallel=True)
@no_type_check
def _draw(key, indices, names, members, edges, perms):
    """Draw within strata: stratum s has the rows members[edges[s]] .. members[edges[s + 1] - 1], in order."""
    count, n = perms.shape
    for q in numba.prange(count):
        drawn, order = np.empty(n, dtype=np.uint32), np.empty(n, dtype=np.uint32)
        for j in range(n):
            a, b = names[members[j]]
            drawn[j] = _word(np.uint32(key[0] ^ a), key[1], indices[q], b)
        for s in range(len(edges) - 1):
            first, stop = edges[s], edges[s + 1]
            _argsort(drawn[first:stop], order[first:stop])
            for j in range(first, stop):
                perms[q, members[j]] = members[first + order[j]]
