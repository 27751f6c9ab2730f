"""Qwen 2, with biases of queries, keys and values; and Qwen 3, with norms of queries and keys in their place."""

import dataclasses
from typing import Any

from saejax.models.config import TransformerConfig
from saejax.models.families.family import Family
from saejax.models.families.llama import IGNORED, REQUIRED, SITES, SIZES, WEIGHTS, shared_config, shared_fields
from saejax.models.families.reading import NAMES, Faults, layer_types, windowed


def _shared(config: Any, faults: Faults, **own: Any) -> TransformerConfig:
    local = windowed(config.layer_types, config.num_hidden_layers)
    return shared_config(
        config, faults, activation=faults.activation(config.hidden_act), windowed=local,
        window=config.sliding_window if local else None, **own,
    )  # fmt: skip


def _qwen2_config(config: Any) -> TransformerConfig:
    return _shared(config, Faults(config), attn_bias=True)


def _qwen3_config(config: Any) -> TransformerConfig:
    bias = bool(config.attention_bias)
    return _shared(config, Faults(config), attn_bias=bias, attn_out_bias=bias, qk_norm=True)


def _fields(config: TransformerConfig) -> dict[str, Any]:
    own = {
        "hidden_act": NAMES[config.activation],
        "use_sliding_window": any(config.has_window),
        "sliding_window": config.window,
        "layer_types": layer_types(config.has_window),
    }
    return shared_fields(config) | own


QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    weights=WEIGHTS,
    base="model.",
    required=REQUIRED,
    sizes=SIZES,
    sites=lambda config: SITES,
    config_from=_qwen2_config,
    config_to=_fields,
    ignored=IGNORED,
)
QWEN3 = dataclasses.replace(
    QWEN2,
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    config_from=_qwen3_config,
    config_to=lambda config: _fields(config) | {"attention_bias": config.attn_bias},
)
