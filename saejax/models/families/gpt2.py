"""GPT-2: learned positions, layer norms, one tensor for queries, keys and values."""

from typing import Any

from saejax.models.config import TransformerConfig
from saejax.models.families.family import Family, Weight, dense, into, norm, out_of
from saejax.models.families.reading import NAMES, Faults

LAYER = "transformer.h.{}"


def _fused(name: str, part: int) -> tuple[Weight, Weight]:
    return dense(f"blocks.{name}", f"{LAYER}.attn.c_attn", transposed=False, part=part, parts=3)


WEIGHTS = (
    Weight("embed", "transformer.wte.weight"),
    Weight("positions", "transformer.wpe.weight"),
    *norm("blocks.attn_norm", f"{LAYER}.ln_1"),
    *_fused("w_q", 0),
    *_fused("w_k", 1),
    *_fused("w_v", 2),
    *dense("blocks.w_o", f"{LAYER}.attn.c_proj", transposed=False),
    *norm("blocks.mlp_norm", f"{LAYER}.ln_2"),
    *dense("blocks.w_up", f"{LAYER}.mlp.c_fc", transposed=False),
    *dense("blocks.w_down", f"{LAYER}.mlp.c_proj", transposed=False),
    *norm("final_norm", "transformer.ln_f"),
    Weight("unembed", "lm_head.weight", transposed=True),
)
SITES = {
    "embed": out_of("transformer.drop"),
    "resid_pre": into(LAYER),
    "attn_in": out_of(f"{LAYER}.ln_1"),
    "attn_z": into(f"{LAYER}.attn.c_proj"),
    "attn_out": out_of(f"{LAYER}.attn.c_proj"),
    "resid_mid": into(f"{LAYER}.ln_2"),
    "mlp_in": out_of(f"{LAYER}.ln_2"),
    "mlp_hidden": into(f"{LAYER}.mlp.c_proj"),
    "mlp_out": out_of(f"{LAYER}.mlp.c_proj"),
    "resid_post": out_of(LAYER),
    "final_norm": out_of("transformer.ln_f"),
}


def _config(config: Any) -> TransformerConfig:
    faults = Faults(config)
    faults.refuse(scale_attn_by_inverse_layer_idx=False, scale_attn_weights=True, add_cross_attention=False)
    activation = faults.activation(config.activation_function)
    faults.check()
    return TransformerConfig(
        vocab_size=config.vocab_size, d_model=config.n_embd, n_layers=config.n_layer, n_heads=config.n_head,
        n_kv_heads=config.n_head, d_head=config.n_embd // config.n_head, d_mlp=config.n_inner or 4 * config.n_embd,
        max_positions=config.n_positions, positions="learned", attn_bias=True, attn_out_bias=True,
        activation=activation, gated=False, mlp_bias=True, norm="layer", norm_eps=config.layer_norm_epsilon,
        tie_embeddings=config.tie_word_embeddings,
    )  # fmt: skip


def _fields(config: TransformerConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "n_embd": config.d_model,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_inner": config.d_mlp,
        "n_positions": config.max_positions,
        "activation_function": NAMES[config.activation],
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
    }


GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    weights=WEIGHTS,
    base="transformer.",
    required=("vocab_size", "n_embd", "n_layer", "n_head"),
    sizes={
        "vocab_size": "vocab_size", "d_model": "n_embd", "n_layers": "n_layer", "n_heads": "n_head",
        "d_mlp": "n_inner", "max_positions": "n_positions",
    },
    sites=lambda config: SITES,
    config_from=_config,
    config_to=_fields,
    ignored=("*.attn.bias", "*.attn.masked_bias"),
)  # fmt: skip
