"""Tokenizers as Hugging Face keeps them on disk."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsInt

import numpy as np
from jaxtyping import Int32

from saejax.artifacts import file_sha256, write_bytes, write_json
from saejax.errors import InputError

if TYPE_CHECKING:
    import tokenizers

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
BOS = "<|bos|>"
EOS = "<|eos|>"


class Tokenizer:
    """A tokenizer as Hugging Face keeps it on disk, with the facts that packing and manifests need.

    Attributes:
        vocab_size: number of token ids, added tokens included.
        bos_id: id of the token that begins a document; None where the folder names none.
        eos_id: id of the token that ends a document; None where the folder names none.
        before: ids of the special tokens that go before a text: those that the tokenizer itself puts there, or else the
            one that begins a document.
        after: ids of those that it puts behind a text, as encoders have it.
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
        self.before, self.after = _around(backend)
        if not self.before and self.bos_id is not None:
            self.before = (self.bos_id,)
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


def _around(backend: "tokenizers.Tokenizer") -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids of the special tokens that a tokenizer puts before and behind a text."""
    encoding = backend.encode("a", add_special_tokens=True)
    put = encoding.special_tokens_mask
    before = put.index(0) if 0 in put else len(put)
    after = before + put[before:].count(0)
    return tuple(encoding.ids[:before]), tuple(encoding.ids[after:])


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
