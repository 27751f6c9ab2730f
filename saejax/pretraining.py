"""Joins text and models: small language models of several seeds, trained from scratch on one corpus.

All seeds share the tokenizer and the order of the data, so that they differ in their initial weights only.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from saejax import artifacts
from saejax.errors import InputError
from saejax.models import weights
from saejax.models.config import TransformerConfig
from saejax.models.families import family_of, read_config, size_fields
from saejax.models.train import Schedule, TokenBatch, mean_loss, step_seconds, train
from saejax.models.transformer import Transformer
from saejax.progress import progress
from saejax.rng import named_key
from saejax.text.bigram import Bigram
from saejax.text.corpus import CorpusConfig, corpus_record, read_documents
from saejax.text.packing import Packing, pack
from saejax.text.tokens import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, Tokenizer, save_tokenizer, train_bpe

KIND = "language_model"
HELDOUT_ROWS = 1024
NORM_EPS = 1e-5


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """What `saejax lm train` makes: one model per seed, in `<out>/seed<n>`."""

    out: Path
    """Directory for the tokenizer and one folder per seed."""
    corpus: CorpusConfig = CorpusConfig()
    """Text to train on; its train split is used, and its held-out split for the loss that is reported."""
    tokenizer: Path | None = None
    """Folder of an existing tokenizer; without it a BPE tokenizer is trained on the corpus."""
    vocab_size: int = 4096
    """Size of the trained tokenizer's vocabulary, in tokens."""
    family: str = "llama"
    """Architecture, as `config.json` names it: gpt2, opt, gpt_neox, llama, mistral, qwen2, qwen3, gemma, gemma2, ..."""
    d_model: int = 256
    """Width of the residual stream."""
    n_layers: int = 1
    """Number of blocks."""
    n_heads: int = 4
    """Attention heads per block."""
    d_mlp: int = 1024
    """Width of the MLP's hidden layer."""
    context: int = 256
    """Length of a packed row, in tokens."""
    batch: int = 16
    """Packed rows in one step."""
    tokens: int = 20_000_000
    """Tokens to train on; more than the corpus holds means further epochs in another order."""
    learning_rate: float = 4e-3
    """Peak learning rate of AdamW."""
    warmup_steps: int = 200
    """Steps over which the learning rate grows from 0."""
    weight_decay: float = 0.1
    """Decoupled weight decay of the matrices."""
    seeds: tuple[int, ...] = (0,)
    """Root seeds of the initial weights; one model each."""
    data_seed: int = 0
    """Seed of the order of the rows, shared by all models."""
    snapshots: int = 4
    """Number of intermediate models to keep, at log-spaced steps."""

    def __post_init__(self) -> None:
        """Refuse sizes that no run can have."""
        for name in ("vocab_size", "context", "batch", "tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)} must be at least 1")
        family_of({"model_type": self.family}, "family")
        if self.d_model % self.n_heads:
            raise InputError(f"d_model {self.d_model} must be a multiple of n_heads {self.n_heads}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"seeds {self.seeds} must be distinct, and at least one")
        if self.snapshots < 0:
            raise InputError(f"snapshots {self.snapshots} must be 0 or more")
        self.schedule()

    def schedule(self) -> Schedule:
        """Return the optimiser's schedule: as many steps as hold `tokens`."""
        steps = math.ceil(self.tokens / (self.batch * self.context))
        return Schedule(steps, self.warmup_steps, self.learning_rate, self.weight_decay)

    def snapshot_steps(self) -> tuple[int, ...]:
        """Return the steps after which a model is kept: log-spaced between the warm-up's length and the end."""
        steps = self.schedule().steps
        marks = np.geomspace(max(self.warmup_steps, 1), steps, self.snapshots + 1)[:-1]
        return tuple(sorted({round(mark) for mark in marks}))

    def transformer(self, vocab_size: int) -> TransformerConfig:
        """Return the architecture for a tokenizer of `vocab_size` tokens."""
        family = family_of({"model_type": self.family}, "family")
        sizes = {"vocab_size": vocab_size, "d_model": self.d_model, "n_layers": self.n_layers,
                 "n_heads": self.n_heads, "d_mlp": self.d_mlp, "max_positions": self.context}  # fmt: skip
        heads = {"n_kv_heads": self.n_heads, "d_head": self.d_model // self.n_heads}
        sizes |= {name: size for name, size in heads.items() if name in family.sizes}
        config = read_config(family, size_fields(family, sizes))
        if not config.causal:
            raise InputError(
                f"family {self.family} sees later tokens, so it cannot learn to predict them; name another"
            )
        return dataclasses.replace(config, norm_eps=NORM_EPS, tie_embeddings=True, attn_scale=None)


@dataclasses.dataclass(frozen=True)
class PackedRows:
    """A tokenised corpus in memory, 12 bytes a token.

    Attributes:
        rows: all packed rows, as one batch.
        data_seed: seed of their order.
    """

    rows: TokenBatch
    data_seed: int

    def __len__(self) -> int:
        """Return the number of packed rows."""
        return len(self.rows.input_ids)

    def batch_at(self, step: int, batch: int) -> TokenBatch:
        """Return the rows of one step: each epoch takes every row once, in an order of its own."""
        wanted = np.arange(step * batch, (step + 1) * batch)
        rows = [_epoch_order(self.data_seed, at // len(self), len(self))[at % len(self)] for at in wanted.tolist()]
        return TokenBatch(*(column[rows] for column in self.rows))


def pretrain(config: PretrainConfig) -> list[Path]:
    """Train the models of a config, each in a run directory that transformers can load.

    Args:
        config: corpus, architecture, schedule and seeds.

    Returns:
        One model folder per seed: weights, tokenizer, model card, manifest, metrics and intermediate models.

    Raises:
        InputError: the corpus or tokenizer cannot be read, or a folder holds another run.
    """
    corpus = dataclasses.replace(config.corpus, split="train")
    heldout = dataclasses.replace(config.corpus, split="heldout")
    record = corpus_record(corpus)
    runs = []
    for seed in config.seeds:
        single = dataclasses.replace(config, seeds=(seed,))
        runs.append((seed, artifacts.begin(config.out / f"seed{seed}", KIND, single, {"corpus": record})))
    if all(run.complete for _, run in runs):
        return [run.path for _, run in runs]
    folder = config.tokenizer or _trained_tokenizer(config)
    tokenizer = Tokenizer.load(folder)
    train_rows = _packed(corpus, tokenizer, config)
    held_rows = _packed(heldout, tokenizer, config)
    baseline = _bigram_loss(train_rows, held_rows, tokenizer.vocab_size)
    for seed, run in runs:
        if not run.complete:
            _train_one(config, seed, run, tokenizer, folder, train_rows, held_rows, baseline)
    return [run.path for _, run in runs]


def plan(config: PretrainConfig) -> dict[str, str]:
    """Return what a pretraining would cost, from a few timed steps on made-up tokens; nothing is written.

    Args:
        config: the run that is planned.

    Returns:
        Steps, tokens, parameters, minutes and memory, in words.
    """
    model = Transformer(config.transformer(config.vocab_size), nnx.Rngs(0))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model)))
    steps = config.schedule().steps
    seconds = step_seconds(model, config.schedule(), (config.batch, config.context))
    logits = config.batch * config.context * config.vocab_size
    return {
        "models": f"{len(config.seeds)} of {parameters:,} parameters",
        "steps": f"{steps:,} of {config.batch} rows of {config.context} tokens",
        "tokens": f"{steps * config.batch * config.context:,} per model",
        "minutes": f"{len(config.seeds) * steps * seconds / 60:.1f} at {seconds * 1000:.0f} ms a step",
        "memory": f"{(16 * parameters + 12 * logits) / 2**30:.2f} GiB and 12 bytes per token of the corpus",
        "disk": f"{(1 + config.snapshots) * 2 * parameters / 2**20:.0f} MiB per model",
    }


def _train_one(
    config: PretrainConfig, seed: int, run: artifacts.Run, tokenizer: Tokenizer, folder: Path,
    train_rows: PackedRows, held_rows: PackedRows, baseline: float,
) -> None:  # fmt: skip
    architecture = config.transformer(tokenizer.vocab_size)
    model = Transformer(architecture, nnx.Rngs(params=named_key(seed, "pretraining.init")))

    def save(path: Path, trained: Transformer) -> None:
        path.mkdir(parents=True, exist_ok=True)
        family = family_of({"model_type": config.family}, "family")
        weights.save(path, trained, family=family, bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id)
        for name in (TOKENIZER_FILE, TOKENIZER_CONFIG_FILE):
            artifacts.write_bytes(path / name, (folder / name).read_bytes())

    def snapshot(step: int, trained: Transformer) -> None:
        save(run.path / "snapshots" / f"step{step:06d}", trained)

    model = train(
        model, lambda step: train_rows.batch_at(step, config.batch), config.schedule(),
        run=run, snapshot=snapshot, snapshot_steps=config.snapshot_steps(),
    )  # fmt: skip
    save(run.path, model)
    loss = mean_loss(model, _held_batches(held_rows, config.batch))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model)))
    facts = {
        "parameters": parameters,
        "tokens": config.schedule().steps * config.batch * config.context,
        "corpus_tokens": len(train_rows) * config.context,
        "heldout_loss": round(loss, 4),
        "bigram_loss": round(baseline, 4),
    }
    artifacts.write_bytes(run.path / "README.md", model_card(config, seed, facts).encode())
    run.finish(**facts)


