"""Extraction joins text, a model and a store: one pass over a corpus stores the activations of several hooks.

Four things go on at once: a thread reads and packs the next tokens, one starts the model one batch ahead, one writes
the last full shard while this one fills the next; two batches and two shards are held. A resumed extraction tokenises
again what is stored, which is cheap, and runs the model on the batches that have missing rows only, the same as in an
undisturbed one: the files are the same. Several processes share a store in the same way, each taking the shards of
the others for stored.
"""

import dataclasses
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from saejax import artifacts
from saejax.activations.ledger import COLUMNS
from saejax.activations.prefetch import prefetch
from saejax.activations.store import KIND, Dtype, write_decoder
from saejax.activations.token_rows import TokenRows, token_rows
from saejax.activations.writer import StoreWriter, committed_shards
from saejax.claim import claimed
from saejax.errors import InputError
from saejax.models.runtime import HookedModel, Runtime, load_hooked
from saejax.progress import progress
from saejax.storage import Place
from saejax.text.choice import TokenChoice
from saejax.text.corpus import CorpusConfig, corpus_record, read_documents
from saejax.text.packing import Packing
from saejax.text.tokens import Tokenizer
from saejax.types import AnyArray


@dataclass(frozen=True)
class ExtractConfig:
    """Which activations to store, of which model, on which text."""

    model: Path
    """Model folder: config.json, weights (safetensors) and tokenizer.json."""
    hooks: tuple[str, ...]
    """Hook points to store in one pass, for example resid_post.0 mlp_hidden.0."""
    out: Place
    """Where the store goes: a folder, s3://BUCKET/NAME or gs://BUCKET/NAME; an interrupted extraction into it goes on
    where it stopped."""
    corpus: CorpusConfig = CorpusConfig()
    """Text to run the model on."""
    tokens: int | None = None
    """Rows to store, one per token, special tokens counted; the whole corpus when not given."""
    choose: str = "all"
    """Tokens of a document that become rows: all, last, end:N (the one that N tokens follow) or random:K. All but the
    first choose no special token and keep a document in one row, cut to its first tokens where it is longer."""
    seed: int = 0
    """Root seed of random tokens."""
    context: int = 256
    """Length of a packed row, in tokens: how far back a token sees at most."""
    batch: int = 16
    """Packed rows that the model runs on at once."""
    dtype: Dtype = "bfloat16"
    """How activations are stored: bfloat16 (2 bytes, 3 significant digits) or float32 (4 bytes)."""
    shard_tokens: int = 65_536
    """Rows per file and per commit, a multiple of context x batch; an interruption loses at most so many."""
    chunk_tokens: int | None = None
    """Rows that are read at once, a divisor of shard_tokens; fewer mix better when shuffled, more read faster. The
    largest divisor up to 1,024 by default."""
    runtime: Runtime = "auto"
    """What runs the model: jax; torch, through transformers (extra torch); auto is jax for the families that have a
    model here, and torch for all others."""
    allow_pickle: bool = False
    """Read pytorch_model.bin, tensors alone, instead of safetensors (extra torch)."""
    processes: int = dataclasses.field(default=1, metadata=artifacts.EXECUTION)
    """Processes that share the store, each started with the same command but for --process; each writes every so many
    shards, and the last to end completes the store."""
    process: int = dataclasses.field(default=0, metadata=artifacts.EXECUTION)
    """Number of this process, from 0."""

    def __post_init__(self) -> None:
        """Refuse what no extraction can do."""
        for name in ("tokens", "context", "batch", "shard_tokens", "chunk_tokens", "processes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} {value} is below 1; give a positive number")
        if not self.hooks or len(set(self.hooks)) < len(self.hooks):
            raise InputError(f"hooks {self.hooks} must be distinct, and at least one; name resid_post.0, say")
        if self.dtype not in get_args(Dtype):
            raise InputError(f"dtype {self.dtype} is none of {', '.join(get_args(Dtype))}")
        self.choice()
        if self.runtime not in get_args(Runtime):
            raise InputError(f"runtime {self.runtime} is none of {', '.join(get_args(Runtime))}")
        if self.shard_tokens % self.batch_tokens:
            nearest = max(1, round(self.shard_tokens / self.batch_tokens)) * self.batch_tokens
            raise InputError(
                f"shard_tokens {self.shard_tokens} must be a multiple of context x batch, "
                f"{self.batch_tokens}; give {nearest}"
            )
        if self.chunk_tokens is not None and self.shard_tokens % self.chunk_tokens:
            raise InputError(f"chunk_tokens {self.chunk_tokens} must divide shard_tokens {self.shard_tokens}")
        if not 0 <= self.process < self.processes:
            raise InputError(f"process {self.process} of {self.processes} processes does not exist; count from 0")
        if self.corpus.source.startswith("hf:") and self.tokens is None:
            raise InputError(f"tokens is not given for {self.corpus.source}, a stream; say how many to store")

    @property
    def batch_tokens(self) -> int:
        """Tokens in a full batch."""
        return self.context * self.batch

    def choice(self) -> TokenChoice:
        """Return which tokens of a document become rows."""
        return TokenChoice.parse(self.choose, self.seed)

    def packing(self, tokenizer: Tokenizer) -> Packing:
        """Return how documents become rows of the model."""
        return Packing.of(tokenizer, self.context, self.batch, self.choice())


