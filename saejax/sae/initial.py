"""Where an SAE starts: normalised by a sample of its data, centred on its geometric median, `W_enc = W_dec.T`."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from saejax.errors import InputError
from saejax.sae.normalisation import Kind, Normalisation
from saejax.sae.params import SAE, SAEConfig
from saejax.types import AnyArray, Array

LEAST_VARIANCE = 1e-12
"""Of numbers of about 1, above what float32 rounds off."""


def initial_sae(config: SAEConfig, sample: Float[AnyArray, "rows d_model"], key: Array, kind: Kind = "scalar") -> SAE:
    """Make an untrained SAE for the data that a sample stands for.

    `b_dec` is the geometric median of the normalised sample, decoder rows are random of unit norm.

    Args:
        config: shape of the SAE.
        sample: activations in the model's units, a few thousand rows.
        key: PRNG key of the decoder rows.
        kind: of its normalisation, which is fitted to the sample.

    Returns:
        The SAE, float32.

    Raises:
        InputError: the sample does not vary, is not finite, or is too small for the normalisation.
    """
    normalisation = Normalisation.fit(kind, sample)
    rows = jax.random.normal(key, (config.d_sae, config.d_model))
    W_dec = rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
    return SAE(
        W_enc=jnp.array(W_dec.T),
        b_enc=jnp.zeros(config.d_sae),
        W_dec=W_dec,
        b_dec=geometric_median(normalisation.apply(sample)),
        normalisation=normalisation,
        config=config,
    )


def normalised_variance(
    normalisation: Normalisation, sample: Float[AnyArray, "rows d_model"]
) -> Float[Array, ""] | None:
    """Find what the training loss is to be divided by, so that it is a fraction of the data's variance.

    Args:
        normalisation: of the SAE.
        sample: the activations that it was fitted to.

    Returns:
        Variance of a normalised dimension, in the mean over dimensions; None for scalar, where it is 1 by construction.

    Raises:
        InputError: what varies in the sample is lost in normalisation.
    """
    if normalisation.kind == "scalar":
        return None
    z = np.asarray(normalisation.apply(sample), np.float64)
    variance = np.mean((z - z.mean(axis=0)) ** 2)
    if normalisation.kind == "layer_norm" and variance < LEAST_VARIANCE:
        raise InputError(f"all {len(z)} sampled activations are equal after layer_norm; name another normalisation")
    return jnp.asarray(variance, jnp.float32)


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
