"""Where an SAE starts: scaled by a sample of its data, centred on its geometric median, `W_enc = W_dec.T`."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from saejax.errors import InputError
from saejax.sae.params import SAE, SAEConfig
from saejax.types import AnyArray, Array


def initial_sae(config: SAEConfig, sample: Float[AnyArray, "rows d_model"], key: Array) -> SAE:
    """Make an untrained SAE for the data that a sample stands for.

    `scale` brings the sample's centred RMS norm to sqrt(d_model); in those units its variance, summed over
    dimensions, is d_model. `b_dec` is its geometric median, decoder rows are random of unit norm.

    Args:
        config: shape of the SAE.
        sample: activations in the model's units, a few thousand rows.
        key: PRNG key of the decoder rows.

    Returns:
        The SAE, float32.

    Raises:
        InputError: the sample does not vary, or is not finite.
    """
    exact = np.asarray(sample, np.float64)
    if not np.isfinite(exact).all():
        raise InputError("activations hold NaN or infinity; extract them again, in float32 if bfloat16 overflowed")
    rms = np.sqrt(np.mean(np.sum((exact - exact.mean(axis=0)) ** 2, axis=1)))
    if rms == 0:
        raise InputError(f"all {len(exact)} sampled activations are equal; name a hook whose activations vary")
    scale = np.float32(np.sqrt(config.d_model) / rms)
    rows = jax.random.normal(key, (config.d_sae, config.d_model))
    W_dec = rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
    return SAE(
        W_enc=jnp.array(W_dec.T),
        b_enc=jnp.zeros(config.d_sae),
        W_dec=W_dec,
        b_dec=geometric_median(jnp.asarray(sample, jnp.float32) * scale),
        scale=jnp.asarray(scale),
        config=config,
    )


@jax.jit
def geometric_median(x: Float[Array, "rows d_model"]) -> Float[Array, "d_model"]:
    """Find the point with the least summed distance to the rows, by Weiszfeld's iteration.

    m <- sum_r w_r x_r / sum_r w_r with w_r = 1 / |x_r - m|, from the mean (Weiszfeld 1937), until a step is
    shorter than 1e-5 of the mean distance or 200 steps are done. Unlike the mean, a few huge rows do not move
    it.

    Args:
        x: points.

    Returns:
        Their geometric median.
    """
    centre = jnp.mean(x, axis=0)
    x = x - centre

    def improve(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        step, median, _ = state
        distance = jnp.linalg.norm(x - median, axis=1)
        weight = 1 / jnp.maximum(distance, 1e-12)
        better = jnp.matmul(weight, x, precision="highest") / jnp.sum(weight)
        return step + 1, better, jnp.linalg.norm(better - median) / jnp.maximum(jnp.mean(distance), 1e-12)

    def unfinished(state: tuple[Array, Array, Array]) -> Array:
        return (state[0] < 200) & (state[2] > 1e-5)

    start = (jnp.array(0), jnp.zeros(x.shape[1], x.dtype), jnp.array(jnp.inf, x.dtype))
    return centre + lax.while_loop(unfinished, improve, start)[1]
