import re
from typing import Any

import numpy as np
import pytest
import transformers
from flax import nnx
from made_models import CASES

from saejax.errors import InputError
from saejax.models.config import BLOCK_HOOKS, MODEL_HOOKS, Rope, TransformerConfig
from saejax.models.families import LLAMA, Family, Weight, family_of, read_config
from saejax.models.transformer import Transformer
from saejax.models.weights import present

FIELDS: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4,
}  # fmt: skip


def read(**changes: Any) -> TransformerConfig:
    return read_config(LLAMA, {**FIELDS, **changes})


def config_of(name: str) -> tuple[Family, TransformerConfig]:
    architecture, fields = CASES[name]
    theirs = getattr(transformers, architecture).config_class(**fields).to_dict()
    family = family_of(theirs, name)
    return family, read_config(family, theirs)


def parameters(config: TransformerConfig) -> dict[Any, Any]:
    state = nnx.state(nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(params=0))))
    return dict(nnx.to_flat_state(state))


@pytest.mark.parametrize("name", CASES)
def test_a_config_survives_the_way_there_and_back(name: str) -> None:
    family, config = config_of(name)
    assert read_config(family, family.config_to(config)) == config


@pytest.mark.parametrize("name", CASES)
def test_the_table_names_every_parameter_and_every_hook_point(name: str) -> None:
    family, config = config_of(name)
    flat = parameters(config)
    assert {path for _, path in present(family, flat)} == set(flat)
    names = [(weight.theirs, weight.part) for weight in family.weights]
    assert len(set(names)) == len(names)
    assert set(family.sites(config)) == {hook.partition(".")[0] for hook in config.hooks}
    assert set(family.sites(config)) <= {*MODEL_HOOKS, *BLOCK_HOOKS}


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("interleaved", [True, False])
def test_parts_of_a_tensor_are_read_where_they_are_written(transposed: bool, interleaved: bool) -> None:
    config = read()
    whole = np.full((96, 32) if transposed else (32, 96), np.nan)
    rng, parts = np.random.default_rng(0), []
    for part in range(3):
        weight = Weight("", "", transposed=transposed, part=part, parts=3, interleaved=interleaved)
        assert weight.stored_shape((32, 32)) == whole.shape
        parts.append(rng.normal(size=(32, 32)))
        weight.put(parts[-1], whole, config)
    assert np.isfinite(whole).all()
    for part, values in enumerate(parts):
        weight = Weight("", "", transposed=transposed, part=part, parts=3, interleaved=interleaved)
        np.testing.assert_array_equal(weight.take(whole, config), values)


def test_missing_fields_have_the_defaults_of_transformers() -> None:
    defaults = transformers.LlamaConfig(**{name: value for name, value in FIELDS.items() if name != "model_type"})
    assert read() == read_config(LLAMA, defaults.to_dict())


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5e5},
        {"rope_theta": 500_000, "rope_scaling": None},
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
    ],
)
def test_the_rotary_base_is_read_from_old_and_new_configs(rope: dict[str, Any]) -> None:
    assert read(**rope).rope == Rope(theta=5e5)


def test_angles_are_those_of_transformers() -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
              "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
    for parameters in (scaled, {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}):
        config = transformers.LlamaConfig(
            hidden_size=512, num_attention_heads=4, rope_parameters=parameters, max_position_embeddings=131_072
        )
        angles, _ = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, "cpu")
        ours = read_config(LLAMA, {**FIELDS, "hidden_size": 512, **config.to_dict()}).rope.frequencies(128)
        np.testing.assert_allclose(ours, angles.numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "offender"),
    [
        ({"hidden_act": "mish"}, "activation 'mish' (only silu"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "rope_type 'yarn' (only"),
        (
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "hidden_act": "mish"},
            "activation 'mish' (only silu, swish, gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, relu); rope_type 'dyn",
        ),
        ({"hidden_size": "wide"}, "hidden_size"),
    ],
)
def test_what_the_family_cannot_run_is_named(changes: dict[str, Any], offender: str) -> None:
    with pytest.raises(InputError, match=re.escape(offender)) as caught:
        read(**changes)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("llama config: ")


@pytest.mark.parametrize(
    ("name", "changes", "offender"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True (only False)"),
        ("opt", {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine False (only True)"),
        ("bert", {"is_decoder": True}, "is_decoder True (only False)"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention True (only False)"),
    ],
)
def test_odd_members_of_a_family_are_refused(name: str, changes: dict[str, Any], offender: str) -> None:
    family, config = config_of(name)
    with pytest.raises(InputError, match=re.escape(offender)):
        read_config(family, family.config_to(config) | changes)


def test_missing_sizes_are_named_together() -> None:
    with pytest.raises(InputError, match="hidden_size is missing; intermediate_size is missing"):
        read_config(LLAMA, {k: v for k, v in FIELDS.items() if k not in ("hidden_size", "intermediate_size")})


@pytest.mark.parametrize("model_type", ["mamba", None])
def test_an_unknown_architecture_is_refused_with_the_known_ones(model_type: str | None) -> None:
    known = "gpt2, opt, gpt_neox, llama, mistral, qwen2, qwen3, gemma, gemma2, gemma3_text, bert, distilbert"
    with pytest.raises(InputError, match=f"^here: model_type {model_type} is not supported; supported are {known}$"):
        family_of({"model_type": model_type}, "here")
