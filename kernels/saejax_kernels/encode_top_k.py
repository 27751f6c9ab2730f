"""The encoder of a TopK sparse autoencoder: one matrix product, and the k largest entries of each of its rows.

The gradient is as sparse as the codes. It is written by hand because the automatic one scatters `[rows, k]` values into
a dense `[rows, d_sae]` array and multiplies that with the input: two dense products where k columns suffice.
"""

from functools import partial
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, Int

from saejax_kernels.largest_of_rows import largest_of_rows
from saejax_kernels.sparse_products import Impl, outer_sum, weighted_rows

Precision: TypeAlias = Literal["float32", "bfloat16"]
"""Inputs of matrix products; sums are float32."""


def encode_top_k(
    x: Float[jax.Array, "rows d_model"],
    centre: Float[jax.Array, "d_model"],
    W: Float[jax.Array, "d_sae d_model"],
    b: Float[jax.Array, "d_sae"],
    k: int,
    precision: Precision,
    impl: Impl,
) -> tuple[Float[jax.Array, "rows k"], Int[jax.Array, "rows k"]]:
    """Find the k largest of z = (x - centre) @ W.T + b in each row; of equal ones those of the lowest latents.

    Memory beyond the arguments: the product, and rows x 2 sqrt(d_sae k) numbers; on a TPU what its kernel states. The
    gradient takes no array of rows x d_sae.

    Args:
        x: one vector per row.
        centre: what is taken off each of them, for an SAE `b_dec`.
        W: one row per latent, for an SAE `W_enc.T`.
        b: one number per latent.
        k: entries to find per row.
        precision: of the inputs of the product.
        impl: see `saejax_kernels.sparse_products`; on a TPU the product is never held.

    Returns:
        The entries, largest first, and their latents.
    """
    found: Any = _encode(x, centre, W, b, k, precision, impl)
    return found


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _encode(
    x: jax.Array, centre: jax.Array, W: jax.Array, b: jax.Array, k: int, precision: Precision, impl: Impl
) -> tuple[jax.Array, jax.Array]:
    if impl == "tpu":
        return fused_top_k(x - centre, W, b, k, precision)
    return largest_of_rows(product(x - centre, W, precision), b, k)


def fused_top_k(
    x: Float[jax.Array, "rows d_model"],
    W: Float[jax.Array, "d_sae d_model"],
    b: Float[jax.Array, "d_sae"],
    k: int,
    precision: Precision,
) -> tuple[Float[jax.Array, "rows k"], Int[jax.Array, "rows k"]]:
    """Find the k largest of x @ W.T + b in each row on a TPU, without holding the product, and without a gradient.

    Args:
        x: one vector per row.
        W: one vector per latent.
        b: one number per latent.
        k: entries to find per row.
        precision: of the inputs of the product.

    Returns:
        The entries, largest first, and their latents; of equal ones the lowest.
    """
    from saejax_kernels.encode_top_k_tpu import encode_top_k_tpu  # here, because Pallas takes long to import

    x, W = x.astype(precision), W.astype(precision)
    return lax.platform_dependent(x, W, b, tpu=partial(encode_top_k_tpu, k=k))


def product(
    x: Float[jax.Array, "rows d_model"], W: Float[jax.Array, "d_sae d_model"], precision: Precision
) -> Float[jax.Array, "rows d_sae"]:
    """Multiply `x @ W.T` with inputs in a precision, and sums in float32.

    Args:
        x: one vector per row.
        W: one vector per latent.
        precision: float32 is float32 on every device, where the default of some is TF32 or bfloat16.
    """
    x, W = x.astype(precision), W.astype(precision)
    exactly = lax.Precision.HIGHEST if precision == "float32" else None
    return lax.dot_general(x, W, (((1,), (1,)), ((), ())), precision=exactly, preferred_element_type=jnp.float32)


def _forward(x: jax.Array, centre: jax.Array, W: jax.Array, b: jax.Array, k: int, precision: Precision, impl: Impl):
    found: Any = _encode(x, centre, W, b, k, precision, impl)
    return found, (x, centre, W, found[1])


def _backward(_: int, __: Precision, impl: Impl, residuals: tuple[jax.Array, ...], gradients: tuple):
    x, centre, W, indices = residuals
    gradient = gradients[0]
    to_W = outer_sum(gradient, indices, x - centre, len(W), impl=impl)
    to_b = jnp.zeros(len(W), gradient.dtype).at[indices].add(gradient)
    to_x = weighted_rows(gradient, indices, W, impl=impl)  # the compiler drops it where nobody asks for it
    # The sum of -to_x over rows, without needing to_x.
    to_centre = -lax.dot_general(to_b, W, (((0,), (0,)), ((), ())), precision=lax.Precision.HIGHEST)
    return to_x, to_centre, to_W, to_b


_encode.defvjp(_forward, _backward)
