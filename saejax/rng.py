"""Named PRNG keys from one root seed: the same (seed, name) gives the same key wherever it is asked for.

A name rather than a split order, so that adding a consumer of randomness never changes the draws of another.
"""

import hashlib
import zlib

import jax


def named_key(seed: int, name: str) -> jax.Array:
    """Derive the key of one consumer of randomness from the run's root seed.

    Args:
        seed: root seed of the run, any integer that fits in 32 bits.
        name: the consumer, for example `"sae.init"`.

    Returns:
        A typed JAX key: the root key folded with the CRC-32 of the name.
    """
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def named_seed(seed: int, name: str) -> int:
    """Derive a 63-bit integer seed for one consumer that counts its own draws, such as a permutation null.

    Args:
        seed: root seed of the run.
        name: the consumer, for example `"universality.sae"`.

    Returns:
        A non-negative integer below 2^63, from the BLAKE2b hash of both.
    """
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
