"""Llama 2 and 3.x, and all that is built like them: SmolLM2, TinyLlama, Vicuna, ..."""

from collections.abc import Mapping
from typing import Any

from saejax.models.config import TransformerConfig
from saejax.models.families.family import Family, Site, Weight, dense, into, norm, out_of
from saejax.models.families.reading import NAMES, Faults, rope_parameters

REQUIRED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
SIZES = {
    "vocab_size": "vocab_size", "d_model": "hidden_size", "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads", "n_kv_heads": "num_key_value_heads", "d_head": "head_dim",
    "d_mlp": "intermediate_size", "max_positions": "max_position_embeddings",
}  # fmt: skip
LAYER, BLOCK = "model.layers.{}", "blk.{}"
IGNORED = ("*rotary_emb.inv_freq",)

PRODUCTS = (
    *dense("blocks.w_q", f"{LAYER}.self_attn.q_proj", f"{BLOCK}.attn_q"),
    *dense("blocks.w_k", f"{LAYER}.self_attn.k_proj", f"{BLOCK}.attn_k"),
    *dense("blocks.w_v", f"{LAYER}.self_attn.v_proj", f"{BLOCK}.attn_v"),
    *dense("blocks.w_o", f"{LAYER}.self_attn.o_proj", f"{BLOCK}.attn_output"),
    *dense("blocks.w_gate", f"{LAYER}.mlp.gate_proj", f"{BLOCK}.ffn_gate"),
    *dense("blocks.w_up", f"{LAYER}.mlp.up_proj", f"{BLOCK}.ffn_up"),
    *dense("blocks.w_down", f"{LAYER}.mlp.down_proj", f"{BLOCK}.ffn_down"),
)
ENDS = (
    Weight("embed", "model.embed_tokens.weight", "token_embd.weight"),
    *norm("final_norm", "model.norm", "output_norm"),
    Weight("unembed", "lm_head.weight", "output.weight", True),
)
WEIGHTS = (
    *ENDS,
    *PRODUCTS,
    *norm("blocks.attn_norm", f"{LAYER}.input_layernorm", f"{BLOCK}.attn_norm"),
    *norm("blocks.mlp_norm", f"{LAYER}.post_attention_layernorm", f"{BLOCK}.ffn_norm"),
    *norm("blocks.q_norm", f"{LAYER}.self_attn.q_norm"),
    *norm("blocks.k_norm", f"{LAYER}.self_attn.k_norm"),
)
SITES: Mapping[str, Site] = {
    "embed": out_of("model.embed_tokens"),
    "resid_pre": into(LAYER),
    "attn_in": out_of(f"{LAYER}.input_layernorm"),
    "attn_z": into(f"{LAYER}.self_attn.o_proj"),
    "attn_out": out_of(f"{LAYER}.self_attn.o_proj"),
    "resid_mid": into(f"{LAYER}.post_attention_layernorm"),
    "mlp_in": out_of(f"{LAYER}.post_attention_layernorm"),
    "mlp_hidden": into(f"{LAYER}.mlp.down_proj"),
    "mlp_out": out_of(f"{LAYER}.mlp.down_proj"),
    "resid_post": out_of(LAYER),
    "final_norm": out_of("model.norm"),
}


def shared_config(config: Any, faults: Faults, **own: Any) -> TransformerConfig:
    """Read what all configs of Llama's lineage say in the same words.

    Args:
        config: of transformers.
        faults: takes note of what cannot run here.
        **own: fields that the family reads itself.

    Raises:
        InputError: something cannot run here.
    """
    if "rope" not in own:
        own["rope"] = faults.rope(config.rope_parameters)
    found = {
        "vocab_size": config.vocab_size,
        "d_model": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads or config.num_attention_heads,
        "d_head": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        "d_mlp": config.intermediate_size,
        "max_positions": config.max_position_embeddings,
        "norm_eps": config.rms_norm_eps,
        "tie_embeddings": config.tie_word_embeddings,
    }
    faults.check()
    return TransformerConfig(**found | own)


def shared_fields(config: TransformerConfig) -> dict[str, Any]:
    """Write what all configs of Llama's lineage say in the same words."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_mlp,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.d_head,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope.theta,
        "rope_parameters": rope_parameters(config.rope),
        "tie_word_embeddings": config.tie_embeddings,
    }


def _config(config: Any) -> TransformerConfig:
    faults, bias = Faults(config), bool(config.attention_bias)
    activation = faults.activation(config.hidden_act)
    return shared_config(
        config, faults, activation=activation, attn_bias=bias, attn_out_bias=bias, mlp_bias=bool(config.mlp_bias)
    )


def _fields(config: TransformerConfig) -> dict[str, Any]:
    own = {"hidden_act": NAMES[config.activation], "attention_bias": config.attn_bias, "mlp_bias": config.mlp_bias}
    return shared_fields(config) | own


LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    weights=WEIGHTS,
    base="model.",
    required=REQUIRED,
    sizes=SIZES,
    sites=lambda config: SITES,
    config_from=_config,
    config_to=_fields,
    ignored=IGNORED,
)
