"""A document, and the rule by which it belongs to the training or to the held-out part of a corpus."""

import zlib
from dataclasses import dataclass
from typing import Literal

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

    @property
    def split(self) -> Literal["train", "heldout"]:
        """The document's part: held out if the CRC-32 of its id lies in the lowest `HELDOUT_SHARE` of all.

        A function of the id alone, so that the part is the same whatever else the corpus holds, in whatever
        order.
        """
        return "heldout" if zlib.crc32(self.id.encode()) < HELDOUT_SHARE * 2**32 else "train"

    def part_of(self, parts: int) -> int:
        """Return which of so many parts the document is in, from 1: the CRC-32 of its text modulo their number.

        A function of the text alone, so that a text that a corpus holds twice is in one part.
        """
        return zlib.crc32(self.text.encode()) % parts + 1
