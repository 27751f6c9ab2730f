"""The ledger of a store: which token every row is, so that the text behind any activation can be shown.

Its hash is the identity of the rows. It depends on neither the model, the hook, the dtype nor the sharding,
so two stores with equal hashes have the same token of the same document on every row.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import tensorstore
from jaxtyping import Int, Shaped

from saejax.activations.arrays import REMAKE, RowArray, RowWriter
from saejax.errors import InputError
from saejax.storage import Folder

COLUMNS = {
    "document": "int32",
    "position": "int32",
    "char_start": "int32",
    "char_end": "int32",
    "token_id": "int32",
    "special": "bool",
}
"""Document ordinal, place in the document (tokens), span in its characters, token id, stands for no text."""

DOCUMENTS = "documents"
HASHED_ROWS = 1 << 20

Columns: TypeAlias = Mapping[str, Shaped[np.ndarray, "rows"]]
DocumentRecord: TypeAlias = Mapping[str, str]
"""`id`, `source` and `title` of one document."""


class LedgerWriter:
    """Writes the columns of `COLUMNS`, one entry per row, and one record per document ordinal."""

    def __init__(self, folder: Folder, shard_rows: int, chunk_rows: int) -> None:
        """Say what the ledger is like; nothing is written.

        Args:
            folder: the ledger's.
            shard_rows: rows per file.
            chunk_rows: rows that are read at once.
        """
        self._folder = folder
        self._columns = {
            name: RowWriter(folder / name, dtype, None, shard_rows, chunk_rows, compress=True)
            for name, dtype in COLUMNS.items()
        }

    def write(self, shard: int, columns: Columns, documents: Sequence[DocumentRecord]) -> list[tensorstore.Future]:
        """Begin to write the rows of a shard, and write the records of the documents that begin in it.

        Args:
            shard: its number.
            columns: all columns of its rows.
            documents: the records, in the order of their ordinals.

        Returns:
            Futures that are done when the columns are on disk; the records already are.
        """
        records = ({key: record[key] for key in ("id", "source", "title")} for record in documents)
        lines = "".join(json.dumps(record) + "\n" for record in records)
        self._folder.write(_file_of(shard), lines.encode())
        return [column.write(shard, columns[name]) for name, column in self._columns.items()]

    def seal(self, rows: int) -> None:
        """Write the metadata of the columns, whose shards all stand.

        Args:
            rows: of all of them.
        """
        for column in self._columns.values():
            column.seal(rows)


class Ledger:
    """A finished ledger, for reading."""

    def __init__(self, folder: Folder, remedy: Callable[[int], str] = lambda _: REMAKE) -> None:
        """Open a ledger.

        Args:
            folder: the ledger's.
            remedy: says what to do about a damaged shard of a number.

        Raises:
            InputError: a column is absent or damaged.
        """
        self._folder, self._remedy = folder, remedy
        self._columns = {name: RowArray(folder / name, remedy) for name in COLUMNS}

    @property
    def rows(self) -> dict[str, int]:
        """Length of each column."""
        return {name: column.rows for name, column in self._columns.items()}

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

    def documents(self, shards: int) -> list[dict[str, str]]:
        """Return the documents' records by ordinal: `id`, `source`, `title`.

        Args:
            shards: number of shards.

        Raises:
            InputError: a file of records is absent or damaged.
        """
        found = []
        for shard in range(shards):
            lines = self._records(shard).decode().splitlines()
            try:
                found += map(json.loads, lines)
            except ValueError as error:
                raise self._damaged(shard, str(error)) from error
        return found

    def sha256(self, rows: int, shards: int) -> str:
        """Hash the records, and the first `rows` rows of every column read from disk in blocks."""
        digest = hashlib.sha256()
        for shard in range(shards):
            digest.update(self._records(shard))
        digests = [digest.hexdigest()]
        for array in self._columns.values():
            digest = hashlib.sha256()
            for start in range(0, rows, HASHED_ROWS):
                block = array.read([(start, min(start + HASHED_ROWS, rows))])
                digest.update(np.ascontiguousarray(block, block.dtype.newbyteorder("<")).tobytes())
            digests.append(digest.hexdigest())
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    def _records(self, shard: int) -> bytes:
        content = self._folder.read(_file_of(shard))
        if content is None:
            raise self._damaged(shard, "it does not exist")
        return content

    def _damaged(self, shard: int, reason: str) -> InputError:
        return InputError(f"{self._folder}/{_file_of(shard)} is damaged: {reason}; {self._remedy(shard)}")


def _file_of(shard: int) -> str:
    return f"{DOCUMENTS}/{shard:08d}.jsonl"
