"""Makes the embedded corpus: shippable sources in, one compressed file of clean, unrepeated documents out.

What is taken away is what would teach a model about web pages instead of language, or let a held-out
document be read in training: navigation blocks of the manuals, pages that only list other pages, and
documents much of whose text other documents hold (a WordNet gloss stands under each of its synonyms; a manual
has its chapters also as one long page). Documents are shuffled, so that a prefix of the corpus is a fair
sample of it: sorted by a hash of their ids, which no library version can change. Grouped by source they would
compress 8 % better.
"""

import gzip
import hashlib
import json
import lzma
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from saejax.artifacts import write_bytes
from saejax.errors import InputError

SOURCES = ("shakespeare", "kjv", "sqlite-doc", "postgresql-doc", "jargon", "devil", "wordnet")
LONGEST_FILE = 12_000_000
"""Bytes that the compressed corpus may take, since every wheel carries it."""
SHORTEST_DOCUMENT = 40
"""Characters of text below which a document is left out."""
LARGEST_REPEATED_SHARE = 0.2
"""Share of a document's telling characters that documents already kept may hold."""
SHORTEST_TELLING_PARAGRAPH = 40
"""Characters below which a paragraph (a heading, a speaker's name) says nothing about repetition."""
LZMA_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}]
"""Literal contexts of four bits and no alignment: what suits plain text."""

_INDEX_TITLE = re.compile(r"00-database-\w+|bookindex|doc_\w+_crossref|keyword_index|requirements")
_SQLITE_HEAD = re.compile(r"\A.*?Search Documentation\nSearch Changelog\n\n", re.DOTALL)
_SQLITE_NOISE = re.compile(
    r"[\w-]+:\n(show|hide)|►\nTable Of Contents|This page last modified on .*"
    r"|See also lists of\nObjects,\nConstants, and\nFunctions\."
)
_POSTGRESQL_HEAD = re.compile(r"\A[^\n]*\nPrev\s?Up[^\n]*Next\n\n")
_POSTGRESQL_FOOT = re.compile(r"\n\nPrev\s*Up\s*Next\n[^\n]*\Z")
_WORDNET_SENSE = re.compile(r" (?:(?:n|v|adj|adv) )?\d+: | (?:n|v|adj|adv): ")
_WORDNET_SYNONYMS = re.compile(r"\[(?:syn|ant|also): [^\]]*\]")


def curate(sources: Path, out: Path) -> dict[str, tuple[int, int]]:
    """Write the embedded corpus from a folder of `<source>.jsonl.gz` files.

    Args:
        sources: folder with a file for each of `SOURCES`; its lines hold `id`, `source`, `title` and `text`.
        out: the `.jsonl.xz` file to write.

    Returns:
        Documents and characters kept, by source.

    Raises:
        InputError: a source file is missing, or the result is larger than `LONGEST_FILE` bytes.
    """
    missing = [name for name in SOURCES if not (sources / f"{name}.jsonl.gz").is_file()]
    if missing:
        raise InputError(f"{sources} has no {missing[0]}.jsonl.gz; name the folder of all sources")
    kept, documents = {}, []
    for name in SOURCES:
        chosen = list(curated(name, _records(sources / f"{name}.jsonl.gz")))
        kept[name] = len(chosen), sum(len(document["text"]) for document in chosen)
        documents += chosen
    documents.sort(key=lambda document: hashlib.sha256(document["id"].encode()).digest())
    lines = [json.dumps(document, ensure_ascii=False) + "\n" for document in documents]
    data = lzma.compress("".join(lines).encode(), check=lzma.CHECK_CRC64, filters=LZMA_FILTERS)
    if len(data) > LONGEST_FILE:
        raise InputError(f"{out} would take {len(data)} bytes, above {LONGEST_FILE}; leave a source out")
    write_bytes(out, data)
    return kept


def curated(source: str, records: list[dict[str, str]]) -> Iterator[dict[str, str]]:
    """Clean one source's documents and drop what is too short or repeated, in the order given.

    Of two documents that hold the same text, WordNet's longer one is kept (the word of many senses, not one
    of its synonyms), and elsewhere the shorter one (the chapter, not the whole manual).

    Args:
        source: name of the source; decides how navigation is told from text.
        records: the source's documents.

    Yields:
        The documents kept, with cleaned text.
    """
    clean = _CLEANERS.get(source, str.strip)
    telling = _glosses if source == "wordnet" else _paragraphs
    texts = [record for record in records if not _INDEX_TITLE.fullmatch(record["title"])]
    cleaned = {record["id"]: clean(record["text"]) for record in texts}
    seen: set[str] = set()
    kept = set()
    for identity in sorted(cleaned, key=lambda i: len(cleaned[i]), reverse=source == "wordnet"):
        pieces = telling(cleaned[identity])
        repeated = sum(len(piece) for piece in pieces if piece in seen)
        enough = len(cleaned[identity]) >= SHORTEST_DOCUMENT
        if enough and repeated <= LARGEST_REPEATED_SHARE * sum(map(len, pieces)):
            kept.add(identity)
            seen.update(pieces)
    for record in records:
        if record["id"] in kept:
            yield {**record, "text": cleaned[record["id"]]}


def _records(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _clean_sqlite(text: str) -> str:
    paragraphs = _SQLITE_HEAD.sub("", text).split("\n\n")
    return "\n\n".join(p for p in paragraphs if not _SQLITE_NOISE.fullmatch(p.strip())).strip()


def _clean_postgresql(text: str) -> str:
    return _POSTGRESQL_FOOT.sub("", _POSTGRESQL_HEAD.sub("", text)).strip()


def _paragraphs(text: str) -> list[str]:
    spaced = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    return [paragraph for paragraph in spaced if len(paragraph) >= SHORTEST_TELLING_PARAGRAPH]


def _glosses(text: str) -> list[str]:
    return [" ".join(_WORDNET_SYNONYMS.sub("", gloss).split()) for gloss in _WORDNET_SENSE.split(text)[1:]]


_CLEANERS: dict[str, Callable[[str], str]] = {
    "sqlite-doc": _clean_sqlite,
    "postgresql-doc": _clean_postgresql,
}