def model_card(config: PretrainConfig, seed: int, facts: dict[str, Any]) -> str:
    """Write what a model is, how it was made and how good it is, in Markdown."""
    return (
        f"# A {config.n_layers}-layer language model, seed {seed}\n\n"
        f"Architecture {config.family}: {config.n_layers} block(s), d_model {config.d_model}, {config.n_heads} heads, "
        f"MLP of {config.d_mlp}, {facts['parameters']:,} parameters, trained in float32 and stored in bfloat16. "
        "Made to study features, not to write.\n\n"
        f"- Trained by `saejax lm train` on {facts['tokens']:,} tokens (the train split of corpus "
        f"`{config.corpus.source}` holds {facts['corpus_tokens']:,}), context {config.context}, AdamW with peak "
        f"rate {config.learning_rate} and cosine decay, data order {config.data_seed}. `manifest.json` holds the "
        "configuration; `metrics.jsonl` the loss curve.\n"
        f"- Loss on held-out documents: {facts['heldout_loss']:.3f} nats per token; an interpolated "
        f"absolute-discounting bigram model fitted on the training tokens reaches {facts['bigram_loss']:.3f}.\n"
    )


def _trained_tokenizer(config: PretrainConfig) -> Path:
    folder = config.out / "tokenizer"
    if not (folder / TOKENIZER_CONFIG_FILE).exists():
        folder.mkdir(exist_ok=True)
        documents = read_documents(dataclasses.replace(config.corpus, split="train"))
        with progress("training a tokenizer", None):
            save_tokenizer(train_bpe((document.text for document in documents), config.vocab_size), folder)
    return folder


