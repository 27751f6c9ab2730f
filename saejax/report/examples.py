"""The text that fires a feature: windows of a corpus around its strongest tokens, with its value on every token."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from saejax.activations.store import Store
from saejax.errors import InputError
from saejax.features.sources import CodeSource
from saejax.text.corpus import CorpusConfig, read_documents


@dataclasses.dataclass(frozen=True)
class Token:
    """One token of a snippet.

    Attributes:
        text: its characters.
        activation: the feature's value on it.
        strength: the same as a share of the feature's largest value in the snippet's side, 0 to 1.
        peak: whether the snippet was chosen for this token.
    """

    text: str
    activation: float
    strength: float
    peak: bool


@dataclasses.dataclass(frozen=True)
class Snippet:
    """A window of one document.

    Attributes:
        title: source and title of the document.
        tokens: its tokens in order.
    """

    title: str
    tokens: list[Token]


@dataclasses.dataclass(frozen=True)
class Window:
    """Where a snippet lies in a store: its rows, and the row that it was chosen for."""

    rows: np.ndarray
    peak: int
    document: int


def snippets(
    source: CodeSource, store: Store, texts: dict[int, str], feature: int, windows: list[Window]
) -> list[Snippet]:
    """Read one feature's values over some windows and lay them over the text.

    Args:
        source: gives the values.
        store: its store, for the ledger.
        texts: the text of every document that the windows touch, by ordinal.
        feature: the feature.
        windows: where to look.

    Returns:
        One snippet per window.
    """
    values = [source.values(feature, window.rows) for window in windows]
    largest = max((float(value.max()) for value in values), default=0.0)
    shown = []
    for window, value in zip(windows, values, strict=True):
        ledger = store.ledger_of(window.rows)
        record = store.documents[window.document]
        text, tokens, end = texts[window.document], [], int(ledger["char_start"][0])
        for index, row in enumerate(window.rows):
            start, stop = max(int(ledger["char_start"][index]), end), int(ledger["char_end"][index])
            end = max(stop, end)
            strength = max(float(value[index]), 0.0) / largest if largest > 0 else 0.0
            tokens.append(Token(text[start:stop], float(value[index]), strength, bool(row == window.peak)))
        shown.append(Snippet(f"{record['source']}: {record['title']}", tokens))
    return shown


def windows_around(store: Store, rows: Iterable[int], reach: int) -> list[Window]:
    """Return the rows within `reach` tokens of each given row and in its document, special tokens left out.

    Args:
        store: the store.
        rows: row numbers; negative ones (no example) are passed over.
        reach: tokens on either side.

    Returns:
        One window per row.
    """
    found = []
    for row in rows:
        if row < 0:
            continue
        start, stop = max(0, row - reach), min(store.rows, row + reach + 1)
        ledger = store.ledger(start, stop)
        document = int(ledger["document"][row - start])
        kept = (ledger["document"] == document) & ~ledger["special"]
        found.append(Window(np.flatnonzero(kept) + start, int(row), document))
    return found


def corpus_of(store: Store) -> CorpusConfig:
    """Return the corpus that a store was extracted from.

    Raises:
        InputError: the store was imported, and nothing tells the text of its rows.
    """
    corpus = store.manifest["config"].get("corpus")
    if corpus is None:
        raise InputError(f"store {store.path} was imported without its text; extract it by saejax extract to show text")
    return CorpusConfig(**corpus)


def texts_of(corpus: CorpusConfig, documents: set[int]) -> dict[int, str]:
    """Read the texts of some documents, by their ordinal in reading order.

    Args:
        corpus: the corpus that the store was extracted from.
        documents: ordinals.

    Returns:
        Text by ordinal.
    """
    wanted, last = {}, max(documents, default=-1)
    for ordinal, document in enumerate(read_documents(corpus)):
        if ordinal > last:
            break
        if ordinal in documents:
            wanted[ordinal] = document.text
    return wanted
