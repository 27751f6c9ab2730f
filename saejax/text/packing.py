"""Packed rows of tokens that keep each token's place in its document.

Rows have a fixed length. A row says which document each token is of, and a model that masks by `segment` lets no token
see another document. Documents are encoded in groups, and all bookkeeping is array arithmetic over a group, which costs
less than the encoding itself.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int, Int32

from saejax.errors import InputError
from saejax.text.choice import ALL, TokenChoice
from saejax.text.document import Document
from saejax.text.tokens import Tokenizer

GROUP_CHARACTERS = 1_000_000
"""Characters of the documents that are encoded together: `pack` holds no more, unless one is longer."""

Rows = Int32[np.ndarray, "batch position"]
Layout = Literal["stream", "whole", "pieces"]


@dataclass(frozen=True)
class PackedBatch:
    """Packed rows of tokens; every field has the shape `[batch, position]`.

    Attributes:
        input_ids: token ids; 0 in padding.
        segment: documents of a row numbered from 1; 0 marks padding.
        position: tokens since the segment began in this row, from 0.
        document: ordinal of the token's document in reading order, from 0; -1 in padding.
        token_position: the token's place in its document, from 0, special tokens counted.
        char_start: first character of the token in the document's text; 0 for a token put around it.
        char_end: one past the token's last character.
        special: whether the token stands for no text.
        chosen: whether the token is one to keep; never in padding.
    """

    input_ids: Rows
    segment: Rows
    position: Rows
    document: Rows
    token_position: Rows
    char_start: Rows
    char_end: Rows
    special: Bool[np.ndarray, "batch position"]
    chosen: Bool[np.ndarray, "batch position"]


_STREAM = ("input_ids", "document", "token_position", "char_start", "char_end", "special", "chosen")
_PADDING = np.array((0, -1, 0, 0, 0, 0, 0), np.int32)[:, None]
Stream = Int32[np.ndarray, "field _"]


@dataclass(frozen=True)
class Packing:
    """How documents become rows.

    Attributes:
        context: tokens in a row.
        batch: rows in a batch.
        before: ids of special tokens that are put before a document.
        after: ids of those that are put after it.
        layout: `stream` lays documents end to end and cuts where a row is full, so that only the last rows hold
            padding; a document that goes on in the next row is a new segment there, with positions from 0. `whole`
            keeps a document in one row, cut to its first tokens where it is longer. `pieces` cuts a longer one into
            pieces that fill a row, each with the special tokens around it. In both, what does not fit in what is left
            of a row begins the next.
        choice: which tokens of a document are kept.
    """

    context: int
    batch: int
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    layout: Layout = "stream"
    choice: TokenChoice = ALL

    def __post_init__(self) -> None:
        """Refuse rows that no token fits in."""
        if self.context < 1 or self.batch < 1:
            raise InputError(f"context {self.context}, batch {self.batch}; both must be at least 1")
        if self.layout != "stream" and self.room < 1:
            around = len(self.before) + len(self.after)
            raise InputError(f"context {self.context} is filled by the {around} special tokens around a text; raise it")

    @classmethod
    def of(cls, tokenizer: Tokenizer, context: int, batch: int, choice: TokenChoice = ALL) -> "Packing":
        """Lay texts out as the model of a tokenizer reads them.

        Texts that a special token follows are what an encoder reads, and are not cut between rows; nor are those of
        which some tokens are chosen.
        """
        layout = "whole" if choice.kind != "all" else "pieces" if tokenizer.after else "stream"
        return cls(context, batch, tokenizer.before, tokenizer.after, layout, choice)

    @property
    def room(self) -> int:
        """Tokens of text that fit in a row."""
        return self.context - len(self.before) - len(self.after)


def pack(documents: Iterable[Document], tokenizer: Tokenizer, packing: Packing) -> Iterator[PackedBatch]:
    """Turn documents into batches of rows.

    Args:
        documents: what to pack; read as needed, about `GROUP_CHARACTERS` characters at a time.
        tokenizer: makes the tokens.
        packing: how they are laid out.

    Returns:
        An iterator of batches; padding fills the last.
    """
    cut = packing.context * packing.batch
    left = np.empty((len(_STREAM), 0), np.int32)
    first = 0
    for group in _groups(documents):
        own = _stream(group, tokenizer, first, packing, left.shape[1] % packing.context)
        stream = np.concatenate([left, own], axis=1)
        first += len(group)
        whole = stream.shape[1] // cut * cut
        yield from _rows(stream[:, :whole], packing)
        left = stream[:, whole:]
    if left.shape[1]:
        yield from _rows(np.concatenate([left, np.repeat(_PADDING, cut - left.shape[1], axis=1)], axis=1), packing)


def _groups(documents: Iterable[Document]) -> Iterator[list[Document]]:
    group, characters = [], 0
    for document in documents:
        group.append(document)
        characters += len(document.text)
        if characters >= GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _stream(group: list[Document], tokenizer: Tokenizer, first: int, packing: Packing, column: int) -> Stream:
    """Return the group's tokens end to end, one row for each name of `_STREAM`.

    Args:
        group: the documents.
        tokenizer: makes the tokens.
        first: ordinal of the first document.
        packing: how they are laid out.
        column: place in its row that the first token has.
    """
    before, after = np.array(packing.before, np.int32), np.array(packing.after, np.int32)
    ids, spans, document, lengths = [], [], [], []
    for ordinal, (own, places) in enumerate(tokenizer.encode([each.text for each in group]), first):
        for start, stop in _pieces(len(own), packing):
            ids += [before, own[start:stop], after]
            spans += [np.zeros((len(before), 2), np.int32), places[start:stop], np.zeros((len(after), 2), np.int32)]
            document.append(ordinal)
            lengths.append(len(before) + stop - start + len(after))
    token, span = np.concatenate(ids), np.concatenate(spans)
    document = np.repeat(document, lengths)
    starts = np.flatnonzero(np.diff(document, prepend=-1))
    token_position = np.arange(len(token)) - np.repeat(starts, np.diff(starts, append=len(token)))
    special = np.isin(token, list(tokenizer.special_ids))
    each = zip(np.split(special, starts[1:]), document[starts].tolist(), strict=True)
    chosen = np.concatenate([packing.choice.of(own, ordinal) for own, ordinal in each])
    stream = np.stack([token, document, token_position, span[:, 0], span[:, 1], special, chosen]).astype(np.int32)
    return stream if packing.layout == "stream" else _unbroken(stream, np.array(lengths), packing.context, column)


def _pieces(length: int, packing: Packing) -> list[tuple[int, int]]:
    """Return where the pieces of a text of `length` tokens begin and end; there is always one."""
    if packing.layout == "stream":
        return [(0, length)]
    last = length if packing.layout == "pieces" else packing.room
    starts = range(0, max(1, min(length, last)), packing.room)
    return [(start, min(start + packing.room, length)) for start in starts]


def _unbroken(stream: Stream, lengths: Int[np.ndarray, "piece"], context: int, column: int) -> Stream:
    """Put padding before every piece that would not end in the row in which it begins."""
    padding = []
    for length in lengths.tolist():
        padding.append(context - column if column + length > context else 0)
        column = (column + padding[-1] + length) % context
    places = np.arange(stream.shape[1]) + np.repeat(np.cumsum(padding), lengths)
    padded = np.repeat(_PADDING, int(places[-1]) + 1, axis=1)
    padded[:, places] = stream
    return padded


def _rows(stream: Stream, packing: Packing) -> Iterator[PackedBatch]:
    reshaped = stream.reshape(len(_STREAM), -1, packing.context)
    fields: dict[str, np.ndarray] = dict(zip(_STREAM, reshaped, strict=True))
    document = fields["document"]
    begins = np.zeros(document.shape, bool)
    begins[:, 1:] = document[:, 1:] != document[:, :-1]
    column = np.arange(packing.context, dtype=np.int32)
    fields["position"] = column - np.maximum.accumulate(np.where(begins, column, 0), axis=1)
    fields["segment"] = np.cumsum(begins, axis=1, dtype=np.int32) + 1
    for name in ("position", "segment"):
        fields[name] = np.where(document < 0, 0, fields[name]).astype(np.int32)
    for name in ("special", "chosen"):
        fields[name] = fields[name].astype(bool)
    for row in range(0, len(document), packing.batch):
        yield PackedBatch(**{name: rows[row : row + packing.batch] for name, rows in fields.items()})
