"""A corpus: which documents are read, in which order, and what a manifest keeps about them.

Every source (the embedded corpus, files, a Hugging Face data set) gives the same thing, an ordered stream of
documents, and is split into training and held-out documents by the same rule.
"""

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from saejax.artifacts import file_sha256
from saejax.errors import InputError
from saejax.text import files, hub
from saejax.text.document import Document

EMBEDDED = Path(__file__).with_name("embedded") / "corpus.jsonl.xz"

Split = Literal["all", "train", "heldout"]


@dataclass(frozen=True)
class CorpusConfig:
    """Which documents to read."""

    source: str = "embedded"
    """Where documents come from: "embedded" (what ships with saejax), "hf:NAME" or "hf:NAME:CONFIG"
    (a Hugging Face data set), or a file, folder or glob (.txt, .jsonl, .jsonl.gz, .parquet)."""
    split: Split = "all"
    """Which of the documents: "train" (95 %) or "heldout" (5 %), told apart by their ids, or "all"."""
    parts: int = 1
    """Disjoint parts into which the documents of the split fall by a hash of their text: no text is in two of them."""
    part: int = 1
    """Which of these parts to read, from 1."""
    documents: int | None = None
    """Number of these documents to read at most; all when not given."""
    text_field: str = "text"
    """Field of .jsonl lines, column of .parquet files or data sets that holds the text."""

    def __post_init__(self) -> None:
        """Refuse values that can match nothing."""
        if not self.source or self.source == "hf:":
            raise InputError(f"corpus source {self.source!r} is empty; name files, hf:NAME or embedded")
        if self.split not in get_args(Split):
            raise InputError(f"corpus split {self.split!r} is none of {', '.join(get_args(Split))}")
        if not 1 <= self.part <= self.parts:
            raise InputError(f"corpus part {self.part} of {self.parts} parts does not exist; count from 1")
        if self.documents is not None and self.documents < 1:
            raise InputError(f"corpus documents {self.documents} is below 1; leave it out to read all")
        if not self.text_field:
            raise InputError("corpus text_field is empty; name the field that holds the text")


def read_documents(config: CorpusConfig) -> Iterator[Document]:
    """Read a corpus in its fixed order: files by name and line, a data set by row.

    Args:
        config: which documents.

    Returns:
        An iterator that holds one document at a time. Whatever can be known without reading is checked before
        it is returned.

    Raises:
        InputError: nothing matches the source or the split, or (while iterating) a document is empty or
            unreadable.
    """
    if config.source.startswith("hf:"):
        found = hub.read(config.source, config.text_field)
    else:
        root, paths = _files(config.source)
        found = itertools.chain.from_iterable(files.read(path, root, config.text_field) for path in paths)
    return _chosen(config, found)


def corpus_record(config: CorpusConfig) -> dict[str, Any]:
    """Describe a corpus for a manifest: the choice made, and the identity of every file it was made from.

    Files of the user's are read once from end to end, so that an empty or unreadable document is found before
    work begins, and not in the middle of it.

    Args:
        config: which documents.

    Returns:
        The config's fields, and `files` (name, bytes, sha256) or, for a Hugging Face data set, `revision`.

    Raises:
        InputError: as `read_documents`.
    """
    record: dict[str, Any] = asdict(config)
    if config.source.startswith("hf:"):
        return {**record, "revision": hub.revision(config.source)}
    root, paths = _files(config.source)
    if config.source != "embedded":
        for _ in read_documents(config):
            pass
    names = [path.relative_to(root).as_posix() for path in paths]
    sizes = [path.stat().st_size for path in paths]
    record["files"] = [
        {"name": name, "bytes": size, "sha256": file_sha256(path)}
        for name, size, path in zip(names, sizes, paths, strict=True)
    ]
    return record


def _files(source: str) -> tuple[Path, list[Path]]:
    return (EMBEDDED.parent, [EMBEDDED]) if source == "embedded" else files.find(source)


def _chosen(config: CorpusConfig, found: Iterator[files.Placed]) -> Iterator[Document]:
    of_split = (d for d in _full(found) if config.split in ("all", d.split))
    chosen = (d for d in of_split if d.part_of(config.parts) == config.part)
    count = 0
    for document in itertools.islice(chosen, config.documents):
        yield document
        count += 1
    if count == 0:
        part = f", part {config.part} of {config.parts}" if config.parts > 1 else ""
        raise InputError(f"corpus {config.source}, split {config.split}{part}, holds no document; ask for another")


def _full(found: Iterator[files.Placed]) -> Iterator[Document]:
    for where, document in found:
        if not document.text or document.text.isspace():
            raise InputError(f"{where} is an empty document; remove it")
        yield document
