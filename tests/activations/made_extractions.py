"""A small model with a small corpus, for the tests that extract."""

import json
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from saejax.activations.extract import ExtractConfig
from saejax.models import weights
from saejax.models.config import TransformerConfig
from saejax.models.families import LLAMA
from saejax.models.transformer import Transformer
from saejax.text.corpus import CorpusConfig
from saejax.text.tokens import save_tokenizer, train_bpe

WORDS = "the cat sat on a mat and saw that rats ran to sea as the sun set in the east".split()
HOOKS = ("resid_post.1", "mlp_hidden.0")
WIDTHS = {"resid_post.1": 8, "mlp_hidden.0": 12}


def texts() -> Iterator[str]:
    draw = np.random.default_rng(0)
    for length in [3, 40, 1, 9, 14, 70, 5, 5, 30, 2]:
        yield " ".join(draw.choice(WORDS, length))


def make_model(folder: Path, seed: int) -> Path:
    """Write a random model of two layers with the tokenizer of the corpus."""
    folder.mkdir()
    save_tokenizer(train_bpe(texts(), 270), folder)
    config = TransformerConfig(
        vocab_size=270, d_model=8, n_layers=2, n_heads=2, n_kv_heads=1, d_head=4, d_mlp=12, max_positions=64
    )
    graph, shapes = nnx.split(nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(0))))
    draw = np.random.default_rng(seed)
    state = jax.tree.map(lambda leaf: draw.normal(0, 0.5, leaf.shape).astype(np.float32), shapes)
    weights.save(folder, nnx.merge(graph, state), family=LLAMA, bos_id=0, eos_id=1, dtype="float32")
    return folder


def made_config(folder: Path) -> ExtractConfig:
    """Return an extraction of ten documents: batches of 4 x 16 tokens, shards of two batches, the last one shorter."""
    lines = [json.dumps({"id": f"d{i}", "title": f"T{i}", "text": text}) for i, text in enumerate(texts())]
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    corpus, model = CorpusConfig(str(folder / "corpus.jsonl")), make_model(folder / "model", 0)
    return ExtractConfig(model, HOOKS, folder / "store", corpus, context=16, batch=4, dtype="float32", shard_tokens=128)