@dataclass(frozen=True)
class Extractor:
    """A config with what it names, opened and checked.

    Attributes:
        config: what to extract.
        model: the loaded model.
        tokenizer: its tokenizer.
        corpus: the corpus as the manifest records it.
    """

    config: ExtractConfig
    model: HookedModel
    tokenizer: Tokenizer
    corpus: dict[str, Any]

    @classmethod
    def open(cls, config: ExtractConfig) -> "Extractor":
        """Load the model and look at the corpus.

        Raises:
            InputError: the model cannot be loaded; it lacks hooks or positions or does not fit its tokenizer, all
                told at once; or the corpus cannot be read.
        """
        model = load_hooked(config.model, config.runtime, allow_pickle=config.allow_pickle)
        tokenizer = Tokenizer.load(config.model)
        faults = mismatches(config.model, model, tokenizer, config.context)
        try:
            model.require_hooks(config.hooks)
        except InputError as error:
            faults.insert(0, str(error))
        if faults:
            raise InputError("; ".join(faults))
        return cls(config, model, tokenizer, corpus_record(config.corpus))

    def inputs(self) -> dict[str, Any]:
        """Return what identifies the run beside its config."""
        return {
            "model_fingerprint": self.model.fingerprint,
            "runtime": self.model.runtime,
            "tokenizer_sha256": self.tokenizer.sha256,
            "corpus": self.corpus,
        }

    def hooks(self) -> dict[str, dict[str, Any]]:
        """Return what the manifest says of each hook."""
        return {
            hook: {"width": self.model.width(hook), "module_path": self.model.module_path(hook)}
            for hook in self.config.hooks
        }

    def rows(self) -> Iterator[TokenRows]:
        """Yield the rows to store, batch by batch."""
        config = self.config
        return token_rows(config.corpus, self.tokenizer, config.packing(self.tokenizer), config.tokens)

    def compute(self, batch: TokenRows) -> Mapping[str, AnyArray]:
        """Start the model on a batch; the results are waited for when they are used."""
        packed = batch.batch
        return self.model.activations(packed.input_ids, packed.segment, packed.position, self.config.hooks)

    def expected_rows(self) -> int:
        """Estimate how many rows there will be, from those of the first batch.

        Per character, or per document where tokens are chosen. Reads
        documents until they suffice for `tokens`, or all; a streamed data set is taken to hold enough.

        Raises:
            InputError: the corpus gives no token, or its first batch cannot be made.
        """
        made = self.rows()
        wanted, first = self.config.tokens, next(made, None)
        if first is None:
            raise InputError(f"corpus {self.config.corpus.source} gives no tokens to store; name one with text")
        if next(made, None) is None:
            return len(first.stored)
        if wanted is not None and self.config.corpus.source.startswith("hf:"):
            return wanted
        ledger, chosen = first.ledger(), self.config.choose != "all"
        units = len(first.documents) if chosen else int((ledger["char_end"] - ledger["char_start"]).sum())
        rows = 0.0
        for document in read_documents(self.config.corpus):
            rows += len(first.stored) / units * (1 if chosen else len(document.text))
            if wanted is not None and rows >= wanted:
                return wanted
        return round(rows)


