"""Small GGUF files written by the `gguf` package, and tokenizers as they keep them."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tokenizers
from made_models import random_model
from tokenizers import decoders, models, pre_tokenizers, trainers

from saejax.models.families import LLAMA

Kind = gguf.GGMLQuantizationType
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """Order the rows of each head 0, h, 1, h + 1, ..., as llama.cpp keeps them."""
    width = rows.shape[0] // heads
    pairs = np.stack([np.arange(width // 2), np.arange(width // 2) + width // 2], axis=1).ravel()
    return rows[np.concatenate([head * width + pairs for head in range(heads)])]


def written_gguf(path: Path, *, kind: Kind = Kind.F32, leave_out: str = "", **metadata: Any) -> Path:
    """Write a random tied Llama of width 64 as a GGUF file, matrices quantised as `kind`."""
    theirs = random_model("llama-multiquery-untied")
    tensors = {name: value.numpy() for name, value in theirs.state_dict().items()}
    writer = gguf.GGUFWriter(path, metadata.pop("architecture", "llama"))
    config = theirs.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(100.0)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(config.vocab_size)
    for key, value in metadata.items():
        {str: writer.add_string, int: writer.add_uint32, list: writer.add_array}[type(value)](key, value)
    for weight in (weight for weight in LLAMA.weights if weight.gguf and weight.theirs.format(0) in tensors):
        assert weight.gguf is not None
        for layer in range(config.num_hidden_layers) if weight.stacked else [None]:
            values, name = tensors[weight.theirs.format(layer)], weight.gguf.format(layer)
            heads = {"blocks.w_q.kernel": 4, "blocks.w_k.kernel": 1}.get(weight.ours)
            values = np.ascontiguousarray(interleaved(values, heads) if heads else values)
            if name == leave_out:
                continue
            fits = values.ndim == 2 and values.shape[1] % gguf.GGML_QUANT_SIZES[kind][0] == 0
            stored = kind if fits else Kind.F32
            writer.add_tensor(name, gguf.quants.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def trained_tokenizer() -> tokenizers.Tokenizer:
    """Train a byte-level BPE that parts digits first, on a few lines."""
    backend = tokenizers.Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    lines = ["the cat sat on the mat\n\n  and then 12 of the  other cats sat there too", "naïve cafés — 東京 in  1984"]
    backend.train_from_iterator(lines * 3, trainer)
    return backend


def tokenizer_metadata(backend: tokenizers.Tokenizer) -> dict[str, Any]:
    """Return a tokenizer as the key-value pairs of a GGUF file."""
    model = json.loads(backend.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in SPECIAL else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": "{{ messages[0].content }}",
    }
