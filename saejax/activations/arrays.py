"""Arrays on disk that grow by rows: zarr3 with sharding and checksums, through TensorStore.

A shard is one file and is always written whole, so writing reads nothing back and equal rows give equal
bytes. Its inner chunks are what a reader fetches; each carries a CRC-32C. Chunks of zeros are written like
any other: a chunk that is absent is an error, never zeros. Shards are written in any order, by any number of
processes, and the array's metadata when all of them stand.
"""

import collections
import contextlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorstore
from jaxtyping import Int, Shaped

from saejax.errors import InputError
from saejax.storage import CONTEXT, Folder

CHUNK_ROWS = 1024
"""Rows of an inner chunk at most, unless told otherwise."""
REMAKE = "delete its run and make it again"
PIECE_BYTES = 1 << 20
"""Bytes that are asked for together, in whole chunks, at least one."""
BYTES_ON_THE_WAY = 16 * PIECE_BYTES
"""Bytes that are on their way at once, but two pieces at least: a bucket's delay costs little, and memory that is free
again is used again."""

_DAMAGE = ("DATA_LOSS", "NOT_FOUND", "FAILED_PRECONDITION", "OUT_OF_RANGE")
"""What TensorStore calls a wrong checksum or length, a file that is absent, and one that it cannot make sense of."""
_SHARD = re.compile(r'/c/(\d+)(?:/0)?(?="|:| is missing)')
"""A shard's name as errors tell it, at the end of its path, which may have parts of the same look."""
_LITTLE_ENDIAN = {"name": "bytes", "configuration": {"endian": "little"}}
_ZSTD = {"name": "zstd", "configuration": {"level": 3}}
_CRC32C = {"name": "crc32c"}


def chunk_rows_of(shard_rows: int) -> int:
    """Return the rows of an inner chunk: the largest divisor of `shard_rows` up to `CHUNK_ROWS`."""
    return max(rows for rows in range(1, min(CHUNK_ROWS, shard_rows) + 1) if shard_rows % rows == 0)


class RowWriter:
    """Writes one array of shape `[rows]` or `[rows, width]`."""

    def __init__(
        self, folder: Folder, dtype: str, width: int | None, shard_rows: int, chunk_rows: int, *, compress: bool
    ) -> None:
        """Say what the array is like; nothing is written.

        Args:
            folder: the array's.
            dtype: `bfloat16`, `float32`, `int32` or `bool`.
            width: length of the second axis; None for an array of one axis.
            shard_rows: rows per file.
            chunk_rows: rows that are read at once, a divisor of `shard_rows`.
            compress: whether chunks are compressed by zstd (activations gain nothing from it).
        """
        self._folder, self._tail, self._shard_rows = folder, [] if width is None else [width], shard_rows
        self.dtype = tensorstore.dtype(dtype).numpy_dtype
        sharding = {
            "chunk_shape": [chunk_rows, *self._tail],
            "codecs": [_LITTLE_ENDIAN, *([_ZSTD] if compress else []), _CRC32C],
            "index_codecs": [_LITTLE_ENDIAN, _CRC32C],
        }
        self._metadata = {
            "data_type": dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard_rows, *self._tail]}},
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        }

    def write(self, shard: int, data: Shaped[np.ndarray, "rows *width"]) -> tensorstore.Future:
        """Begin to write a shard.

        Args:
            shard: its number, from 0.
            data: its rows, fewer than those of a shard in the last one only; not to be changed before the write is
                over.

        Returns:
            A future that is done when the data are on disk.
        """
        start = shard * self._shard_rows
        # As if the array ended here: then the shard is known to be whole, and nothing is read.
        array = self._open(start + len(data), assume_metadata=True, open=True)
        return array[start:].write(data).commit

    def seal(self, rows: int) -> None:
        """Write the metadata of the array, whose shards all stand.

        Args:
            rows: of all of them.
        """
        self._open(rows, create=True, open=True)

    def _open(self, rows: int, **how: bool) -> tensorstore.TensorStore:
        metadata = {**self._metadata, "shape": [rows, *self._tail]}
        return tensorstore.open({**_spec(self._folder), "metadata": metadata, **how}, context=CONTEXT).result()


