"""A source whose documents were drawn anew, so that what was paired on them can be paired on others of their kind.

The bootstrap over documents: as many as there are, drawn with replacement, and every row comes as often as its
document did. Rows of a document depend on each other, so documents are drawn and not rows. Correlations are sums over
rows, which repeats only weigh; nothing of the decoder is repeated.
"""

from collections.abc import Iterator

import numpy as np
import scipy.sparse
from jaxtyping import Int

from saejax.activations.store import Store
from saejax.errors import InputError
from saejax.features.sources import ROWS_PER_BLOCK, Block, RowSource

FEWEST_DOCUMENTS = 10


def drawn_documents(source: RowSource, seed: int) -> Int[np.ndarray, "documents"]:
    """Return how often each document of a source is drawn, with replacement.

    Args:
        source: the source.
        seed: seed of the draw, any number that is not negative.

    Raises:
        InputError: there are too few documents to say anything of others.
    """
    count = len(Store.open(source.store).documents)
    if count < FEWEST_DOCUMENTS:
        raise InputError(f"{source.name} holds {count} documents; a bootstrap needs at least {FEWEST_DOCUMENTS}")
    return np.bincount(np.random.default_rng(seed).integers(count, size=count), minlength=count)


class ResampledDocuments:
    """A source with each row as often as its document was drawn.

    Attributes:
        name: what errors call it.
        d: number of features.
        rows: store rows of the source, as it stands.
        ledger_sha256: hash of its ledger.
        store: its activation store.
    """

    def __init__(self, source: RowSource, times: Int[np.ndarray, "documents"]) -> None:
        """Wrap a source.

        Args:
            source: the source.
            times: how often each of its documents was drawn, from `drawn_documents`.
        """
        self.name, self.d, self.rows = source.name, source.d, source.rows
        self.ledger_sha256, self.store = source.ledger_sha256, source.store
        self._source, self._times, self._rows = source, times, Store.open(source.store)

    def blocks(self, rows_per_block: int = ROWS_PER_BLOCK) -> Iterator[Block]:
        """Yield the blocks of the source, of whatever length repeats make them."""
        for start, block in zip(range(0, self.rows, rows_per_block), self._source.blocks(rows_per_block), strict=True):
            columns = self._rows.ledger(start, min(start + rows_per_block, self.rows))
            documents = columns["document"][~columns["special"].astype(bool)]
            chosen = np.repeat(np.arange(len(documents)), self._times[documents])
            yield scipy.sparse.csr_array(block[chosen]) if scipy.sparse.issparse(block) else block[chosen]
