"""Sums in float32 that lose no more digits than the logarithm of their length."""

import jax
import jax.numpy as jnp
from jaxtyping import Float

# For numba: sums may be reassociated, which is what lets them use vector lanes; NaN and infinity keep their meaning.
FAST_SUMS = {"reassoc", "contract", "nsz"}


def pairwise_sum(values: Float[jax.Array, "*batch n"]) -> Float[jax.Array, "*batch"]:
    """Add along the last axis by halving it, with a relative error of at most log2(n) roundings.

    XLA on the CPU adds one number after another: after a thousand the last digit and a half are noise.

    Args:
        values: numbers to add along the last axis.
    """
    n = values.shape[-1]
    length = 1 << (n - 1).bit_length()
    values = jnp.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, length - n)])
    while length > 1:
        length //= 2
        values = values[..., :length] + values[..., length:]
    return values[..., 0]
