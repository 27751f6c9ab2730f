"""Mistral: Llama with a window on every block."""

from typing import Any

from saejax.models.config import TransformerConfig
from saejax.models.families.family import Family
from saejax.models.families.llama import IGNORED, REQUIRED, SITES, SIZES, WEIGHTS, shared_config, shared_fields
from saejax.models.families.reading import NAMES, Faults


def _config(config: Any) -> TransformerConfig:
    faults, window = Faults(config), config.sliding_window
    return shared_config(
        config, faults, activation=faults.activation(config.hidden_act), window=window,
        windowed=() if window is None else (True,) * config.num_hidden_layers,
    )  # fmt: skip


def _fields(config: TransformerConfig) -> dict[str, Any]:
    return shared_fields(config) | {"hidden_act": NAMES[config.activation], "sliding_window": config.window}


MISTRAL = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    weights=WEIGHTS,
    base="model.",
    required=REQUIRED,
    sizes=SIZES,
    sites=lambda config: SITES,
    config_from=_config,
    config_to=_fields,
    ignored=IGNORED,
)
