"""Small random models of every family, made and saved by transformers, and what torch sees at their hook points."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers

from saejax.models import LanguageModel

VOCAB = 97
LLAMA = {
    "vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 4096, "pad_token_id": 0,
}  # fmt: skip
GPT2 = {"vocab_size": VOCAB, "n_embd": 48, "n_layer": 3, "n_head": 6, "n_positions": 64}
OPT = {
    "vocab_size": VOCAB, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "ffn_dim": 56,
    "max_position_embeddings": 64,
}  # fmt: skip
NEOX = {
    "vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 6,
    "max_position_embeddings": 4096,
}  # fmt: skip
BERT = {
    "vocab_size": VOCAB, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "intermediate_size": 56,
    "max_position_embeddings": 64,
}  # fmt: skip
DISTIL = {"vocab_size": VOCAB, "dim": 48, "n_layers": 3, "n_heads": 6, "hidden_dim": 56, "max_position_embeddings": 64}
THREE_ONE = ["sliding_attention"] * 3 + ["full_attention"]


def _rope(theta: float, **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta, **more}


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
CASES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "gpt2-narrow-mlp": ("GPT2LMHeadModel", {**GPT2, "n_inner": 40, "activation_function": "relu"}),
    "opt": ("OPTForCausalLM", OPT),
    "opt-350m": ("OPTForCausalLM", {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 24}),
    "opt-without-biases": ("OPTForCausalLM", {**OPT, "enable_bias": False, "tie_word_embeddings": False}),
    "pythia": ("GPTNeoXForCausalLM", {**NEOX, "rope_parameters": _rope(1e4, partial_rotary_factor=0.25)}),
    "neox-sequential": (
        "GPTNeoXForCausalLM",
        {**NEOX, "use_parallel_residual": False, "rope_parameters": _rope(1e4, partial_rotary_factor=1.0)},
    ),
    "llama-grouped-tied": (
        "LlamaForCausalLM", {**LLAMA, "rope_parameters": _rope(1e4), "tie_word_embeddings": True, "rms_norm_eps": 1e-5},
    ),
    "llama-multihead-untied": (
        "LlamaForCausalLM",
        {**LLAMA, "hidden_size": 40, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16,
         "rope_parameters": _rope(5e5), "tie_word_embeddings": False, "rms_norm_eps": 1e-6},
    ),
    "llama-multiquery-untied": (
        "LlamaForCausalLM",
        {**LLAMA, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 1, "tie_word_embeddings": False,
         "rope_parameters": _rope(100.0), "rms_norm_eps": 1e-3},
    ),
    "llama-3": ("LlamaForCausalLM", {**LLAMA, "head_dim": 16, "rope_parameters": {**LLAMA3, "rope_theta": 5e5}}),
    "llama-linear-biased": (
        "LlamaForCausalLM",
        {**LLAMA, "attention_bias": True, "mlp_bias": True, "rope_parameters": {
            "rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
    ),
    "mistral": ("MistralForCausalLM", {**LLAMA, "sliding_window": 5}),
    "mistral-no-window": ("MistralForCausalLM", {**LLAMA, "sliding_window": None, "head_dim": 12}),
    "qwen2": ("Qwen2ForCausalLM", LLAMA),
    "qwen2-window": (
        "Qwen2ForCausalLM", {**LLAMA, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
    ),
    "qwen3": ("Qwen3ForCausalLM", {**LLAMA, "head_dim": 12, "tie_word_embeddings": True}),
    "gemma": ("GemmaForCausalLM", {**LLAMA, "head_dim": 12, "hidden_act": "gelu_pytorch_tanh"}),
    "gemma2": (
        "Gemma2ForCausalLM",
        {**LLAMA, "head_dim": 12, "query_pre_attn_scalar": 48, "sliding_window": 5, "attn_logit_softcapping": 2.0,
         "final_logit_softcapping": 3.0},
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        {**LLAMA, "num_hidden_layers": 4, "head_dim": 12, "query_pre_attn_scalar": 48, "sliding_window": 5,
         "layer_types": THREE_ONE,
         "rope_parameters": {"sliding_attention": _rope(100.0), "full_attention": {
             "rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}}},
    ),
    "bert": ("BertForMaskedLM", BERT),
    "minilm": ("BertModel", {**BERT, "hidden_act": "gelu_new"}),
    "distilbert": ("DistilBertForMaskedLM", DISTIL),
    "distilbert-headless": ("DistilBertModel", DISTIL),
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


def random_model(name: str, seed: int = 0, **changes: Any) -> Any:
    """Return a model whose every parameter, norms and biases too, is random and large enough to matter."""
    torch.manual_seed(seed)
    architecture, fields = CASES[name]
    kind = getattr(transformers, architecture)
    model = kind(kind.config_class(**{**fields, **changes})).eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            fresh = torch.randn_like(parameter)
            around_one = not (path.endswith("bias") or architecture.startswith("Gemma"))
            if parameter.ndim > 1:
                parameter.copy_(0.5 * fresh * parameter.shape[1] ** -0.5)
            else:
                parameter.copy_(0.3 * fresh + around_one)
    return model


def saved_model(name: str, folder: Path, **changes: Any) -> Any:
    """Make a random model and save it as transformers does."""
    model = random_model(name, **changes)
    model.save_pretrained(folder)
    return model


@contextmanager
def watched(model: torch.nn.Module, ours: LanguageModel) -> Iterator[dict[str, np.ndarray]]:
    """Collect, by our hook names, what goes in and out of the modules that the family table names."""
    seen: dict[str, np.ndarray] = {}
    handles = []
    base = ours.family.base if not hasattr(model, ours.family.base.split(".")[0]) else ""

    def keep(hook: str, value: Any) -> None:
        seen[hook] = (value[0] if isinstance(value, tuple) else value).detach().float().numpy()

    def on_input(hook: str) -> Any:
        return lambda module, args, kwargs: keep(hook, args[0] if args else kwargs["hidden_states"])

    def on_output(hook: str) -> Any:
        return lambda module, args, output: keep(hook, output)

    for hook in ours.hooks:
        path, _, side = ours.module_path(hook).partition(":")
        module = model.get_submodule(path.removeprefix(base))
        if side == "input":
            handles.append(module.register_forward_pre_hook(on_input(hook), with_kwargs=True))
        else:
            handles.append(module.register_forward_hook(on_output(hook)))
    yield seen
    for handle in handles:
        handle.remove()


@contextmanager
def edited_by_torch(theirs: Any, module_path: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Change what goes in or out of a module, named as `LanguageModel.module_path` does, while the model runs."""
    path, _, side = module_path.partition(":")
    module = theirs.get_submodule(path)

    def before(module: Any, given: Any, named: Any) -> Any:
        return (change(given[0]), *given[1:]), named

    def behind(module: Any, given: Any, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    if side == "input":
        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = module.register_forward_hook(behind)
    try:
        yield
    finally:
        handle.remove()


def torch_forward(model: Any, ids: np.ndarray, mask: np.ndarray | None = None) -> Any:
    """Run a transformers model, positions counted over real tokens, with all hidden states."""
    mask = np.ones_like(ids) if mask is None else mask
    given: dict[str, Any] = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    given["position_ids"] = torch.tensor(np.maximum(mask.cumsum(axis=1) - 1, 0))
    if not model.config.model_type.endswith("bert"):
        given["use_cache"] = False
    with torch.no_grad():
        return model(**given, output_hidden_states=True)


def error(ours: Any, theirs: Any) -> float:
    """Return the largest difference as a fraction of the largest entry."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
