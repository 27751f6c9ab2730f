"""The reconstruction loss of a TopK SAE, in scaled units."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int
from saejax_kernels import Impl, Precision, encode_top_k, sparse_decode

from saejax.sae.weights import Weights
from saejax.types import Array


class Forward(NamedTuple):
    """What a forward pass finds beside the loss."""

    residual: Float[Array, "rows d_model"]
    """x - x_hat."""
    values: Float[Array, "rows k"]
    """Codes, largest first."""
    indices: Int[Array, "rows k"]
    """Their latents."""
    product: Float[Array, "rows d_sae"]
    """The encoder's product, without its bias."""


def reconstruction_loss(
    weights: Weights, x: Float[Array, "rows d_model"], k: int, precision: Precision, impl: Impl
) -> tuple[Float[Array, ""], "Forward"]:
    """Compute the squared error of a batch as a fraction of the data's variance.

    loss = mean_r |x_r - x_hat_r|^2 / d_model, in scaled units.

    d_model is the summed variance of the sample that set `scale`, in scaled units; so this is the batch's FVU
    with one fixed denominator for the whole run, not the variance of whichever batch comes by.

    Args:
        weights: the SAE's.
        x: activations in scaled units.
        k: latents kept per row.
        precision: of the inputs of the encoder's product.
        impl: of the sums over codes.

    Returns:
        The loss, and what the rest of a step needs.
    """
    values, indices, product = encode_top_k(x, weights.b_dec, weights.encoder, weights.b_enc, k, precision, impl)
    values = jax.nn.relu(values)
    residual = x - (sparse_decode(values, indices, weights.W_dec, impl) + weights.b_dec)
    return jnp.mean(jnp.sum(residual**2, axis=1)) / x.shape[1], Forward(residual, values, indices, product)
