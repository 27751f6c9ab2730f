"""SAEs of Gemma Scope: `params.npz`, or `params.safetensors` beside a `config.json` for Gemma 3.

f = relu(p) where p > threshold, p = x @ W_enc + b_enc, with `b_dec` not taken off;  x_hat = f @ W_dec + b_dec
(Lieberum et al. 2024, "Gemma Scope", section 2). Those of the embedding read it in other units than the model's.
"""

from pathlib import Path

from saejax.errors import InputError
from saejax.sae.formats.foreign import ForeignSAE, misfits, read_settings, read_tensors, with_bias_left

SETTINGS, WEIGHTS = "config.json", ("params.npz", "params.safetensors")


def read(weights: Path) -> ForeignSAE:
    """Read an SAE.

    Args:
        weights: the file, in a folder such as layer_20/width_16k/average_l0_71.

    Raises:
        InputError: it is broken, of the embedding, or a transcoder.
    """
    folder = weights.parent
    settings = read_settings(folder / SETTINGS) if (folder / SETTINGS).exists() else {}
    if "embedding" in folder.absolute().parts:
        raise InputError(f"SAE {folder} reads embeddings in units of its own; name one of a layer")
    if "hf_hook_point_out" in settings:
        raise InputError(f"SAE {folder} is a transcoder, to {settings['hf_hook_point_out']}; name an autoencoder")
    tensors = {name.replace("w_", "W_"): tensor for name, tensor in read_tensors(weights).items()}
    if "W_enc" not in tensors or tensors["W_enc"].ndim != 2:
        raise InputError(f"{weights} holds no matrix W_enc; copy it again")
    width, latents = tensors["W_enc"].shape
    needed = {
        "W_enc": (width, latents), "b_enc": (latents,), "W_dec": (latents, width), "b_dec": (width,),
        "threshold": (latents,),
    }  # fmt: skip
    if faults := misfits(weights, tensors, needed):
        raise InputError(f"{'; '.join(faults)}; copy it again")
    W_enc, b_enc, W_dec, b_dec, threshold = (tensors[name] for name in needed)
    return ForeignSAE(W_enc, with_bias_left(W_enc, b_enc, b_dec), W_dec, b_dec, None, settings, threshold)
