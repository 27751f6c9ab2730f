"""Documents from files: .txt (a document each), .jsonl, .jsonl.gz, .jsonl.xz and .parquet (a document a row).

A document is named by its `id` field, else by its file (relative to the folder asked for) and line or row. A
record that is no document ends the reading with its place: a corpus with a hole is the user's to mend, since
a silently shorter one would change every number downstream.
"""

import contextlib
import glob
import gzip
import itertools
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeAlias

from saejax.errors import InputError
from saejax.text.document import Document

PARQUET_BATCH_ROWS = 1024

Placed: TypeAlias = tuple[str, Document]
"""A document with its place (file and line or row), for messages."""


def find(source: str) -> tuple[Path, list[Path]]:
    """Find the corpus files that a path or a glob names.

    A folder gives every file in or below it with a known ending, hidden ones left out; a glob must match only
    files with known endings.

    Args:
        source: a file, a folder or a glob (`**` goes through folders).

    Returns:
        The folder against which files are named, and the files sorted by name.

    Raises:
        InputError: nothing matches, or a file has an ending that cannot be read.
    """
    path = Path(source)
    if path.is_dir():
        root = path
        below = (p for p in path.rglob("*") if p.is_file() and _reader(p) is not None)
        paths = sorted(p for p in below if not any(s.startswith(".") for s in p.relative_to(root).parts))
    elif path.is_file():
        root, paths = path.parent, [path]
    else:
        root = _fixed_part(path)
        paths = sorted(p for p in map(Path, glob.glob(source, recursive=True)) if p.is_file())
    endings = ", ".join(_READERS)
    if not paths:
        raise InputError(f"corpus {source} matches no file ({endings}); check the path")
    unreadable = [p for p in paths if _reader(p) is None]
    if unreadable:
        raise InputError(f"corpus file {unreadable[0]} is none of {endings}; convert it or narrow the source")
    return root, paths


def read(path: Path, root: Path, text_field: str) -> Iterator[Placed]:
    """Read one file's documents in order.

    Args:
        path: the file.
        root: folder against which the file is named in document ids.
        text_field: field or column that holds the text.

    Returns:
        An iterator of the documents, empty ones included, each with its place.

    Raises:
        InputError: (while iterating) the file is damaged, or a record lacks the field; names file and line.
    """
    reader = _reader(path)
    if reader is None:
        raise InputError(f"corpus file {path} is none of {', '.join(_READERS)}; convert it")
    return reader(path, path.relative_to(root).as_posix(), text_field)


def placed(record: Any, text_field: str, where: str, name: str, source: str) -> Placed:
    """Make a document of one record of a file or a data set.

    Args:
        record: field names to values.
        text_field: field that holds the text.
        where: the record's place, for messages.
        name: the document's id where the record has no `id`.
        source: the document's source where the record has no `source`.

    Returns:
        The document, which may be empty, with its place.

    Raises:
        InputError: the record has no such field, or what it holds is no text.
    """
    if not isinstance(record, dict):
        raise InputError(f"{where} is not a JSON object; give one object with a field {text_field!r} a line")
    if text_field not in record:
        fields = ", ".join(map(repr, record)) or "none"
        raise InputError(f"{where} has no field {text_field!r} (fields: {fields}); choose another text_field")
    text = record[text_field]
    if not isinstance(text, str):
        kind = type(text).__name__
        raise InputError(f"{where} field {text_field!r} is {kind}, not text; choose another text_field")
    given = {key: str(record[key]) for key in ("id", "source", "title") if record.get(key) is not None}
    document = Document(given.get("id", name), given.get("source", source), given.get("title", ""), text)
    try:
        "".join([document.id, document.source, document.title, text]).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where} holds a broken character ({error.reason}); repair its encoding") from None
    return where, document


def _read_text(path: Path, name: str, text_field: str) -> Iterator[Placed]:
    with _damage_named(path):
        text = path.read_text(encoding="utf-8")
    yield placed({text_field: text, "title": path.stem}, text_field, str(path), name, name)


def _read_lines(path: Path, name: str, text_field: str) -> Iterator[Placed]:
    opener: Callable[..., IO[str]] = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    with _damage_named(path), opener(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            where = f"{path} line {number}"
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{where} is not JSON ({error.msg}); give one object a line") from None
            yield placed(record, text_field, where, f"{name}:{number}", name)


def _read_parquet(path: Path, name: str, text_field: str) -> Iterator[Placed]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(f'{path} needs pyarrow to be read; run pip install "saejax[pandas]"') from None
    try:
        table = pyarrow.parquet.ParquetFile(path)
        columns = [c for c in (text_field, "id", "title", "source") if c in table.schema_arrow.names]
        rows = (
            row
            for batch in table.iter_batches(PARQUET_BATCH_ROWS, columns=columns or None)
            for row in batch.to_pylist()
        )
        for number, row in enumerate(rows):
            yield placed(row, text_field, f"{path} row {number}", f"{name}:{number}", name)
    except pyarrow.ArrowException as error:
        raise InputError(f"{path} is damaged ({error}); make it again") from None


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error.reason}); convert it") from None
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}); make it again") from None


_READERS: dict[str, Callable[[Path, str, str], Iterator[Placed]]] = {
    ".txt": _read_text,
    ".jsonl": _read_lines,
    ".jsonl.gz": _read_lines,
    ".jsonl.xz": _read_lines,
    ".parquet": _read_parquet,
}


def _reader(path: Path) -> Callable[[Path, str, str], Iterator[Placed]] | None:
    return next((reader for ending, reader in _READERS.items() if path.name.endswith(ending)), None)


def _fixed_part(pattern: Path) -> Path:
    """Return the folder in front of a glob's first wildcard."""
    parts = list(itertools.takewhile(lambda part: glob.escape(part) == part, pattern.parts[:-1]))
    return Path(*parts)
