"""What a format gives: the arrays of an SAE as ours has them, and the reading that all formats share."""

import json
import zipfile
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
    """An SAE of another library, whose codes are p = (x - b_dec) @ W_enc + b_enc where that is active.

    Attributes:
        W_enc: encoder, one column per latent.
        b_enc: encoder bias.
        W_dec: decoder, one row per latent.
        b_dec: decoder bias.
        k: latents kept per row, the largest above zero; None for all.
        config: what its file of settings says.
        threshold: what p is to be above where it is not zero; below zero it means zero.
    """

    W_enc: Float32[np.ndarray, "d_model d_sae"]
    b_enc: Float32[np.ndarray, "d_sae"]
    W_dec: Float32[np.ndarray, "d_sae d_model"]
    b_dec: Float32[np.ndarray, "d_model"]
    k: int | None
    config: Mapping[str, Any]
    threshold: Float32[np.ndarray, "d_sae"] | None = None

    def sae(self, most: int) -> SAE:
        """Make it ours.

        Args:
            most: latents to have room for in a row where the SAE keeps all that are active.
        """
        d_model, d_sae = self.W_enc.shape
        if self.k is not None:
            config = SAEConfig(d_model, d_sae, self.k)
        else:
            config = SAEConfig(d_model, d_sae, min(most, d_sae), "relu" if self.threshold is None else "jump_relu")
        arrays = map(jnp.asarray, (self.W_enc, self.b_enc, self.W_dec, self.b_dec))
        threshold = None if self.threshold is None else jnp.maximum(self.threshold, 0)
        return SAE(*arrays, normalisation=Normalisation("none"), config=config, threshold=threshold)


def with_bias_left(
    W_enc: Float32[np.ndarray, "d_model d_sae"],
    b_enc: Float32[np.ndarray, "d_sae"],
    b_dec: Float32[np.ndarray, "d_model"],
) -> Float32[np.ndarray, "d_sae"]:
    """Return the encoder bias of an SAE that does not take `b_dec` off what it reads, as one that does has it."""
    return (b_enc + b_dec.astype(np.float64) @ W_enc).astype(np.float32)


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
    """Read all tensors of a file, safetensors or npz, in float32.

    Raises:
        InputError: it is cut short, or of another kind, or holds what is no number.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = dict(np.load(file)) if file.suffix == ".npz" else load_file(file)
    except (SafetensorError, zipfile.BadZipFile, ValueError, EOFError) as error:
        raise InputError(f"{file} is not a whole {file.suffix[1:]} file ({error}); copy it again") from None
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
