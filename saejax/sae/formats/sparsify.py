"""SAEs of EleutherAI's sparsify: `cfg.json` and `sae.safetensors` in a folder for each hook.

x_hat = sum_j v_j W_dec[i_j] + b_dec with (v, i) = topk(relu((x - b_dec) @ encoder.weight.T + encoder.bias)), always
with `b_dec` taken off, whatever `normalize_decoder` says (sparsify/sparse_coder.py). Read after their source, because
another library's reader of this format transposes `W_dec` and takes `num_latents` of 0, which stands for
`expansion_factor` times the width, at its word.
"""

from pathlib import Path

import numpy as np

from saejax.errors import InputError
from saejax.sae.formats.foreign import ForeignSAE, misfits, read_settings, read_tensors

SETTINGS, WEIGHTS = "cfg.json", ("sae.safetensors",)


def read(weights: Path) -> ForeignSAE:
    """Read an SAE.

    Args:
        weights: the file, in the folder of a hook or of a seed in it.

    Raises:
        InputError: it is broken, or no TopK autoencoder; all faults in one line.
    """
    folder = weights.parent
    settings = read_settings(folder / SETTINGS)
    faults = [f"{folder / SETTINGS} says no {name}" for name in ("d_in", "k") if name not in settings]
    activation = settings.get("activation", "topk")
    if activation != "topk":
        faults.append(f"activation {activation} is not topk")
    faults += [
        f"{name} true is not a plain autoencoder" for name in ("transcode", "skip_connection") if settings.get(name)
    ]
    if settings.get("signed"):
        faults.append("signed true has negative codes")
    if faults:
        raise InputError(f"SAE {folder}: {'; '.join(faults)}; name a TopK autoencoder")
    width, tensors = settings["d_in"], read_tensors(weights)
    latents = settings.get("num_latents") or width * settings.get("expansion_factor", 32)
    needed = {
        "encoder.weight": (latents, width), "encoder.bias": (latents,), "W_dec": (latents, width), "b_dec": (width,),
    }  # fmt: skip
    faults = misfits(weights, tensors, needed)
    if faults:
        raise InputError(f"{'; '.join(faults)}; copy it again with its {SETTINGS}")
    encoder, b_enc, W_dec, b_dec = (tensors[name] for name in needed)
    return ForeignSAE(np.ascontiguousarray(encoder.T), b_enc, W_dec, b_dec, settings["k"], settings)
