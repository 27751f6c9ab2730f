"""A tokenised corpus in memory: what is trained on, what the loss is reported on, and what samples go on from."""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import Int

from saejax.models.train import TokenBatch
from saejax.progress import progress
from saejax.rng import named_key
from saejax.text.bigram import Bigram
from saejax.text.corpus import CorpusConfig, read_documents
from saejax.text.packing import Packing, pack
from saejax.text.tokens import Tokenizer

HELDOUT_ROWS = 1024


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


def packed_rows(corpus: CorpusConfig, tokenizer: Tokenizer, context: int, data_seed: int) -> PackedRows:
    """Tokenise and pack a corpus.

    Args:
        corpus: which documents.
        tokenizer: the tokenizer.
        context: length of a row, in tokens.
        data_seed: seed of the order in which rows are trained on.
    """
    columns: list[list[np.ndarray]] = [[], [], []]
    packing = Packing(context, 256, tokenizer.before)
    with progress(f"packing the {corpus.split} split", None) as advance:
        for batch in pack(read_documents(corpus), tokenizer, packing):
            for column, values in zip(columns, (batch.input_ids, batch.segment, batch.position), strict=True):
                column.append(values)
            advance(len(batch.input_ids))
    rows = TokenBatch(*(np.concatenate(column) for column in columns))
    full = (rows.segment > 0).any(axis=1)
    return PackedRows(TokenBatch(*(column[full] for column in rows)), data_seed)


def held_batches(held: PackedRows, batch: int, limit: int = HELDOUT_ROWS) -> list[TokenBatch]:
    """Return the first `limit` held-out rows, in whole batches."""
    count = min(len(held), limit) // batch * batch
    return [TokenBatch(*(column[start : start + batch] for column in held.rows)) for start in range(0, count, batch)]


def bigram_loss(train: PackedRows, held: PackedRows, vocab_size: int) -> float:
    """Return the loss on the first held-out rows of a bigram model of the training rows, in nats per token."""
    pairs = np.concatenate(list(_pairs(held.rows, HELDOUT_ROWS)))
    return float(-Bigram(_pairs(train.rows, len(train)), vocab_size).log_probability(pairs).mean())


def prompts(held: PackedRows, count: int, length: int) -> Int[np.ndarray, "prompt token"]:
    """Return the first tokens of the first held-out rows that begin with so many of one document."""
    ids, segment = held.rows.input_ids[:, :length], held.rows.segment[:, :length]
    return np.asarray(ids)[(segment == segment[:, :1]).all(axis=1)][:count]


@functools.lru_cache(maxsize=2)
def _epoch_order(data_seed: int, epoch: int, rows: int) -> np.ndarray:
    return np.asarray(jax.random.permutation(named_key(data_seed, f"pretraining.{epoch}"), rows))


def _pairs(rows: TokenBatch, limit: int) -> Iterator[np.ndarray]:
    ids, segment = np.asarray(rows.input_ids[:limit]), np.asarray(rows.segment[:limit])
    counted = (segment[:, 1:] == segment[:, :-1]) & (segment[:, 1:] > 0)
    yield np.stack([ids[:, :-1][counted], ids[:, 1:][counted]], axis=1)
