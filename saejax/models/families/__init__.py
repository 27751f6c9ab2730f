"""One entry per family: its config, the names of its weights, and where its hook points lie."""

import logging
from collections.abc import Mapping
from typing import Any

from saejax.errors import InputError
from saejax.models.config import TransformerConfig
from saejax.models.families.bert import BERT, DISTILBERT
from saejax.models.families.family import Family as Family
from saejax.models.families.family import Weight as Weight
from saejax.models.families.gemma import GEMMA, GEMMA2, GEMMA3
from saejax.models.families.gpt2 import GPT2
from saejax.models.families.gpt_neox import GPT_NEOX
from saejax.models.families.llama import LLAMA
from saejax.models.families.mistral import MISTRAL
from saejax.models.families.opt import OPT
from saejax.models.families.qwen import QWEN2, QWEN3

FAMILIES: Mapping[str, Family] = {
    family.model_type: family
    for family in (GPT2, OPT, GPT_NEOX, LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA, GEMMA2, GEMMA3, BERT, DISTILBERT)
}


def family_of(fields: Mapping[str, Any], source: str) -> Family:
    """Find the family of a Hugging Face config.

    Args:
        fields: the content of `config.json`.
        source: where it comes from, for the error message.

    Raises:
        InputError: no family here has its `model_type`.
    """
    name = str(fields.get("model_type"))
    if name not in FAMILIES:
        raise InputError(f"{source}: model_type {name} is not supported; supported are {', '.join(FAMILIES)}")
    return FAMILIES[name]


def read_config(family: Family, fields: Mapping[str, Any]) -> TransformerConfig:
    """Read the fields of a Hugging Face config; those that are missing have transformers' defaults.

    Args:
        family: whose they are.
        fields: the content of `config.json`.

    Raises:
        InputError: a size is missing, a field has no possible value, or one that does not run here.
    """
    from huggingface_hub.errors import StrictDataclassError

    auto_config = _auto_config()
    missing = [name for name in family.required if name not in fields]
    if missing:
        raise InputError(f"{family.model_type} config: {'; '.join(f'{name} is missing' for name in missing)}; add them")
    # Ids of special tokens are the tokenizer's to say; transformers warns of those of its defaults.
    silent = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    own = {name: value for name, value in fields.items() if name != "model_type"} | silent
    try:
        config = auto_config.for_model(family.model_type, **own)
    except (StrictDataclassError, TypeError, ValueError, KeyError) as error:
        said = " ".join(str(error).split())
        raise InputError(f"{family.model_type} config: {said}; mend it") from None
    return family.config_from(config)


def _auto_config() -> Any:
    """Import transformers' reader of configs without its advice to install PyTorch, which nothing here needs."""
    advice = logging.getLogger("transformers")
    advice.disabled = True
    try:
        from transformers import AutoConfig
    finally:
        advice.disabled = False
    return AutoConfig


def size_fields(family: Family, sizes: Mapping[str, int]) -> dict[str, int]:
    """Return sizes as a family's `config.json` says them.

    Args:
        family: the family.
        sizes: sizes by their names in `TransformerConfig`.

    Raises:
        InputError: the family does not leave one of them free.
    """
    fixed = [name for name in sizes if name not in family.sizes]
    if fixed:
        raise InputError(f"{', '.join(fixed)} cannot be chosen in family {family.model_type}; leave it out")
    return {family.sizes[name]: size for name, size in sizes.items()}