def extract(config: ExtractConfig) -> Place:
    """Store the activations of a model on a corpus, or go on with an interrupted run.

    Args:
        config: which activations.

    Returns:
        Where the store is.

    Raises:
        InputError: what the config names cannot be used (known before anything is written), the directory
            holds another run, another process writes it, or an activation is NaN or infinite.
    """
    extractor = Extractor.open(config)
    inputs = extractor.inputs()
    expected = config.tokens or extractor.expected_rows()
    run = artifacts.begin(config.out, KIND, config, inputs)
    if run.complete:
        if len(committed_shards(run.folder)) == run.manifest["facts"]["shards"]:
            return config.out
        run = run.reopen()
    model, tokenizer = extractor.model, extractor.tokenizer
    facts = {"model": model.name, "revision": model.revision, **inputs, "bos_id": tokenizer.bos_id}
    with claimed(run.folder, config.process) as still_ours:
        if config.process == 0:
            run.note(**facts)
            for hook in config.hooks:
                if hook.startswith("mlp_hidden."):
                    write_decoder(run.folder, hook, np.asarray(model.decoder_rows(hook)))
        share = -(-expected // config.processes)
        with (
            StoreWriter(
                run, extractor.hooks(), config.dtype, config.shard_tokens, config.chunk_tokens,
                part=config.process, parts=config.processes, still_ours=still_ours,
            ) as writer,
            progress("extracting activations", share, done=writer.committed_rows) as advance,
        ):  # fmt: skip
            for rows, found in _computed(extractor, writer):
                writer.append(None if found is None else _flat(rows, found), rows.ledger(), rows.documents)
                advance(0 if found is None else len(rows.stored))
            writer.finish(**facts)
    return config.out


def plan(config: ExtractConfig) -> dict[str, str]:
    """Return what an extraction would cost, from one timed batch; nothing is written.

    Args:
        config: the extraction that is planned.

    Returns:
        Rows, bytes on disk, minutes and memory, in words.

    Raises:
        InputError: what the config names cannot be used.
    """
    extractor = Extractor.open(config)
    rows = extractor.expected_rows()
    first = next(extractor.rows())
    _flat(first, extractor.compute(first))
    start = time.perf_counter()
    _flat(first, extractor.compute(first))
    seconds = time.perf_counter() - start
    entries = sum(extractor.model.width(hook) for hook in config.hooks)
    per_row = entries * jnp.dtype(config.dtype).itemsize
    per_row += sum(np.dtype(dtype).itemsize for dtype in COLUMNS.values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "rows": f"{rows:,}{'' if config.tokens else ', estimated from the first batch'}",
        "disk": f"{rows * per_row:,} bytes at most ({per_row:,} a row)",
        "minutes": f"{rows / len(first.stored) * seconds / 60:.1f} at {config.batch_tokens / seconds:,.0f} tokens/s",
        "memory": f"{(peak + config.shard_tokens * per_row) / 2**30:.2f} GiB",
    }


def mismatches(folder: Path, model: HookedModel, tokenizer: Tokenizer, context: int) -> list[str]:
    """Say all that keeps a model from reading rows of text.

    Args:
        folder: the model's.
        model: the model.
        tokenizer: makes the tokens.
        context: length of a row, in tokens.

    Returns:
        A line for each fault; none where they fit.
    """
    found = []
    if model.max_positions is not None and context > model.max_positions:
        found.append(f"context {context} is above the model's {model.max_positions} positions; lower it")
    if tokenizer.vocab_size > model.vocab_size:
        found.append(
            f"{folder} has a tokenizer of {tokenizer.vocab_size} tokens and a model of {model.vocab_size}; "
            "put the model's own tokenizer.json there"
        )
    return found


def _computed(extractor: Extractor, writer: StoreWriter) -> Iterator[tuple[TokenRows, Mapping[str, AnyArray] | None]]:
    """Yield all batches, with their activations where the writer needs them, one batch ahead."""

    def computed() -> Iterator[tuple[TokenRows, Mapping[str, AnyArray] | None]]:
        begun = 0
        for rows in prefetch(extractor.rows()):
            needed = writer.needs(begun, begun + len(rows.stored))
            begun += len(rows.stored)
            yield rows, extractor.compute(rows) if needed else None

    return prefetch(computed())


def _flat(rows: TokenRows, found: Mapping[str, AnyArray]) -> dict[str, Float32[np.ndarray, "rows width"]]:
    """Return the activations of the rows to store, waiting for them."""
    return {hook: np.asarray(x).reshape(-1, x.shape[-1])[rows.stored] for hook, x in found.items()}
