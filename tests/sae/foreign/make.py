"""Make small SAEs with the libraries whose formats are read, and keep what they say of some rows.

Gemma Scope has no library; SAELens reads its files, for models whose width its loader takes from their name.

Run from here, in an environment of its own: pip install torch==2.13.0 eai-sparsify==1.3.3 sae-lens==6.54.12
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from sae_lens import SAE as LensSAE
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    GatedSAE,
    GatedSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
)
from sae_lens.loading import pretrained_sae_loaders as loaders
from safetensors.torch import save_file
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
        ("sae_lens_jumprelu", JumpReLUSAE, JumpReLUSAEConfig(**shapes)),
        ("sae_lens_gated", GatedSAE, GatedSAEConfig(**shapes)),
        ("sae_lens_batchtopk", BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig(**shapes, k=K)),
    ):
        sae = kind(config)
        shaken(sae)
        shutil.rmtree(HERE / name, ignore_errors=True)
        if name == "sae_lens_batchtopk":
            sae.topk_threshold = torch.tensor(0.5, dtype=torch.float64)
            sae.save_inference_model(HERE / name)
        else:
            sae.save_model(HERE / name)
        sae = LensSAE.load_from_disk(HERE / name)
        codes = sae.encode(x)
        keep(name, x, codes, sae.decode(codes))
    gemma_scope("gemma_scope_2b", "params.npz", loaders.gemma_2_sae_huggingface_loader)
    gemma_scope("gemma_scope_3", "params.safetensors", loaders.gemma_3_sae_huggingface_loader)


def gemma_scope(name: str, file: str, loader: Callable) -> None:
    """Write an SAE as Gemma Scope has it, and read it as SAELens does."""
    x, folder = torch.randn(ROWS, WIDTH), HERE / name
    shapes = {"enc": (WIDTH, LATENTS), "dec": (LATENTS, WIDTH)}
    letter = "W" if file.endswith(".npz") else "w"
    tensors = {f"{letter}_{side}": torch.randn(shape) / WIDTH**0.5 for side, shape in shapes.items()}
    tensors |= {"b_enc": 0.3 * torch.randn(LATENTS), "b_dec": torch.randn(WIDTH), "threshold": torch.rand(LATENTS)}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    if file.endswith(".npz"):
        np.savez(folder / file, allow_pickle=False, **{key: tensor.numpy() for key, tensor in tensors.items()})
    else:
        save_file(tensors, folder / file)
        (folder / "config.json").write_text(json.dumps({
            "architecture": "jump_relu", "model_name": "gemma-v3-270m-pt", "hf_hook_point_in": "model.layers.5.output",
        }))  # fmt: skip
    held = {f"w_{side}": shape for side, shape in shapes.items()}
    with (
        patch.object(loaders, "hf_hub_download", lambda *_, **named: folder / named.get("filename", "config.json")),
        patch.object(loaders, "get_safetensors_tensor_shapes", lambda *_: held),
    ):
        found = loader("google/gemma-scope-2b-pt-res", "resid_post/layer_5/width_16k/average_l0_3")
    settings = {"d_in": WIDTH, "d_sae": LATENTS, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": False}
    assert (found[0]["architecture"], found[0]["apply_b_dec_to_input"]) == ("jumprelu", False)
    sae = JumpReLUSAE(JumpReLUSAEConfig(**settings))
    sae.load_state_dict(found[1])
    codes = sae.encode(x)
    keep(name, x, codes, sae.decode(codes))


if __name__ == "__main__":
    main()
