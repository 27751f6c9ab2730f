"""Encoders: the k largest pre-activations of a row, or all that are above zero or a threshold."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, Int
from saejax_kernels import encode_top_k

from saejax.types import Array


def top_k_codes(
    x: Float[Array, "rows d_model"],
    W_enc: Float[Array, "d_model d_sae"],
    b_enc: Float[Array, "d_sae"],
    b_dec: Float[Array, "d_model"],
    k: int,
    threshold: Float[Array, "d_sae"] | None = None,
) -> tuple[Float[Array, "rows k"], Int[Array, "rows k"]]:
    """Encode: z = (x - b_dec) @ W_enc + b_enc, keep the k largest of each row, then relu.

    Top k comes before relu (Gao et al. 2024, "Scaling and evaluating sparse autoencoders"), so fewer than k
    codes of a row may be positive; a latent fires only where its value is above zero, not wherever its index
    is listed.

    Args:
        x: normalised activations.
        W_enc: encoder, one column per latent.
        b_enc: encoder bias.
        b_dec: decoder bias, taken off the input.
        k: latents kept per row.
        threshold: what a pre-activation is to be above, not below zero; none for zero. The k are then those furthest
            above it.

    Returns:
        Values (largest first, zero where relu cut) and the latents they belong to.
    """
    if threshold is None:
        values, indices = encode_top_k(x, b_dec, W_enc.T, b_enc, k, "float32", "jax")
        return jax.nn.relu(values), indices
    above, indices = encode_top_k(x, b_dec, W_enc.T, b_enc - threshold, k, "float32", "jax")
    values = jnp.where(above > 0, above + threshold[indices], 0)
    falling, indices = lax.sort((-values, indices), num_keys=1)
    return -falling, indices


def positive_codes(
    x: Float[Array, "rows d_model"],
    W_enc: Float[Array, "d_model d_sae"],
    b_enc: Float[Array, "d_sae"],
    b_dec: Float[Array, "d_model"],
    threshold: Float[Array, "d_sae"] | None = None,
) -> Float[Array, "rows d_sae"]:
    """Encode with no limit to a row's codes: z where z = (x - b_dec) @ W_enc + b_enc is above a threshold, else 0.

    ReLU, or JumpReLU (Rajamanoharan et al. 2024, "Jumping ahead", section 3); holds rows x d_sae numbers.

    Args:
        x: normalised activations.
        W_enc: encoder, one column per latent.
        b_enc: encoder bias.
        b_dec: decoder bias, taken off the input.
        threshold: what a pre-activation is to be above, not below zero; none for zero.
    """
    jump = 0 if threshold is None else threshold
    above = jnp.matmul(x - b_dec, W_enc, precision="highest") + (b_enc - jump)
    return jnp.where(above > 0, above + jump, 0)


def dense_codes(
    values: Float[Array, "rows k"], indices: Int[Array, "rows k"], d_sae: int
) -> Float[Array, "rows d_sae"]:
    """Lay sparse codes out as a matrix with a column per latent; holds rows x d_sae numbers.

    Args:
        values: codes of the active latents.
        indices: the active latents, distinct within a row.
        d_sae: number of latents.

    Returns:
        Codes, zero where a latent is not active.
    """
    rows = jnp.arange(values.shape[0])[:, None]
    return jnp.zeros((values.shape[0], d_sae), values.dtype).at[rows, indices].set(values, unique_indices=True)
