"""An SAE without a normalisation, made of one that has it; and the directions of its features in the model's space."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from saejax.errors import InputError
from saejax.sae.normalisation import Normalisation
from saejax.sae.params import SAE
from saejax.types import Array


def fold(sae: SAE) -> SAE:
    """Bring an SAE to the model's units: the same codes and reconstructions with normalisation `none`.

    With z = (x - m) T: W_enc' = T W_enc, b_enc' = b_enc, W_dec' = W_dec T^-1, b_dec' = m + b_dec T^-1. Codes stay in
    the units that they have, so rows of W_dec' are not of unit norm; `feature_directions` are. In float64, whose arrays
    are two like `W_dec`.

    Args:
        sae: the SAE.

    Returns:
        The folded SAE; what has no normalisation, as it is.

    Raises:
        InputError: the normalisation is layer_norm.
    """
    held = sae.normalisation
    if held.kind == "none":
        return sae
    if held.kind == "layer_norm":
        raise InputError(
            "layer_norm divides each row by an SD of its own, which no fixed weights do; "
            "train with another normalisation to fold it"
        )
    if held.kind == "scalar":
        mean, sd = np.zeros(sae.config.d_model), np.full(sae.config.d_model, 1 / float(held.scale))
    else:
        mean, sd = np.asarray(held.mean, np.float64), np.asarray(held.sd, np.float64)
    basis = None if held.basis is None else np.asarray(held.basis, np.float64)

    def stretched(rows: Array, factors: Float[np.ndarray, "d_model"]) -> Float[np.ndarray, "... d_model"]:
        exact = np.asarray(rows, np.float64)
        return exact * factors if basis is None else (exact @ basis * factors) @ basis.T

    return dataclasses.replace(
        sae,
        W_enc=jnp.asarray(stretched(sae.W_enc.T, 1 / sd).T, jnp.float32),
        W_dec=jnp.asarray(stretched(sae.W_dec, sd), jnp.float32),
        b_dec=jnp.asarray(stretched(sae.b_dec, sd) + mean, jnp.float32),
        normalisation=Normalisation("none"),
    )


def feature_directions(sae: SAE) -> Float[Array, "d_sae d_model"]:
    """Return the direction in the model's space that each latent writes.

    Args:
        sae: the SAE.

    Returns:
        Rows of unit norm: those of the folded `W_dec`. One factor for all directions, as scalar has, and layer_norm for
        each row, turns none, so there they are `W_dec` itself.
    """
    if sae.normalisation.kind in ("scalar", "layer_norm"):
        return sae.W_dec
    rows = sae.normalisation.differences(sae.W_dec)
    return rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
