"""One entry per model family: its config, the names of its weights, and where its hook points lie.

The names are those of Hugging Face (and of GGUF files). Each table is written once and read both ways: weights are
loaded and saved by the same map, and tests hang torch hooks on the very modules that `sites` names.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from saejax.errors import InputError
from saejax.models.transformer import TransformerConfig


@dataclasses.dataclass(frozen=True)
class Weight:
    """Where one of our parameters lies in a checkpoint.

    Attributes:
        ours: path of the parameter in `Transformer`, dotted; under `blocks.` it is stacked by layer.
        theirs: Hugging Face tensor name, `{}` standing for the layer.
        gguf: tensor name in a GGUF file, `{}` standing for the layer.
        transposed: whether the checkpoint stores `[out, in]` where we store `[in, out]`.
    """

    ours: str
    theirs: str
    gguf: str
    transposed: bool = False


@dataclasses.dataclass(frozen=True)
class Site:
    """A hook point in the Hugging Face model: what goes into or comes out of a module.

    Attributes:
        module: path of the module, `{}` standing for the layer.
        side: its input or its output.
    """

    module: str
    side: Literal["input", "output"]


@dataclasses.dataclass(frozen=True)
class Family:
    """What tells one family of models from another.

    Attributes:
        model_type: the `model_type` of its `config.json`.
        architecture: the class that transformers loads it with.
        weights: all its parameters.
        optional: endings of tensor names that a checkpoint may hold besides; they repeat what is known.
        sites: hook points by bare name.
        config_from: reads the fields of a `config.json`.
        config_to: writes them.
    """

    model_type: str
    architecture: str
    weights: tuple[Weight, ...]
    optional: tuple[str, ...]
    sites: Mapping[str, Site]
    config_from: Callable[[Mapping[str, Any]], TransformerConfig]
    config_to: Callable[[TransformerConfig], dict[str, Any]]

    def module_path(self, hook: str) -> str:
        """Return where a hook point lies in the Hugging Face model, as `module.path:input` or `:output`."""
        name, _, layer = hook.partition(".")
        site = self.sites[name]
        return f"{site.module.format(layer)}:{site.side}"

    def weights_of(self, config: TransformerConfig) -> tuple[Weight, ...]:
        """Return the weights that a model of this config has: no output matrix where it is the embedding's."""
        return tuple(w for w in self.weights if not (config.tie_embeddings and w.ours == "unembed"))


def family_of(config: Mapping[str, Any], source: str) -> Family:
    """Find the family of a Hugging Face config.

    Args:
        config: the content of `config.json`.
        source: where it comes from, for the error message.

    Raises:
        InputError: no family here has its `model_type`.
    """
    name = str(config.get("model_type"))
    if name not in FAMILIES:
        raise InputError(f"{source}: model_type {name} is not supported; supported are {', '.join(FAMILIES)}")
    return FAMILIES[name]


def _llama_config(config: Mapping[str, Any]) -> TransformerConfig:
    required = {
        "vocab_size": "vocab_size",
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "d_mlp",
    }
    faults = [f"{name} is missing" for name in required if name not in config]
    faults += [f"{name} true" for name in ("attention_bias", "mlp_bias") if config.get(name)]
    if config.get("hidden_act", "silu") != "silu":
        faults.append(f"hidden_act {config['hidden_act']!r} (only 'silu')")
    theta, rope_faults = _rope(config)
    if faults + rope_faults:
        raise InputError(f"llama config: {'; '.join(faults + rope_faults)}; not supported in this family")
    sizes = {ours: int(config[theirs]) for theirs, ours in required.items()}
    return TransformerConfig(
        **sizes,
        n_kv_heads=int(config.get("num_key_value_heads") or sizes["n_heads"]),
        d_head=int(config.get("head_dim") or sizes["d_model"] // sizes["n_heads"]),
        rope_theta=theta,
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
        max_positions=int(config.get("max_position_embeddings", 2048)),
    )


def _rope(config: Mapping[str, Any]) -> tuple[float, list[str]]:
    """Return the rotary base, and what is wrong with it: transformers 5 nests it, older ones do not."""
    scaling = config.get("rope_scaling") or {}
    nested = config.get("rope_parameters") or scaling
    kind = nested.get("rope_type", nested.get("type", "default"))
    faults = [] if kind == "default" else [f"rope_type {kind!r} (only 'default')"]
    partial = nested.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    faults += [] if partial == 1.0 else [f"partial_rotary_factor {partial} (only 1.0)"]
    return float(nested.get("rope_theta", config.get("rope_theta", 10_000.0))), faults


def _llama_fields(config: TransformerConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_mlp,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.d_head,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": config.tie_embeddings,
    }


LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    weights=(
        Weight("embed", "model.embed_tokens.weight", "token_embd.weight"),
        Weight("blocks.attn_norm", "model.layers.{}.input_layernorm.weight", "blk.{}.attn_norm.weight"),
        Weight("blocks.w_q", "model.layers.{}.self_attn.q_proj.weight", "blk.{}.attn_q.weight", True),
        Weight("blocks.w_k", "model.layers.{}.self_attn.k_proj.weight", "blk.{}.attn_k.weight", True),
        Weight("blocks.w_v", "model.layers.{}.self_attn.v_proj.weight", "blk.{}.attn_v.weight", True),
        Weight("blocks.w_o", "model.layers.{}.self_attn.o_proj.weight", "blk.{}.attn_output.weight", True),
        Weight("blocks.mlp_norm", "model.layers.{}.post_attention_layernorm.weight", "blk.{}.ffn_norm.weight"),
        Weight("blocks.w_gate", "model.layers.{}.mlp.gate_proj.weight", "blk.{}.ffn_gate.weight", True),
        Weight("blocks.w_up", "model.layers.{}.mlp.up_proj.weight", "blk.{}.ffn_up.weight", True),
        Weight("blocks.w_down", "model.layers.{}.mlp.down_proj.weight", "blk.{}.ffn_down.weight", True),
        Weight("final_norm", "model.norm.weight", "output_norm.weight"),
        Weight("unembed", "lm_head.weight", "output.weight", True),
    ),
    optional=("rotary_emb.inv_freq",),
    sites={
        "embed": Site("model.embed_tokens", "output"),
        "resid_pre": Site("model.layers.{}", "input"),
        "attn_in": Site("model.layers.{}.input_layernorm", "output"),
        "attn_z": Site("model.layers.{}.self_attn.o_proj", "input"),
        "attn_out": Site("model.layers.{}.self_attn.o_proj", "output"),
        "resid_mid": Site("model.layers.{}.post_attention_layernorm", "input"),
        "mlp_in": Site("model.layers.{}.post_attention_layernorm", "output"),
        "mlp_hidden": Site("model.layers.{}.mlp.down_proj", "input"),
        "mlp_out": Site("model.layers.{}.mlp", "output"),
        "resid_post": Site("model.layers.{}", "output"),
        "final_norm": Site("model.norm", "output"),
    },
    config_from=_llama_config,
    config_to=_llama_fields,
)

FAMILIES: Mapping[str, Family] = {family.model_type: family for family in (LLAMA,)}
