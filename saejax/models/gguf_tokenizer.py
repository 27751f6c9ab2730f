"""Turns the tokenizer inside a GGUF file into the two files that Hugging Face reads.

A GGUF file names its way of cutting text before byte-pair merging (`tokenizer.ggml.pre`) but does not hold it, so each
known one is built here. `smollm` parts every digit from its neighbours first; transformers' own conversion leaves that
out, and so gives other ids for spaces before a digit than the model was trained with.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saejax.artifacts import write_bytes, write_json
from saejax.errors import InputError

CONTROL = 3
"""The token type, in GGUF, of tokens that stand for no text."""


def save_tokenizer(metadata: Mapping[str, Any], folder: Path) -> None:
    """Write the byte-pair tokenizer of a GGUF file as `tokenizer.json` and `tokenizer_config.json`.

    Args:
        metadata: the key-value pairs of the file.
        folder: where the two go.

    Raises:
        InputError: it is not a byte-level BPE tokenizer, or it cuts text in an unknown way.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    kind, cut = (metadata.get(f"tokenizer.ggml.{name}") for name in ("model", "pre"))
    if (kind, cut) != ("gpt2", "smollm"):
        raise InputError(f"tokenizer {kind} with pre-tokenizer {cut} is not supported; supported is gpt2 with smollm")
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in metadata["tokenizer.ggml.merges"]]
    backend = tokenizers.Tokenizer(models.BPE(vocab={token: at for at, token in enumerate(tokens)}, merges=merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.decoder = decoders.ByteLevel()
    types = metadata["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    backend.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in special])
    write_bytes(folder / "tokenizer.json", backend.to_str().encode())
    ids = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    found = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in ids.items()}
    config: dict[str, Any] = {name: tokens[at] for name, at in found.items() if at is not None}
    if "tokenizer.chat_template" in metadata:
        config["chat_template"] = metadata["tokenizer.chat_template"]
    fixed = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    write_json(folder / "tokenizer_config.json", fixed | config)
