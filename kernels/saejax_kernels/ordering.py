"""Order that XLA keeps: on a CPU it drops optimisation barriers early, and numbers that need each other it cannot."""

import jax
import jax.numpy as jnp
from jaxtyping import Float


def zero_after(value: Float[jax.Array, "..."]) -> Float[jax.Array, ""]:
    """Return a zero that is known no earlier than a value, and that XLA cannot foresee.

    Added to a number, it makes all that needs the number wait for the value: so that an array is overwritten in place
    only after its last reader, where XLA would copy it to be free in the order; or so that two arrays of zeros are not
    one, of which both are copied.

    Args:
        value: what to wait for, an array with entries.

    Returns:
        Zero; NaN where the first entry of the value is NaN.
    """
    return jnp.minimum(jnp.abs(value.reshape(-1)[0]), 0)
