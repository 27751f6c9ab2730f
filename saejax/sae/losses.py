"""The loss of an SAE and its gradient, in normalised units."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int
from saejax_kernels import fused_top_k, largest_of_rows, outer_sum, product, products_at, weighted_rows

from saejax.sae.execution import Execution
from saejax.sae.weights import Weights
from saejax.types import Array


class Forward(NamedTuple):
    """What a forward pass finds; where it is sharded, of the rows and latents of one device."""

    residual: Float[Array, "rows d_model"]
    """x - x_hat."""
    values: Float[Array, "rows k"]
    """Codes, largest first."""
    indices: Int[Array, "rows k"]
    """Their latents."""
    product: Float[Array, "rows d_sae"] | None
    """(x - b_dec) @ W_enc; None where it is never held."""


def reconstruction_loss(
    weights: Weights,
    x: Float[Array, "rows d_model"],
    k: int,
    how: Execution,
    variance: Float[Array, ""] | None = None,
    l1_coefficient: float = 0.0,
) -> tuple[Float[Array, ""], Forward, Weights]:
    """Compute the squared error of a batch as a fraction of the data's variance, and the gradient of the loss.

    fvu = mean_r |x_r - x_hat_r|^2 / (d_model variance), in normalised units;
    loss = fvu + l1_coefficient mean_r |f_r|_1 / (d_model variance), with f the codes.

    The second is, up to the common divisor, the loss of a ReLU SAE whose decoder rows have unit norm (Bricken et al.
    2023, "Towards Monosemanticity") wherever a row has fewer than k positive codes, and of a ReLU SAE that keeps the k
    largest elsewhere.

    d_model variance is the summed variance of the sample that the normalisation was fitted to; so this is the batch's
    FVU with one fixed denominator for the whole run, not the variance of whichever batch comes by.

    The gradient is written out, because it is as sparse as the codes: the automatic one scatters them into `[rows,
    d_sae]` arrays and multiplies those. Memory beyond what is returned: rows x 2 sqrt(d_sae k) numbers, and a few
    arrays like x.

    Args:
        weights: the SAE's.
        x: activations in normalised units.
        k: latents kept per row.
        how: how to compute.
        variance: of a dimension of that sample, in the mean over dimensions; None for 1.
        l1_coefficient: weight of the L1 norm of codes.

    Returns:
        The FVU, what the forward pass found, and the gradient; where it is sharded, the part of the gradient that
        this device's rows give.
    """
    d_sae, width = weights.encoder.shape
    centred = x - weights.b_dec
    if how.impl == "tpu":
        whole, (values, indices) = (
            None,
            fused_top_k(centred, weights.encoder, weights.b_enc, min(k, d_sae), how.precision),
        )
    else:
        whole = product(centred, weights.encoder, how.precision)
        values, indices = largest_of_rows(whole, weights.b_enc, min(k, d_sae), how.recall)
    values = jax.nn.relu(how.only_largest_of_all(values, k))
    decoded = how.over_latents(weighted_rows(values, indices, weights.W_dec, impl=how.impl))
    residual = x - (decoded + weights.b_dec)
    entries = how.all_rows(len(x)) * width
    if variance is not None:
        entries = entries * variance
    fvu = how.over_rows(jnp.sum(residual**2)) / entries

    to_x_hat = -2 / entries * residual
    to_codes = products_at(to_x_hat, indices, weights.W_dec, impl=how.impl) + l1_coefficient / entries
    to_codes = jnp.where(values > 0, to_codes, 0)
    to_b_enc = jnp.zeros(d_sae).at[indices].add(to_codes)
    # The sum over rows of the gradient to `centred`, without needing that.
    to_centred = how.over_latents(jnp.matmul(to_b_enc, weights.encoder, precision="highest"))
    gradient = Weights(
        encoder=outer_sum(to_codes, indices, centred, d_sae, impl=how.impl),
        b_enc=to_b_enc,
        W_dec=outer_sum(values, indices, to_x_hat, d_sae, impl=how.impl),
        b_dec=jnp.sum(to_x_hat, axis=0) - to_centred,
    )
    return fvu, Forward(residual, values, indices, whole), gradient
