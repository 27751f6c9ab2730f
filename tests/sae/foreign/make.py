"""Train small SAEs with the libraries whose formats are read, and keep what they say of some rows.

Run from here, in an environment of its own: pip install torch==2.13.0 eai-sparsify==1.3.3 sae-lens==6.54.12
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
import shutil
from pathlib import Path

import numpy as np
import torch
from sae_lens import SAE as LensSAE
from sae_lens import StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig
from sparsify import SparseCoder, SparseCoderConfig

HERE = Path(__file__).parent
WIDTH, LATENTS, K, ROWS = 8, 24, 3, 40


def shaken(model: torch.nn.Module) -> None:
    """Give every parameter entries that matter, biases too."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


def keep(name: str, x: torch.Tensor, codes: torch.Tensor, x_hat: torch.Tensor) -> None:
    rows, found, decoded = (value.detach().float().numpy() for value in (x, codes, x_hat))
    np.savez(HERE / name / "golden.npz", x=rows, codes=found, x_hat=decoded)


def main() -> None:
    torch.manual_seed(0)
    x = torch.randn(ROWS, WIDTH)
    for name, changes in (
        ("sparsify", {"num_latents": LATENTS}),
        ("sparsify_expansion", {"num_latents": 0, "expansion_factor": 3, "normalize_decoder": False}),
    ):
        coder = SparseCoder(WIDTH, SparseCoderConfig(k=K, **changes), dtype=torch.float32)
        shaken(coder)
        shutil.rmtree(HERE / name, ignore_errors=True)
        coder.save_to_disk(HERE / name)
        out, encoded = coder(x), coder.encode(x)
        codes = torch.zeros(ROWS, LATENTS).scatter(1, encoded.top_indices, encoded.top_acts)
        keep(name, x, codes, out.sae_out)
    shapes = {"d_in": WIDTH, "d_sae": LATENTS, "dtype": "float32", "device": "cpu"}
    for name, kind, config in (
        ("sae_lens_standard", StandardSAE, StandardSAEConfig(**shapes)),
        ("sae_lens_bias_left", StandardSAE, StandardSAEConfig(**shapes, apply_b_dec_to_input=False)),
        ("sae_lens_topk", TopKSAE, TopKSAEConfig(**shapes, k=K)),
        ("sae_lens_topk_by_norm", TopKSAE, TopKSAEConfig(**shapes, k=K, rescale_acts_by_decoder_norm=True)),
    ):
        sae = kind(config)
        shaken(sae)
        shutil.rmtree(HERE / name, ignore_errors=True)
        sae.save_model(HERE / name)
        sae = LensSAE.load_from_disk(HERE / name)
        codes = sae.encode(x)
        keep(name, x, codes, sae.decode(codes))


if __name__ == "__main__":
    main()
