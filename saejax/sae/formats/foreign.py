"""What a format gives: the arrays of an SAE as ours has them, and the reading that all formats share."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from saejax.errors import InputError
from saejax.sae.normalisation import Normalisation
from saejax.sae.params import SAE, SAEConfig


class ForeignSAE(NamedTuple):
    """An SAE of another library, whose codes are relu((x - b_dec) @ W_enc + b_enc), all of them or the k largest.

    Attributes:
        W_enc: encoder, one column per latent.
        b_enc: encoder bias.
        W_dec: decoder, one row per latent.
        b_dec: decoder bias.
        k: latents kept per row; None for all.
        config: what its file of settings says.
    """

    W_enc: Float32[np.ndarray, "d_model d_sae"]
    b_enc: Float32[np.ndarray, "d_sae"]
    W_dec: Float32[np.ndarray, "d_sae d_model"]
    b_dec: Float32[np.ndarray, "d_model"]
    k: int | None
    config: Mapping[str, Any]

    def sae(self, most: int) -> SAE:
        """Make it ours.

        Args:
            most: latents kept per row where the SAE keeps all that are positive.
        """
        d_model, d_sae = self.W_enc.shape
        config = SAEConfig(d_model, d_sae, min(most, d_sae) if self.k is None else self.k)
        arrays = map(jnp.asarray, (self.W_enc, self.b_enc, self.W_dec, self.b_dec))
        return SAE(*arrays, normalisation=Normalisation("none"), config=config)


def read_settings(file: Path) -> dict[str, Any]:
    """Read a file of settings.

    Raises:
        InputError: it is absent, or no JSON object.
    """
    try:
        settings = json.loads(file.read_text())
    except FileNotFoundError:
        raise InputError(f"{file} is absent; copy it from where the weights are from") from None
    except ValueError as error:
        raise InputError(f"{file} is not JSON ({error}); copy it again") from None
    if not isinstance(settings, dict):
        raise InputError(f"{file} holds no settings but {type(settings).__name__}; copy it again")
    return settings


def read_tensors(file: Path) -> dict[str, Float32[np.ndarray, "..."]]:
    """Read all tensors of a file, in float32.

    Raises:
        InputError: it is cut short, or no safetensors file, or holds what is no number.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise InputError(f"{file} is not a whole safetensors file ({error}); copy it again") from None
    wide = {name: np.asarray(tensor, np.float32) for name, tensor in tensors.items()}
    broken = [name for name, tensor in wide.items() if not np.isfinite(tensor).all()]
    if broken:
        raise InputError(f"{file}: {', '.join(broken)} holds NaN or infinite entries; copy it again")
    return wide


def misfits(
    file: Path, tensors: Mapping[str, Float32[np.ndarray, "..."]], needed: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """Say which tensors are missing, of another shape, or nobody's."""
    held = {name: tensor.shape for name, tensor in tensors.items()}
    faults = [f"no {name}" for name in needed if name not in held]
    faults += [
        f"{name} of shape {list(held[name])}, not {list(shape)}"
        for name, shape in needed.items()
        if name in held and held[name] != shape
    ]
    faults += [f"{name}, which such an SAE has not" for name in held if name not in needed]
    return [f"{file} holds {fault}" for fault in faults]
