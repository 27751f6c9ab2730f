"""Named PRNG keys from one root seed: the same (seed, name) gives the same key wherever it is asked for.

A name rather than a split order, so that adding a consumer of randomness never changes the draws of another.
"""

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
