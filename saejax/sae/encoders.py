"""The TopK encoder: pre-activations, the k largest of each row, then relu."""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int
from saejax_kernels import encode_top_k

from saejax.types import Array


def top_k_codes(
    x: Float[Array, "rows d_model"],
    W_enc: Float[Array, "d_model d_sae"],
    b_enc: Float[Array, "d_sae"],
    b_dec: Float[Array, "d_model"],
    k: int,
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

    Returns:
        Values (largest first, zero where relu cut) and the latents they belong to.
    """
    values, indices = encode_top_k(x, b_dec, W_enc.T, b_enc, k, "float32", "jax")
    return jax.nn.relu(values), indices


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
