"""OPT: learned positions, the table of which begins at row 2; its 350m has norms behind and a narrower embedding."""

from collections.abc import Mapping
from typing import Any

from saejax.models.config import TransformerConfig
from saejax.models.families.family import Family, Site, Weight, dense, into, norm, out_of
from saejax.models.families.reading import NAMES, Faults

DECODER = "model.decoder"
LAYER = f"{DECODER}.layers.{{}}"
OFFSET = 2  # rows of the table before that of position 0

WEIGHTS = (
    Weight("embed", f"{DECODER}.embed_tokens.weight"),
    Weight("positions", f"{DECODER}.embed_positions.weight"),
    *dense("project_in", f"{DECODER}.project_in"),
    *dense("project_out", f"{DECODER}.project_out"),
    *norm("blocks.attn_norm", f"{LAYER}.self_attn_layer_norm"),
    *dense("blocks.w_q", f"{LAYER}.self_attn.q_proj"),
    *dense("blocks.w_k", f"{LAYER}.self_attn.k_proj"),
    *dense("blocks.w_v", f"{LAYER}.self_attn.v_proj"),
    *dense("blocks.w_o", f"{LAYER}.self_attn.out_proj"),
    *norm("blocks.mlp_norm", f"{LAYER}.final_layer_norm"),
    *dense("blocks.w_up", f"{LAYER}.fc1"),
    *dense("blocks.w_down", f"{LAYER}.fc2"),
    *norm("final_norm", f"{DECODER}.final_layer_norm"),
    Weight("unembed", "lm_head.weight", transposed=True),
)


def _sites(config: TransformerConfig) -> Mapping[str, Site]:
    before = config.residual == "pre_norm"
    found = {
        "embed": into(f"{DECODER}.layers.0"),
        "resid_pre": into(LAYER),
        "attn_in": out_of(f"{LAYER}.self_attn_layer_norm") if before else into(f"{LAYER}.self_attn.q_proj"),
        "attn_z": into(f"{LAYER}.self_attn.out_proj"),
        "attn_out": out_of(f"{LAYER}.self_attn.out_proj"),
        "resid_mid": into(f"{LAYER}.final_layer_norm") if before else out_of(f"{LAYER}.self_attn_layer_norm"),
        "mlp_in": into(f"{LAYER}.fc1"),
        "mlp_hidden": into(f"{LAYER}.fc2"),
        "mlp_out": out_of(f"{LAYER}.fc2"),
        "resid_post": out_of(LAYER),
    }
    return found | ({"final_norm": out_of(f"{DECODER}.final_layer_norm")} if config.final_norm else {})


def _config(config: Any) -> TransformerConfig:
    faults, before = Faults(config), config.do_layer_norm_before
    faults.refuse(layer_norm_elementwise_affine=True)
    activation = faults.activation(config.activation_function)
    faults.check()
    return TransformerConfig(
        vocab_size=config.vocab_size, d_model=config.hidden_size, n_layers=config.num_hidden_layers,
        n_heads=config.num_attention_heads, n_kv_heads=config.num_attention_heads,
        d_head=config.hidden_size // config.num_attention_heads, d_mlp=config.ffn_dim,
        max_positions=config.max_position_embeddings, d_embed=config.word_embed_proj_dim, positions="learned",
        position_offset=OFFSET, attn_bias=config.enable_bias, attn_out_bias=config.enable_bias,
        activation=activation, gated=False, mlp_bias=config.enable_bias, norm="layer",
        residual="pre_norm" if before else "post_norm", tie_embeddings=config.tie_word_embeddings,
        final_norm=before and not getattr(config, "_remove_final_layer_norm", False),
    )  # fmt: skip


def _fields(config: TransformerConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "ffn_dim": config.d_mlp,
        "max_position_embeddings": config.max_positions,
        "word_embed_proj_dim": config.embed_width,
        "do_layer_norm_before": config.residual == "pre_norm",
        "_remove_final_layer_norm": config.residual == "pre_norm" and not config.final_norm,
        "activation_function": NAMES[config.activation],
        "enable_bias": config.attn_bias,
        "tie_word_embeddings": config.tie_embeddings,
    }


OPT = Family(
    model_type="opt",
    architecture="OPTForCausalLM",
    weights=WEIGHTS,
    base="model.",
    required=("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "ffn_dim"),
    sizes={
        "vocab_size": "vocab_size", "d_model": "hidden_size", "n_layers": "num_hidden_layers",
        "n_heads": "num_attention_heads", "d_mlp": "ffn_dim", "max_positions": "max_position_embeddings",
    },
    sites=_sites,
    config_from=_config,
    config_to=_fields,
)  # fmt: skip
