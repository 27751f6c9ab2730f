"""Sums in float32 that are as good as sums in float64, for devices that have none, or where it is slow.

Beside each sum goes what its additions rounded away (two_sum of Knuth, "The Art of Computer Programming" 2, 4.2.2), so
that numbers are added with twice the digits and rounded once.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float

# For numba: sums may be reassociated, which is what lets them use vector lanes; NaN and infinity keep their meaning.
FAST_SUMS = {"reassoc", "contract", "nsz"}


def pairwise_sum(values: Float[jax.Array, "*batch n"]) -> Float[jax.Array, "*batch"]:
    """Add along the last axis by halving it, in pairs of numbers of the dtype, rounded once at the end.

    Args:
        values: finite numbers to add along the last axis.

    Returns:
        The sums, within a rounding of themselves and log2(n)^2 squared roundings of the sum of sizes.
    """
    n = values.shape[-1]
    length = 1 << (n - 1).bit_length()
    high = jnp.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, length - n)])
    low = jnp.zeros_like(high)
    while length > 1:
        length //= 2
        high, lost = two_sum(high[..., :length], high[..., length:])
        low = low[..., :length] + low[..., length:] + lost
    return (high + low)[..., 0]


def two_sum(a: Float[jax.Array, "*n"], b: Float[jax.Array, "*n"]) -> tuple[jax.Array, jax.Array]:
    """Return a + b as it is rounded, and what that rounding took away."""
    total = a + b
    arrived = total - a  # of b
    return total, (a - (total - arrived)) + (b - arrived)
