"""Tokenizers, and packed rows of tokens that keep each token's place in its document.

Documents are laid end to end and cut into rows of fixed length, so that no position is spent on padding; a
row says which document each token is of, and a model that masks by `segment` lets no token see another
document. Documents are encoded in groups, and all bookkeeping is array arithmetic over a group, which costs
less than the encoding itself.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsInt

import numpy as np
from jaxtyping import Bool, Int32

from saejax.artifacts import file_sha256, write_bytes, write_json
from saejax.errors import InputError
from saejax.text.document import Document

if TYPE_CHECKING:
    import tokenizers

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
BOS = "<|bos|>"
EOS = "<|eos|>"
GROUP_CHARACTERS = 1_000_000
"""Characters of the documents that are encoded together: `pack` holds no more, unless one is longer."""

Rows = Int32[np.ndarray, "batch position"]


class Tokenizer:
    """A tokenizer as Hugging Face keeps it on disk, with the facts that packing and manifests need.

    Attributes:
        vocab_size: number of token ids, added tokens included.
        bos_id: id of the token that begins a document; None where the folder names none.
        eos_id: id of the token that ends a document; None where the folder names none.
        special_ids: ids of tokens that stand for no text.
        sha256: hash of `tokenizer.json`; equal hashes mean equal token ids.
    """

    def __init__(self, backend: "tokenizers.Tokenizer", bos: str | None, eos: str | None, sha256: str):
        """Wrap a `tokenizers.Tokenizer`; `Tokenizer.load` is the way from a folder."""
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self.bos_id: int | None = None if bos is None else backend.token_to_id(bos)
        self.eos_id: int | None = None if eos is None else backend.token_to_id(eos)
        added = backend.get_added_tokens_decoder()
        self.special_ids: frozenset[int] = frozenset(i for i, token in added.items() if token.special)
        self.sha256 = sha256

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Load `tokenizer.json`, and from `tokenizer_config.json` which tokens begin and end a document.

        Args:
            folder: a model folder in Hugging Face layout, or one that `save_tokenizer` wrote.

        Returns:
            The tokenizer.

        Raises:
            InputError: `tokenizer.json` is absent, or a file is not what its name says.
        """
        import tokenizers

        path, config = folder / TOKENIZER_FILE, folder / TOKENIZER_CONFIG_FILE
        if not path.is_file():
            raise InputError(f"{folder} holds no {TOKENIZER_FILE}; name a model folder with a fast tokenizer")
        if "model" not in _read_object(path):
            raise InputError(f"{path} describes no tokenizer model; fetch or train it again")
        names = _read_object(config) if config.is_file() else {}
        backend = tokenizers.Tokenizer.from_file(str(path))
        bos, eos = (_token_text(names.get(name)) for name in ("bos_token", "eos_token"))
        return cls(backend, bos, eos, file_sha256(path))

    def encode(self, texts: Sequence[str]) -> list[tuple[Int32[np.ndarray, "n"], Int32[np.ndarray, "n 2"]]]:
        """Encode texts without adding special tokens.

        Args:
            texts: the texts.

        Returns:
            For each text its token ids, and the span `[start, end)` of each token in characters of the text.
            A character whose bytes are split over several tokens lies in the span of each.
        """
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [(np.array(e.ids, np.int32), np.array(e.offsets, np.int32).reshape(-1, 2)) for e in encodings]

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """Turn token ids back into text, special tokens shown as they are written."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=False)


@dataclass(frozen=True)
class PackedBatch:
    """Packed rows of tokens; every field has the shape `[batch, position]`.

    Attributes:
        input_ids: token ids; 0 in padding.
        segment: documents of a row numbered from 1; 0 marks padding.
        position: tokens since the segment began in this row, from 0.
        document: ordinal of the token's document in reading order, from 0; -1 in padding.
        token_position: the token's place in its document, from 0, the BOS token counted.
        char_start: first character of the token in the document's text; 0 for BOS.
        char_end: one past the token's last character.
        special: whether the token stands for no text.
    """

    input_ids: Rows
    segment: Rows
    position: Rows
    document: Rows
    token_position: Rows
    char_start: Rows
    char_end: Rows
    special: Bool[np.ndarray, "batch position"]


_STREAM = ("input_ids", "document", "token_position", "char_start", "char_end", "special")
_PADDING = (0, -1, 0, 0, 0, 0)


def pack(
    documents: Iterable[Document], tokenizer: Tokenizer, *, context: int, batch: int, bos: bool = True
) -> Iterator[PackedBatch]:
    """Lay documents end to end, each after a BOS token, and cut the stream into batches of full rows.

    Only the last rows hold padding, which also fills the last batch. A document that goes on in the next row
    is a new segment there, with positions from 0.

    Args:
        documents: what to pack; read as needed, about `GROUP_CHARACTERS` characters at a time.
        tokenizer: makes the tokens.
        context: tokens in a row.
        batch: rows in a batch.
        bos: whether a BOS token begins each document.

    Returns:
        An iterator of batches.

    Raises:
        InputError: `context` or `batch` is below 1, or `bos` is asked of a tokenizer that has none.
    """
    if context < 1 or batch < 1:
        raise InputError(f"context {context}, batch {batch}; both must be at least 1")
    if bos and tokenizer.bos_id is None:
        raise InputError("the tokenizer names no BOS token; pack with bos=False, or name one in its config")
    return _batches(documents, tokenizer, context, batch, tokenizer.bos_id if bos else None)


def _batches(
    documents: Iterable[Document], tokenizer: Tokenizer, context: int, batch: int, bos_id: int | None
) -> Iterator[PackedBatch]:
    cut = context * batch
    left = np.empty((len(_STREAM), 0), np.int32)
    first = 0
    for group in _groups(documents):
        stream = np.concatenate([left, _stream(group, tokenizer, first, bos_id)], axis=1)
        first += len(group)
        whole = stream.shape[1] // cut * cut
        yield from _rows(stream[:, :whole], context, batch)
        left = stream[:, whole:]
    if left.shape[1]:
        padding = np.repeat(np.array(_PADDING, np.int32)[:, None], cut - left.shape[1], axis=1)
        yield from _rows(np.concatenate([left, padding], axis=1), context, batch)


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


def _stream(
    group: list[Document], tokenizer: Tokenizer, first: int, bos_id: int | None
) -> Int32[np.ndarray, "field token"]:
    """Return the group's tokens end to end, one row for each name of `_STREAM`."""
    encoded = tokenizer.encode([document.text for document in group])
    head = np.array([] if bos_id is None else [bos_id], np.int32)
    nowhere = np.zeros((len(head), 2), np.int32)
    ids = np.concatenate([part for own, _ in encoded for part in (head, own)])
    spans = np.concatenate([part for _, own in encoded for part in (nowhere, own)])
    lengths = np.array([len(head) + len(own) for own, _ in encoded])
    starts = np.cumsum(lengths) - lengths
    document = np.repeat(np.arange(first, first + len(group)), lengths)
    token_position = np.arange(len(ids)) - np.repeat(starts, lengths)
    special = np.isin(ids, list(tokenizer.special_ids))
    return np.stack([ids, document, token_position, spans[:, 0], spans[:, 1], special]).astype(np.int32)


