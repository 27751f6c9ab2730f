import re
from typing import Any

import pytest
import transformers

from saejax.errors import InputError
from saejax.models.families import FAMILIES, LLAMA, family_of
from saejax.models.transformer import BLOCK_HOOKS, MODEL_HOOKS, TransformerConfig

FIELDS: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4,
}  # fmt: skip


def read(**changes: Any) -> TransformerConfig:
    return LLAMA.config_from({**FIELDS, **changes})


def test_missing_fields_have_the_defaults_of_transformers() -> None:
    defaults = transformers.LlamaConfig(**{name: value for name, value in FIELDS.items() if name != "model_type"})
    assert read() == LLAMA.config_from(defaults.to_dict())


def test_a_config_survives_the_way_there_and_back() -> None:
    config = TransformerConfig(
        vocab_size=7, d_model=24, n_layers=3, n_heads=6, n_kv_heads=2, d_head=8, d_mlp=9, rope_theta=5e5,
        norm_eps=1e-6, tie_embeddings=False, max_positions=77,
    )  # fmt: skip
    assert LLAMA.config_from(LLAMA.config_to(config)) == config
    theirs = transformers.LlamaConfig(**LLAMA.config_to(config))
    assert LLAMA.config_from(theirs.to_dict()) == config


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5e5},
        {"rope_theta": 500_000, "rope_scaling": None},
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
    ],
)
def test_the_rotary_base_is_read_from_old_and_new_configs(rope: dict[str, Any]) -> None:
    assert read(**rope).rope_theta == 5e5


@pytest.mark.parametrize(
    ("changes", "offender"),
    [
        ({"attention_bias": True}, "attention_bias true"),
        ({"mlp_bias": True, "attention_bias": True}, "attention_bias true; mlp_bias true"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type 'linear'"),
        ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "llama3"}}, "rope_type 'llama3'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"rope_parameters": {"rope_type": "yarn"}, "mlp_bias": True}, "mlp_bias true; rope_type 'yarn'"),
    ],
)
def test_what_the_family_cannot_run_is_named(changes: dict[str, Any], offender: str) -> None:
    with pytest.raises(InputError, match=re.escape(offender)):
        read(**changes)


def test_missing_sizes_are_named_together() -> None:
    with pytest.raises(InputError, match="hidden_size is missing; intermediate_size is missing"):
        LLAMA.config_from({k: v for k, v in FIELDS.items() if k not in ("hidden_size", "intermediate_size")})


@pytest.mark.parametrize("model_type", ["mamba", None])
def test_an_unknown_architecture_is_refused_with_the_known_ones(model_type: str | None) -> None:
    with pytest.raises(InputError, match=f"here: model_type {model_type} is not supported; supported are llama"):
        family_of({"model_type": model_type}, "here")


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_every_hook_of_a_family_is_a_hook_of_the_stack(family: Any) -> None:
    assert set(family.sites) == {*MODEL_HOOKS, *BLOCK_HOOKS}
    assert len({w.theirs for w in family.weights}) == len({w.gguf for w in family.weights}) == len(family.weights)
