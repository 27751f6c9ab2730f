"""The TopK encoder: pre-activations, the k largest of each row, then relu.

The gradient is sparse as the codes are. It is written by hand because the automatic one scatters
`[rows, k]` values into a dense `[rows, d_sae]` array and multiplies that with the input: two dense products
where k columns suffice.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, Int

from saejax.sae.sparse import outer_sum, weighted_rows
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
        x: scaled activations.
        W_enc: encoder, one column per latent.
        b_enc: encoder bias.
        b_dec: decoder bias, taken off the input.
        k: latents kept per row.

    Returns:
        Values (largest first, zero where relu cut) and the latents they belong to.
    """
    values, indices = _largest_preactivations(x, W_enc, b_enc, b_dec, k)
    return jax.nn.relu(values), indices


def _largest(x: Array, W_enc: Array, b_enc: Array, b_dec: Array, k: int) -> tuple[Array, Array]:
    preactivations = (x - b_dec) @ W_enc + b_enc
    # Without the barrier XLA on CPU sorts in full where the result of top_k is sliced later, 40 times slower.
    values, indices = lax.optimization_barrier(lax.top_k(preactivations, k))
    return values, indices


def _forward(x: Array, W_enc: Array, b_enc: Array, b_dec: Array, k: int):
    values, indices = _largest(x, W_enc, b_enc, b_dec, k)
    return (values, indices), (x, W_enc, b_dec, indices)


def _backward(k: int, residuals: tuple[Array, Array, Array, Array], gradients: tuple):
    x, W_enc, b_dec, indices = residuals
    gradient = gradients[0]
    to_W_enc = outer_sum(gradient, indices, x - b_dec, W_enc.shape[1]).T
    to_b_enc = jnp.zeros(W_enc.shape[1], gradient.dtype).at[indices].add(gradient)
    to_x = weighted_rows(gradient, indices, W_enc.T)  # the compiler drops it where nobody asks for it
    to_b_dec = -(W_enc @ to_b_enc)  # the sum of -to_x over rows, without needing to_x
    return to_x, to_W_enc, to_b_enc, to_b_dec


_largest_preactivations = jax.custom_vjp(_largest, nondiff_argnums=(4,))
_largest_preactivations.defvjp(_forward, _backward)


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