class RowArray:
    """One finished array of shape `[rows]` or `[rows, width]`, for reading."""

    def __init__(self, folder: Folder, remedy: Callable[[int], str] = lambda _: REMAKE) -> None:
        """Open an array.

        Args:
            folder: the array's.
            remedy: says what to do about a damaged shard of a number.

        Raises:
            InputError: it is absent, or its metadata cannot be read.
        """
        self._folder, self._remedy = folder, remedy
        with self._damage_named():
            self._array = tensorstore.open({**_spec(folder), "open": True}, context=CONTEXT).result()
        chunk: Any = self._array.chunk_layout.read_chunk.shape
        chunk_bytes = math.prod(chunk) * self._array.dtype.numpy_dtype.itemsize
        chunks = max(PIECE_BYTES // chunk_bytes, 1)
        self._piece_rows = chunks * chunk[0]
        self._pieces_on_the_way = max(BYTES_ON_THE_WAY // (chunks * chunk_bytes), 2)

    @property
    def rows(self) -> int:
        """Length of the first axis."""
        return self._array.shape[0]

    def read(
        self, spans: Sequence[tuple[int, int]], place: Shaped[np.ndarray, "most_rows *width"] | None = None
    ) -> Shaped[np.ndarray, "rows *width"]:
        """Return the rows of some spans `(start, stop)`, one after the other, in the stored type.

        They come piece by piece into memory of NumPy's: one read of all takes twice as long, as the system spends it on
        fresh pages. Memory beside the rows: `BYTES_ON_THE_WAY`, or two chunks where they are larger.

        Args:
            spans: which rows.
            place: the memory, of as many rows or more and in the stored type; new memory when not given.

        Returns:
            The rows, which are the first of `place`.

        Raises:
            InputError: a chunk is absent or its checksum is wrong.
        """
        rows = sum(stop - start for start, stop in spans)
        found = self.empty(rows) if place is None else place[:rows]
        reads, done = collections.deque(), 0
        with self._damage_named():
            for piece in self._pieces(spans):
                here = found[done : done + piece.shape[0]]
                reads.append(tensorstore.array(here).write(piece))
                done += len(here)
                if len(reads) == self._pieces_on_the_way:
                    reads.popleft().result()
            for read in reads:
                read.result()
        return found

    def empty(self, rows: int) -> Shaped[np.ndarray, "rows *width"]:
        """Return memory for so many rows, in the stored type; what it holds is of no meaning."""
        return np.empty((rows, *self._array.shape[1:]), self._array.dtype.numpy_dtype)

    def gather(self, rows: Int[np.ndarray, "rows"]) -> Shaped[np.ndarray, "rows *width"]:
        """Return any rows, in the stored type; each costs the reading of its chunk.

        Raises:
            InputError: a chunk is absent or its checksum is wrong.
        """
        with self._damage_named():
            return np.asarray(self._array[rows].read().result())

    def _pieces(self, spans: Sequence[tuple[int, int]]) -> Iterator[tensorstore.TensorStore]:
        """Cut the rows of spans between chunks where they are long, and join them where they are short."""
        parts, held = [], 0
        for start, stop in spans:
            while start < stop:
                end = min(start - start % self._piece_rows + self._piece_rows, stop)
                parts.append(self._array[start:end].translate_to[0])
                held, start = held + end - start, end
                if held >= self._piece_rows:
                    yield _joined(parts)
                    parts, held = [], 0
        if parts:
            yield _joined(parts)

    @contextlib.contextmanager
    def _damage_named(self) -> Iterator[None]:
        """Turn TensorStore's ValueError into one line for the user, who deletes what is called damaged."""
        with self._folder.explained("", "read"):
            try:
                yield
            except ValueError as error:
                told = str(error)
                if not told.startswith(_DAMAGE):
                    raise
                shards = _SHARD.findall(told)
                remedy = self._remedy(int(shards[-1])) if shards else REMAKE
                raise InputError(f"{self._folder} is damaged: {told.partition(' [')[0]}; {remedy}") from error


def _joined(parts: Sequence[tensorstore.TensorStore]) -> tensorstore.TensorStore:
    return parts[0] if len(parts) == 1 else tensorstore.concat(parts, axis=0)


def _spec(folder: Folder) -> dict[str, Any]:
    return {
        "driver": "zarr3",
        "kvstore": folder.spec,
        "store_data_equal_to_fill_value": True,
        "fill_missing_data_reads": False,
    }
