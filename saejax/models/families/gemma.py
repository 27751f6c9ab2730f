"""Gemma 1; Gemma 2, with bounded scores, windows on every other block and norms behind attention and MLP; Gemma 3.

Norms multiply by 1 + scale, and the embedding is multiplied by sqrt(d_model). Gemma 3 has norms of queries and keys
and two bases of angles: one for blocks with a window, one for the others.
"""

import dataclasses
from typing import Any

from saejax.models.config import Rope, TransformerConfig
from saejax.models.families.family import Family, into, norm, out_of
from saejax.models.families.llama import (
    ENDS,
    IGNORED,
    LAYER,
    PRODUCTS,
    REQUIRED,
    SITES,
    SIZES,
    WEIGHTS,
    shared_config,
    shared_fields,
)
from saejax.models.families.reading import FULL, NAMES, WINDOWED, Faults, layer_types, rope_parameters, windowed

FOUR_NORMS = (
    *ENDS,
    *PRODUCTS,
    *norm("blocks.attn_norm", f"{LAYER}.input_layernorm"),
    *norm("blocks.attn_out_norm", f"{LAYER}.post_attention_layernorm"),
    *norm("blocks.mlp_norm", f"{LAYER}.pre_feedforward_layernorm"),
    *norm("blocks.mlp_out_norm", f"{LAYER}.post_feedforward_layernorm"),
    *norm("blocks.q_norm", f"{LAYER}.self_attn.q_norm"),
    *norm("blocks.k_norm", f"{LAYER}.self_attn.k_norm"),
)
FOUR_NORM_SITES = {
    **SITES,
    "attn_out_raw": out_of(f"{LAYER}.self_attn.o_proj"),
    "attn_out": out_of(f"{LAYER}.post_attention_layernorm"),
    "resid_mid": into(f"{LAYER}.pre_feedforward_layernorm"),
    "mlp_in": out_of(f"{LAYER}.pre_feedforward_layernorm"),
    "mlp_out_raw": out_of(f"{LAYER}.mlp.down_proj"),
    "mlp_out": out_of(f"{LAYER}.post_feedforward_layernorm"),
}


def _shared(config: Any, faults: Faults, **own: Any) -> TransformerConfig:
    faults.refuse(use_bidirectional_attention=own.pop("bidirectional", None))
    bias = bool(config.attention_bias)
    return shared_config(
        config, faults, attn_bias=bias, attn_out_bias=bias, norm_plus_one=True,
        embed_scale=config.hidden_size**0.5, **own,
    )  # fmt: skip


def _gemma_config(config: Any) -> TransformerConfig:
    faults = Faults(config)
    return _shared(config, faults, activation=faults.activation(config.hidden_act))


def _four_norms(config: Any, faults: Faults, **own: Any) -> TransformerConfig:
    local = windowed(config.layer_types, config.num_hidden_layers)
    return _shared(
        config, faults, activation=faults.activation(config.hidden_activation), output_norms=True,
        windowed=local, window=config.sliding_window if local else None,
        attn_scale=config.query_pre_attn_scalar**-0.5, attn_softcap=config.attn_logit_softcapping,
        logit_softcap=config.final_logit_softcapping, **own,
    )  # fmt: skip


def _gemma3_config(config: Any) -> TransformerConfig:
    faults = Faults(config)
    rope, local = (faults.rope(config.rope_parameters[kind]) for kind in (FULL, WINDOWED))
    return _four_norms(config, faults, bidirectional=False, rope=rope, rope_local=local, qk_norm=True)


def _fields(config: TransformerConfig) -> dict[str, Any]:
    return shared_fields(config) | {"hidden_act": NAMES[config.activation], "attention_bias": config.attn_bias}


def _four_norm_fields(config: TransformerConfig) -> dict[str, Any]:
    return shared_fields(config) | {
        "hidden_activation": NAMES[config.activation],
        "attention_bias": config.attn_bias,
        "query_pre_attn_scalar": round((config.attn_scale or config.d_head**-0.5) ** -2),
        "attn_logit_softcapping": config.attn_softcap,
        "final_logit_softcapping": config.logit_softcap,
        "sliding_window": config.window,
        "layer_types": layer_types(config.has_window),
    }


def _gemma3_fields(config: TransformerConfig) -> dict[str, Any]:
    fields = _four_norm_fields(config)
    del fields["rope_theta"]
    local = config.rope_local or Rope(theta=config.rope.theta)
    return fields | {"rope_parameters": {FULL: rope_parameters(config.rope), WINDOWED: rope_parameters(local)}}


GEMMA = Family(
    model_type="gemma",
    architecture="GemmaForCausalLM",
    weights=WEIGHTS,
    base="model.",
    required=(*REQUIRED, "head_dim"),
    sizes=SIZES,
    sites=lambda config: SITES,
    config_from=_gemma_config,
    config_to=_fields,
    ignored=IGNORED,
)
GEMMA2 = dataclasses.replace(
    GEMMA,
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    weights=FOUR_NORMS,
    sites=lambda config: FOUR_NORM_SITES,
    config_from=lambda config: _four_norms(config, Faults(config)),
    config_to=_four_norm_fields,
)
GEMMA3 = dataclasses.replace(
    GEMMA2,
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    config_from=_gemma3_config,
    config_to=_gemma3_fields,
)
