"""Joins text and a model: which rows a corpus has, and their activations, batch by batch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jaxtyping import Float32

from saejax.activations.store import Dtype
from saejax.activations.token_rows import TokenRows, token_rows
from saejax.errors import InputError
from saejax.models.runtime import HookedModel, Runtime, load_hooked
from saejax.storage import Place
from saejax.text.choice import TokenChoice
from saejax.text.corpus import CorpusConfig, corpus_record, read_documents
from saejax.text.packing import Packing
from saejax.text.tokens import Tokenizer
from saejax.types import AnyArray


@dataclass(frozen=True)
class ActivationsConfig:
    """Which activations, of which model, on which text."""

    model: Path
    """Model folder: config.json, weights (safetensors) and tokenizer.json."""
    hooks: tuple[str, ...]
    """Hook points to read in one pass, for example resid_post.0 mlp_hidden.0."""
    out: Place
    """Where the run goes: a folder, s3://BUCKET/NAME or gs://BUCKET/NAME; an interrupted run there goes on where it
    stopped."""
    corpus: CorpusConfig = CorpusConfig()
    """Text to run the model on."""
    tokens: int | None = None
    """Rows to read, one per token, special tokens counted; the whole corpus when not given."""
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
    """How activations are kept: bfloat16 (2 bytes, 3 significant digits) or float32 (4 bytes)."""
    runtime: Runtime = "auto"
    """What runs the model: jax; torch, through transformers (extra torch); auto is jax for the families that have a
    model here, and torch for all others."""
    allow_pickle: bool = False
    """Read pytorch_model.bin, tensors alone, instead of safetensors (extra torch)."""

    def __post_init__(self) -> None:
        """Refuse what no model can do."""
        for name in ("tokens", "context", "batch"):
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
        if self.corpus.source.startswith("hf:") and self.tokens is None:
            raise InputError(f"tokens is not given for {self.corpus.source}, a stream; say how many to read")

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
        config: which activations.
        model: the loaded model.
        tokenizer: its tokenizer.
        corpus: the corpus as the manifest records it.
    """

    config: ActivationsConfig
    model: HookedModel
    tokenizer: Tokenizer
    corpus: dict[str, Any]

    @classmethod
    def open(cls, config: ActivationsConfig) -> "Extractor":
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

    def facts(self) -> dict[str, Any]:
        """Return what the manifest says of model, tokenizer and corpus."""
        model = self.model
        return {"model": model.name, "revision": model.revision, **self.inputs(), "bos_id": self.tokenizer.bos_id}

    def hooks(self) -> dict[str, dict[str, Any]]:
        """Return what the manifest says of each hook."""
        return {
            hook: {"width": self.model.width(hook), "module_path": self.model.module_path(hook)}
            for hook in self.config.hooks
        }

    def rows(self) -> Iterator[TokenRows]:
        """Yield the rows, batch by batch."""
        config = self.config
        return token_rows(config.corpus, self.tokenizer, config.packing(self.tokenizer), config.tokens)

    def compute(self, rows: TokenRows, hooks: Sequence[str]) -> Mapping[str, AnyArray]:
        """Start the model on a batch; the results are waited for when they are used."""
        packed = rows.batch
        return self.model.activations(packed.input_ids, packed.segment, packed.position, tuple(hooks))

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


def flat(rows: TokenRows, found: Mapping[str, AnyArray]) -> dict[str, Float32[np.ndarray, "rows width"]]:
    """Return the activations of the rows of a batch, waiting for them.

    Args:
        rows: the batch.
        found: what `Extractor.compute` gave for it.
    """
    return {hook: np.asarray(x).reshape(-1, x.shape[-1])[rows.stored] for hook, x in found.items()}
