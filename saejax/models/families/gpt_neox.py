"""GPT-NeoX, and so Pythia: attention and MLP in parallel or not, a part of each head turned."""

from collections.abc import Mapping
from typing import Any

from saejax.models.config import TransformerConfig
from saejax.models.families.family import Family, Site, Weight, dense, into, norm, out_of
from saejax.models.families.reading import NAMES, Faults, rope_parameters

LAYER = "gpt_neox.layers.{}"


def _fused(name: str, part: int) -> tuple[Weight, Weight]:
    """Queries, keys and values alternate head by head in one tensor."""
    return dense(f"blocks.{name}", f"{LAYER}.attention.query_key_value", part=part, parts=3, interleaved=True)


WEIGHTS = (
    Weight("embed", "gpt_neox.embed_in.weight"),
    *norm("blocks.attn_norm", f"{LAYER}.input_layernorm"),
    *_fused("w_q", 0),
    *_fused("w_k", 1),
    *_fused("w_v", 2),
    *dense("blocks.w_o", f"{LAYER}.attention.dense"),
    *norm("blocks.mlp_norm", f"{LAYER}.post_attention_layernorm"),
    *dense("blocks.w_up", f"{LAYER}.mlp.dense_h_to_4h"),
    *dense("blocks.w_down", f"{LAYER}.mlp.dense_4h_to_h"),
    *norm("final_norm", "gpt_neox.final_layer_norm"),
    Weight("unembed", "embed_out.weight", transposed=True),
)
SITES: Mapping[str, Site] = {
    "embed": out_of("gpt_neox.embed_in"),
    "resid_pre": into(LAYER),
    "attn_in": out_of(f"{LAYER}.input_layernorm"),
    "attn_z": into(f"{LAYER}.attention.dense"),
    "attn_out": out_of(f"{LAYER}.attention.dense"),
    "resid_mid": into(f"{LAYER}.post_attention_layernorm"),
    "mlp_in": out_of(f"{LAYER}.post_attention_layernorm"),
    "mlp_hidden": into(f"{LAYER}.mlp.dense_4h_to_h"),
    "mlp_out": out_of(f"{LAYER}.mlp.dense_4h_to_h"),
    "resid_post": out_of(LAYER),
    "final_norm": out_of("gpt_neox.final_layer_norm"),
}
PARALLEL_SITES = {hook: site for hook, site in SITES.items() if hook != "resid_mid"}


def _config(config: Any) -> TransformerConfig:
    faults, bias = Faults(config), bool(config.attention_bias)
    activation, rope = faults.activation(config.hidden_act), faults.rope(config.rope_parameters)
    faults.check()
    return TransformerConfig(
        vocab_size=config.vocab_size, d_model=config.hidden_size, n_layers=config.num_hidden_layers,
        n_heads=config.num_attention_heads, n_kv_heads=config.num_attention_heads,
        d_head=config.hidden_size // config.num_attention_heads, d_mlp=config.intermediate_size,
        max_positions=config.max_position_embeddings, rope=rope, attn_bias=bias, attn_out_bias=bias,
        activation=activation, gated=False, mlp_bias=True, norm="layer", norm_eps=config.layer_norm_eps,
        residual="parallel" if config.use_parallel_residual else "pre_norm",
        tie_embeddings=config.tie_word_embeddings,
    )  # fmt: skip


def _fields(config: TransformerConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "intermediate_size": config.d_mlp,
        "max_position_embeddings": config.max_positions,
        "rope_parameters": {"partial_rotary_factor": 1.0, **rope_parameters(config.rope)},
        "rotary_pct": config.rope.fraction,
        "rotary_emb_base": config.rope.theta,
        "attention_bias": config.attn_bias,
        "hidden_act": NAMES[config.activation],
        "layer_norm_eps": config.norm_eps,
        "use_parallel_residual": config.residual == "parallel",
        "tie_word_embeddings": config.tie_embeddings,
    }


GPT_NEOX = Family(
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    weights=WEIGHTS,
    base="gpt_neox.",
    required=("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    sizes={
        "vocab_size": "vocab_size", "d_model": "hidden_size", "n_layers": "num_hidden_layers",
        "n_heads": "num_attention_heads", "d_mlp": "intermediate_size", "max_positions": "max_position_embeddings",
    },
    sites=lambda config: PARALLEL_SITES if config.residual == "parallel" else SITES,
    config_from=_config,
    config_to=_fields,
    ignored=("*.attention.bias", "*.attention.masked_bias", "*rotary_emb.inv_freq"),
)  # fmt: skip
