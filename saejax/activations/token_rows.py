"""The rows that a store will have, from a corpus: packed batches, their ledger, and which documents begin."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Shaped

from saejax.activations.ledger import DocumentRecord
from saejax.text.corpus import CorpusConfig, read_documents
from saejax.text.document import Document
from saejax.text.tokens import PackedBatch, Tokenizer, pack


@dataclass(frozen=True)
class TokenRows:
    """One packed batch and what of it is stored.

    Attributes:
        batch: what the model reads.
        stored: places in the flattened batch whose tokens become rows, ascending; never padding.
        documents: records of the documents that begin in those rows.
    """

    batch: PackedBatch
    stored: Int[np.ndarray, "rows"]
    documents: list[DocumentRecord]

    def ledger(self) -> dict[str, Shaped[np.ndarray, "rows"]]:
        """Return the columns of the ledger for the rows."""
        fields = {
            "document": self.batch.document,
            "position": self.batch.token_position,
            "char_start": self.batch.char_start,
            "char_end": self.batch.char_end,
            "token_id": self.batch.input_ids,
            "special": self.batch.special,
        }
        return {name: field.reshape(-1)[self.stored] for name, field in fields.items()}


def token_rows(
    corpus: CorpusConfig, tokenizer: Tokenizer, *, context: int, batch: int, tokens: int | None
) -> Iterator[TokenRows]:
    """Tokenise and pack a corpus, a BOS token before each document where the tokenizer names one.

    Args:
        corpus: which documents.
        tokenizer: makes the tokens.
        context: tokens in a packed row.
        batch: packed rows in a batch.
        tokens: rows after which to stop; the whole corpus when None.

    Returns:
        An iterator; every batch but the last has `context` x `batch` rows.

    Raises:
        InputError: while iterating: the corpus matches nothing, or holds an empty or unreadable document.
    """
    read: deque[DocumentRecord] = deque()

    def recorded() -> Iterator[Document]:
        for document in read_documents(corpus):
            read.append({"id": document.id, "source": document.source, "title": document.title})
            yield document

    begun = rows = 0
    bos = tokenizer.bos_id is not None
    for packed in pack(recorded(), tokenizer, context=context, batch=batch, bos=bos):
        stored = np.flatnonzero(packed.segment)
        stored = stored if tokens is None else stored[: tokens - rows]
        last = int(packed.document.reshape(-1)[stored[-1]])
        yield TokenRows(packed, stored, [read.popleft() for _ in range(begun, last + 1)])
        begun = last + 1
        rows += len(stored)
        if rows == tokens:
            return
