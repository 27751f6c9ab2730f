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

import jax.numpy as jnp
import numpy as np

from saejax import artifacts
from saejax.activations.extractor import ActivationsConfig, Extractor, flat
from saejax.activations.ledger import COLUMNS
from saejax.activations.prefetch import prefetch
from saejax.activations.store import write_decoder
from saejax.activations.token_rows import TokenRows
from saejax.activations.writer import StoreWriter, begin_store
from saejax.claim import claimed
from saejax.errors import InputError
from saejax.progress import progress
from saejax.storage import Place
from saejax.types import AnyArray


@dataclass(frozen=True)
class ExtractConfig(ActivationsConfig):
    """Which activations to store, of which model, on which text."""

    shard_tokens: int = 65_536
    """Rows per file and per commit, a multiple of context x batch; an interruption loses at most two times so many."""
    chunk_tokens: int | None = None
    """Rows that are read at once, a divisor of shard_tokens; fewer mix better when shuffled, more read faster. The
    largest divisor up to 1,024 by default."""
    processes: int = dataclasses.field(default=1, metadata=artifacts.EXECUTION)
    """Processes that share the store, each started with the same command but for --process; each writes every so many
    shards, and the last to end completes the store."""
    process: int = dataclasses.field(default=0, metadata=artifacts.EXECUTION)
    """Number of this process, from 0."""

    def __post_init__(self) -> None:
        """Refuse what no extraction can do."""
        super().__post_init__()
        for name in ("shard_tokens", "chunk_tokens", "processes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} {value} is below 1; give a positive number")
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
    expected = config.tokens or extractor.expected_rows()
    run = begin_store(config.out, config, extractor.inputs())
    if run.complete:
        return config.out
    facts = extractor.facts()
    with claimed(run.folder, config.process, config.processes) as still_ours:
        if config.process == 0:
            run.note(**facts)
            for hook in config.hooks:
                if hook.startswith("mlp_hidden."):
                    write_decoder(run.folder, hook, np.asarray(extractor.model.decoder_rows(hook)))
        share = -(-expected // config.processes)
        with (
            StoreWriter(
                run, extractor.hooks(), config.dtype, config.shard_tokens, config.chunk_tokens,
                part=config.process, parts=config.processes, still_ours=still_ours,
            ) as writer,
            progress("extracting activations", share, done=writer.committed_rows) as advance,
        ):  # fmt: skip
            for rows, found in _computed(extractor, writer):
                writer.append(None if found is None else flat(rows, found), rows.ledger(), rows.documents)
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
    flat(first, extractor.compute(first, config.hooks))
    start = time.perf_counter()
    flat(first, extractor.compute(first, config.hooks))
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


def _computed(extractor: Extractor, writer: StoreWriter) -> Iterator[tuple[TokenRows, Mapping[str, AnyArray] | None]]:
    """Yield all batches, with their activations where the writer needs them, one batch ahead."""

    def computed() -> Iterator[tuple[TokenRows, Mapping[str, AnyArray] | None]]:
        begun = 0
        for rows in prefetch(extractor.rows()):
            needed = writer.needs(begun, begun + len(rows.stored))
            begun += len(rows.stored)
            yield rows, extractor.compute(rows, extractor.config.hooks) if needed else None

    return prefetch(computed())
