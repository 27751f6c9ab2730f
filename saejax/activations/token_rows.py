"""The rows that a store will have, from a corpus: packed batches, their ledger, and which documents begin."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Shaped

from saejax.activations.ledger import DocumentRecord
from saejax.text.corpus import CorpusConfig, read_documents
from saejax.text.document import Document
from saejax.text.packing import PackedBatch, Packing, pack
from saejax.text.tokens import Tokenizer


@dataclass(frozen=True)
class TokenRows:
    """One packed batch and what of it is stored.

    Attributes:
        batch: what the model reads.
        stored: places in the flattened batch whose tokens become rows, ascending; never padding.
        documents: records of the documents up to that of the last row, from the first that no earlier batch had.
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


def token_rows(corpus: CorpusConfig, tokenizer: Tokenizer, packing: Packing, tokens: int | None) -> Iterator[TokenRows]:
    """Tokenise and pack a corpus.

    Args:
        corpus: which documents.
        tokenizer: makes the tokens.
        packing: how they become rows of a batch, and which of them rows of a store.
        tokens: rows after which to stop; the whole corpus when None.

    Returns:
        An iterator over the batches that have a row.

    Raises:
        InputError: while iterating: the corpus matches nothing, or holds an empty or unreadable document.
    """
    read: deque[DocumentRecord] = deque()

    def recorded() -> Iterator[Document]:
        for document in read_documents(corpus):
            read.append({"id": document.id, "source": document.source, "title": document.title})
            yield document

    begun = rows = 0
    for packed in pack(recorded(), tokenizer, packing):
        stored = np.flatnonzero(packed.chosen)
        stored = stored if tokens is None else stored[: tokens - rows]
        if not stored.size:
            continue
        last = int(packed.document.reshape(-1)[stored[-1]])
        yield TokenRows(packed, stored, [read.popleft() for _ in range(begun, last + 1)])
        begun = last + 1
        rows += len(stored)
        if rows == tokens:
            return