def _packed(corpus: CorpusConfig, tokenizer: Tokenizer, config: PretrainConfig) -> PackedRows:
    columns: list[list[np.ndarray]] = [[], [], []]
    packing = Packing(config.context, 256, tokenizer.before)
    with progress(f"packing the {corpus.split} split", None) as advance:
        for batch in pack(read_documents(corpus), tokenizer, packing):
            for column, values in zip(columns, (batch.input_ids, batch.segment, batch.position), strict=True):
                column.append(values)
            advance(len(batch.input_ids))
    rows = TokenBatch(*(np.concatenate(column) for column in columns))
    full = (rows.segment > 0).any(axis=1)
    return PackedRows(TokenBatch(*(column[full] for column in rows)), config.data_seed)


@functools.lru_cache(maxsize=2)
def _epoch_order(data_seed: int, epoch: int, rows: int) -> np.ndarray:
    return np.asarray(jax.random.permutation(named_key(data_seed, f"pretraining.{epoch}"), rows))


def _held_batches(rows: PackedRows, batch: int) -> list[TokenBatch]:
    count = min(len(rows), HELDOUT_ROWS) // batch * batch
    starts = range(0, count, batch)
    return [TokenBatch(*(column[start : start + batch] for column in rows.rows)) for start in starts]


def _bigram_loss(train_rows: PackedRows, held_rows: PackedRows, vocab_size: int) -> float:
    held = np.concatenate(list(_pairs(held_rows.rows, HELDOUT_ROWS)))
    return float(-Bigram(_pairs(train_rows.rows, len(train_rows)), vocab_size).log_probability(held).mean())


def _pairs(rows: TokenBatch, limit: int) -> Iterator[np.ndarray]:
    ids, segment = np.asarray(rows.input_ids[:limit]), np.asarray(rows.segment[:limit])
    counted = (segment[:, 1:] == segment[:, :-1]) & (segment[:, 1:] > 0)
    yield np.stack([ids[:, :-1][counted], ids[:, 1:][counted]], axis=1)
