"""A document, and the rule by which it belongs to the training or to the held-out part of a corpus."""

import zlib
from dataclasses import dataclass

HELDOUT_SHARE = 0.05


@dataclass(frozen=True)
class Document:
    """One text of a corpus.

    Attributes:
        id: names the document within its corpus; decides its split.
        source: where it comes from: an embedded source, a file or a data set.
        title: a few words for a reader; may be empty.
        text: the whole text; character spans of tokens point into it.
    """

    id: str
    source: str
    title: str
    text: str


def is_heldout(document_id: str) -> bool:
    """Say whether a document is held out: its id's CRC-32 lies in the lowest `HELDOUT_SHARE` of all values.

    A function of the id alone, so that the split is the same whatever else the corpus holds or however it is
    ordered, and no document is on both sides.
    """
    return zlib.crc32(document_id.encode()) < HELDOUT_SHARE * 2**32
