"""The ledger of a store: which token every row is, so that the text behind any activation can be shown.

Its hash is the identity of the rows. It depends on neither the model, the hook, the dtype nor the sharding,
so two stores with equal hashes have the same token of the same document on every row.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import tensorstore
from jaxtyping import Int, Shaped

from saejax.activations.arrays import RowArray
from saejax.artifacts import write_bytes
from saejax.errors import InputError

COLUMNS = {
    "document": "int32",
    "position": "int32",
    "char_start": "int32",
    "char_end": "int32",
    "token_id": "int32",
    "special": "bool",
}
"""Document ordinal, place in the document (tokens), span in its characters, token id, stands for no text."""

DOCUMENTS = "documents.jsonl"
HASHED_ROWS = 1 << 20

Columns: TypeAlias = Mapping[str, Shaped[np.ndarray, "rows"]]
DocumentRecord: TypeAlias = Mapping[str, str]
"""`id`, `source` and `title` of one document."""


class Ledger:
    """The columns of `COLUMNS`, one entry per row, and one record per document ordinal."""

    def __init__(self, folder: Path, columns: dict[str, RowArray]) -> None:
        """Wrap open columns; `create` and `open` are the ways from a folder."""
        self._folder, self._columns = folder, columns

    @classmethod
    def create(cls, folder: Path, shard_rows: int, documents: int) -> "Ledger":
        """Make an empty ledger, or open the one that is there to write on.

        Args:
            folder: the ledger's folder.
            shard_rows: rows per file.
            documents: documents of the rows that are final; records behind them are dropped.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / DOCUMENTS
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        write_bytes(path, b"".join(lines[:documents]))
        columns = {
            name: RowArray.create(folder / name, dtype, None, shard_rows, compress=True)
            for name, dtype in COLUMNS.items()
        }
        return cls(folder, columns)

    @classmethod
    def open(cls, folder: Path) -> "Ledger":
        """Open a ledger for reading.

        Raises:
            InputError: a column is absent or damaged.
        """
        return cls(folder, {name: RowArray.open(folder / name) for name in COLUMNS})

    def write(self, start: int, columns: Columns, documents: Sequence[DocumentRecord]) -> list[tensorstore.Future]:
        """Begin to write the last rows and append the records of the documents that begin in them.

        Args:
            start: the first row, the beginning of a shard.
            columns: all columns of those rows.
            documents: the records, in the order of their ordinals.

        Returns:
            Futures that are done when the columns are on disk; the records already are.
        """
        records = ({key: record[key] for key in ("id", "source", "title")} for record in documents)
        lines = [json.dumps(record) + "\n" for record in records]
        path = self._folder / DOCUMENTS
        with path.open("ab") as file:
            file.write("".join(lines).encode())
            file.flush()
            os.fsync(file.fileno())
        return [array.write(start, columns[name]) for name, array in self._columns.items()]

    def read(self, start: int, stop: int, names: Iterable[str] = tuple(COLUMNS)) -> dict[str, np.ndarray]:
        """Return columns of the rows from `start` to `stop`.

        Raises:
            InputError: a chunk is absent or its checksum is wrong.
        """
        return {name: self._columns[name].read([(start, stop)]) for name in names}

    def gather(self, rows: Int[np.ndarray, "rows"]) -> dict[str, np.ndarray]:
        """Return all columns of any rows.

        Raises:
            InputError: a chunk is absent or its checksum is wrong.
        """
        return {name: array.gather(rows) for name, array in self._columns.items()}

    def documents(self) -> list[dict[str, str]]:
        """Return the documents' records by ordinal: `id`, `source`, `title`.

        Raises:
            InputError: the file of records is absent or damaged.
        """
        path = self._folder / DOCUMENTS
        try:
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is damaged: {error}; delete its run and make it again") from error

    def sha256(self, rows: int) -> str:
        """Hash the records, and the first `rows` rows of every column read from disk in blocks."""
        digests = [hashlib.sha256((self._folder / DOCUMENTS).read_bytes()).hexdigest()]
        for array in self._columns.values():
            digest = hashlib.sha256()
            for start in range(0, rows, HASHED_ROWS):
                block = array.read([(start, min(start + HASHED_ROWS, rows))])
                digest.update(np.ascontiguousarray(block, block.dtype.newbyteorder("<")).tobytes())
            digests.append(digest.hexdigest())
        return hashlib.sha256("".join(digests).encode()).hexdigest()
