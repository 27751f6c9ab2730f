"""SAEs of SAELens, of all its versions: `cfg.json` and `sae_weights.safetensors`.

standard: f = relu(x_c @ W_enc + b_enc);  topk: f = relu(topk(x_c @ W_enc + b_enc)), by the norm of decoder rows where
`rescale_acts_by_decoder_norm`;  x_hat = f @ W_dec + b_dec, with x_c = x - b_dec where `apply_b_dec_to_input` and x
else (sae_lens/saes). What input normalisation `expected_average_only_in` did is folded into saved weights.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from saejax.errors import InputError
from saejax.sae.formats.foreign import ForeignSAE, misfits, read_settings, read_tensors

SETTINGS, WEIGHTS = "cfg.json", "sae_weights.safetensors"
FOLDED = ("none", "expected_average_only_in", False, True)
"""Input normalisations that saved weights need nothing of; early versions say whether it was the second."""


def read(folder: Path) -> ForeignSAE:
    """Read an SAE.

    Args:
        folder: that of its files.

    Raises:
        InputError: it is broken, or of an architecture that is not read; all faults in one line.
    """
    settings = read_settings(folder / SETTINGS)
    kind, k = _architecture(settings)
    faults = [f"{folder / SETTINGS} says no {name}" for name in ("d_in", "d_sae") if name not in settings]
    if kind not in ("standard", "topk"):
        faults.append(f"architecture {kind} is not standard (ReLU) or topk")
    if kind == "topk" and not isinstance(k, int):
        faults.append(f"{folder / SETTINGS} says no k")
    normalisation = settings.get("normalize_activations", "none")
    if normalisation not in FOLDED:
        faults.append(f"normalize_activations {normalisation} is not in the weights")
    if faults:
        raise InputError(f"SAE {folder}: {'; '.join(faults)}; name an SAE without")
    width, latents, tensors = settings["d_in"], settings["d_sae"], read_tensors(folder / WEIGHTS)
    factor = tensors.pop("scaling_factor", np.ones(1, np.float32))
    needed = {"W_enc": (width, latents), "b_enc": (latents,), "W_dec": (latents, width), "b_dec": (width,)}
    faults = misfits(folder / WEIGHTS, tensors, needed)
    if not np.all(factor == 1):
        faults.append(f"{folder / WEIGHTS} holds a scaling_factor that is not 1, of finetuning")
    if faults:
        raise InputError(f"{'; '.join(faults)}; copy it again with its {SETTINGS}, or name another")
    W_enc, b_enc, W_dec, b_dec = (tensors[name] for name in needed)
    if settings.get("rescale_acts_by_decoder_norm"):
        norms = np.linalg.norm(W_dec, axis=1)
        W_enc, b_enc, W_dec = W_enc * norms, b_enc * norms, W_dec / norms[:, None]
    if not settings.get("apply_b_dec_to_input", True):
        b_enc = (b_enc + b_dec.astype(np.float64) @ W_enc).astype(np.float32)
    return ForeignSAE(W_enc, b_enc, W_dec, b_dec, k if kind == "topk" else None, settings)


def _architecture(settings: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the architecture and its k, which versions before 6 tell by the activation function."""
    function = settings.get("activation_fn", settings.get("activation_fn_str"))
    if function == "topk":
        return "topk", settings.get("activation_fn_kwargs", {}).get("k")
    return settings.get("architecture", "standard"), settings.get("k")
