"""SAEs of SAELens, of all its versions: `cfg.json` and `sae_weights.safetensors`.

standard: f = relu(p), p = x_c @ W_enc + b_enc;  topk: f = relu(topk(p)), by the norm of decoder rows where
`rescale_acts_by_decoder_norm`;  jumprelu, as which those of BatchTopK are saved too: f = relu(p) where p > threshold;
gated: f = relu(x_c @ (W_enc exp(r_mag)) + b_mag) where x_c @ W_enc + b_gate > 0;  x_hat = f @ W_dec + b_dec, with
x_c = x - b_dec where `apply_b_dec_to_input` and x else (sae_lens/saes). What input normalisation
`expected_average_only_in` did is folded into saved weights.

With q = x_c @ (W_enc exp(r_mag)) + b_mag, a gate is open where q > b_mag - exp(r_mag) b_gate: a gated SAE is a jumprelu
one (Rajamanoharan et al. 2024, "Improving dictionary learning with gated sparse autoencoders", section 3.2).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from saejax.errors import InputError
from saejax.sae.formats.foreign import ForeignSAE, misfits, read_settings, read_tensors, with_bias_left

SETTINGS, WEIGHTS = "cfg.json", ("sae_weights.safetensors",)
BIASES = {
    "standard": ("b_enc",), "topk": ("b_enc",), "jumprelu": ("b_enc", "threshold"),
    "gated": ("b_mag", "b_gate", "r_mag"),
}  # fmt: skip
"""What an architecture has of each latent beside its row and column."""
FOLDED = ("none", "expected_average_only_in", False, True)
"""Input normalisations that saved weights need nothing of; early versions say whether it was the second."""


def read(weights: Path) -> ForeignSAE:
    """Read an SAE.

    Args:
        weights: the file.

    Raises:
        InputError: it is broken, or of an architecture that is not read; all faults in one line.
    """
    folder = weights.parent
    settings = read_settings(folder / SETTINGS)
    kind, k = _architecture(settings)
    faults = [f"{folder / SETTINGS} says no {name}" for name in ("d_in", "d_sae") if name not in settings]
    if kind not in BIASES:
        faults.append(f"architecture {kind} is not one of {', '.join(BIASES)}")
    if kind == "topk" and not isinstance(k, int):
        faults.append(f"{folder / SETTINGS} says no k")
    normalisation = settings.get("normalize_activations", "none")
    if normalisation not in FOLDED:
        faults.append(f"normalize_activations {normalisation} is not in the weights")
    if faults:
        raise InputError(f"SAE {folder}: {'; '.join(faults)}; name an SAE without")
    width, latents, tensors = settings["d_in"], settings["d_sae"], read_tensors(weights)
    factor = tensors.pop("scaling_factor", np.ones(1, np.float32))
    needed = {"W_enc": (width, latents), "W_dec": (latents, width), "b_dec": (width,)}
    needed |= dict.fromkeys(BIASES[kind], (latents,))
    faults = misfits(weights, tensors, needed)
    if not np.all(factor == 1):
        faults.append(f"{weights} holds a scaling_factor that is not 1, of finetuning")
    if faults:
        raise InputError(f"{'; '.join(faults)}; copy it again with its {SETTINGS}, or name another")
    W_enc, W_dec, b_dec, b_enc, *others = (tensors[name] for name in needed)
    threshold = others[0] if kind == "jumprelu" else None
    if kind == "gated":
        b_gate, r_mag = others
        W_enc, threshold = W_enc * np.exp(r_mag), b_enc - np.exp(r_mag) * b_gate
    if settings.get("rescale_acts_by_decoder_norm"):
        norms = np.linalg.norm(W_dec, axis=1)
        W_enc, b_enc, W_dec = W_enc * norms, b_enc * norms, W_dec / norms[:, None]
    if not settings.get("apply_b_dec_to_input", True):
        b_enc = with_bias_left(W_enc, b_enc, b_dec)
    return ForeignSAE(W_enc, b_enc, W_dec, b_dec, k if kind == "topk" else None, settings, threshold)


def _architecture(settings: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the architecture and its k, which versions before 6 tell by the activation function."""
    function = settings.get("activation_fn", settings.get("activation_fn_str"))
    if function == "topk":
        return "topk", settings.get("activation_fn_kwargs", {}).get("k")
    return settings.get("architecture", "standard"), settings.get("k")
