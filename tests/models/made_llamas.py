"""Small random Llama models made by transformers, and what torch sees at their hook points."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers

from saejax.models import LanguageModel
from saejax.models.families import LLAMA

SMALL = {"vocab_size": 97, "intermediate_size": 56, "max_position_embeddings": 4096}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "grouped-tied": {
        "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
        "rope_theta": 10_000.0, "tie_word_embeddings": True, "rms_norm_eps": 1e-5,
    },
    "multihead-untied": {
        "hidden_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16,
        "rope_theta": 500_000.0, "tie_word_embeddings": False, "rms_norm_eps": 1e-6,
    },
    "multiquery-untied": {
        "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 1,
        "rope_theta": 100.0, "tie_word_embeddings": False, "rms_norm_eps": 1e-3,
    },
}  # fmt: skip


class Pair(NamedTuple):
    """One small model, as transformers runs it and as we do.

    Attributes:
        theirs: the model in torch.
        ours: the model loaded from the folder that transformers saved.
        folder: that folder.
    """

    theirs: Any
    ours: LanguageModel
    folder: Path


def random_llama(name: str, seed: int = 0) -> transformers.LlamaForCausalLM:
    """Return a model whose every parameter, norms too, is random and large enough to matter."""
    torch.manual_seed(seed)
    fields = {**SMALL, **CONFIGS[name]}
    theta = fields.pop("rope_theta")
    config = transformers.LlamaConfig(**fields, rope_parameters={"rope_type": "default", "rope_theta": theta})
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            fresh = torch.randn_like(parameter)
            parameter.copy_(1 + 0.3 * fresh if parameter.ndim == 1 else fresh * parameter.shape[1] ** -0.5)
    return model


def saved_llama(name: str, folder: Path) -> transformers.LlamaForCausalLM:
    """Make a random model and save it as transformers does."""
    model = random_llama(name)
    model.save_pretrained(folder)
    return model


@contextmanager
def watched(model: torch.nn.Module, layers: int) -> Iterator[dict[str, np.ndarray]]:
    """Collect, by our hook names, what goes in and out of the modules that the family table names."""
    seen: dict[str, np.ndarray] = {}
    handles = []

    def keep(hook: str, value: Any) -> None:
        seen[hook] = (value[0] if isinstance(value, tuple) else value).detach().float().numpy()

    def on_input(hook: str) -> Any:
        return lambda module, args, kwargs: keep(hook, args[0] if args else kwargs["hidden_states"])

    def on_output(hook: str) -> Any:
        return lambda module, args, output: keep(hook, output)

    for bare, site in LLAMA.sites.items():
        for layer in range(layers) if "{}" in site.module else [None]:
            hook = bare if layer is None else f"{bare}.{layer}"
            module = model.get_submodule(site.module.format(layer))
            if site.side == "input":
                handles.append(module.register_forward_pre_hook(on_input(hook), with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(on_output(hook)))
    yield seen
    for handle in handles:
        handle.remove()


def torch_forward(model: Any, ids: np.ndarray, mask: np.ndarray | None = None) -> Any:
    """Run a transformers model, positions counted over real tokens, with all hidden states."""
    mask = np.ones_like(ids) if mask is None else mask
    position = np.maximum(mask.cumsum(axis=1) - 1, 0)
    with torch.no_grad():
        return model(
            torch.tensor(ids), attention_mask=torch.tensor(mask), position_ids=torch.tensor(position),
            output_hidden_states=True, use_cache=False,
        )  # fmt: skip


def error(ours: Any, theirs: Any) -> float:
    """Return the largest difference as a fraction of the largest entry."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