def _rows(stream: Int32[np.ndarray, "field token"], context: int, batch: int) -> Iterator[PackedBatch]:
    fields: dict[str, np.ndarray] = dict(zip(_STREAM, stream.reshape(len(_STREAM), -1, context), strict=True))
    document = fields["document"]
    begins = np.zeros(document.shape, bool)
    begins[:, 1:] = document[:, 1:] != document[:, :-1]
    column = np.arange(context, dtype=np.int32)
    fields["position"] = column - np.maximum.accumulate(np.where(begins, column, 0), axis=1)
    fields["segment"] = np.cumsum(begins, axis=1, dtype=np.int32) + 1
    for name in ("position", "segment"):
        fields[name] = np.where(document < 0, 0, fields[name]).astype(np.int32)
    fields["special"] = fields["special"].astype(bool)
    for row in range(0, len(document), batch):
        yield PackedBatch(**{name: rows[row : row + batch] for name, rows in fields.items()})


def train_bpe(texts: Iterator[str], vocab_size: int) -> "tokenizers.Tokenizer":
    """Train a byte-level BPE tokenizer, split like GPT-2's, with the special tokens `BOS` and `EOS`.

    Byte-level, so that any text can be encoded and no token is unknown; token spans keep their leading space,
    so that a document's spans tile it.

    Args:
        texts: training texts.
        vocab_size: number of token ids, the 256 bytes and 2 special tokens included.

    Returns:
        The tokenizer; `save_tokenizer` writes it.

    Raises:
        InputError: `vocab_size` has no room for bytes and special tokens, or the texts do not fill it.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    if vocab_size < 258:
        raise InputError(f"vocab_size {vocab_size} is below 258 (256 bytes, 2 special tokens); raise it")
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[BOS, EOS], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    if backend.get_vocab_size() < vocab_size:
        raise InputError(
            f"vocab_size {vocab_size} is above the {backend.get_vocab_size()} tokens that the texts give; "
            "lower it or give more text"
        )
    return backend


def save_tokenizer(backend: "tokenizers.Tokenizer", folder: Path) -> None:
    """Write a tokenizer of `train_bpe` so that `Tokenizer.load` and `transformers.AutoTokenizer` read it.

    Args:
        backend: the tokenizer.
        folder: where `tokenizer.json` and `tokenizer_config.json` go; must exist.
    """
    write_bytes(folder / TOKENIZER_FILE, backend.to_str(pretty=True).encode())
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS}
    write_json(folder / TOKENIZER_CONFIG_FILE, {**config, "clean_up_tokenization_spaces": False})


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); fetch or train it again") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object; fetch or train it again")
    return content


def _token_text(entry: str | dict | None) -> str | None:
    """Read a token of `tokenizer_config.json`, which stands there bare or as `{"content": ...}`."""
    return entry.get("content") if isinstance(entry, dict) else entry
