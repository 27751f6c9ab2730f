"""Arrays on disk that grow by rows: zarr3 with sharding and checksums, through TensorStore.

A shard is one file and is always written whole, so writing reads nothing back and equal rows give equal
bytes. Its inner chunks are what a reader fetches; each carries a CRC-32C. Chunks of zeros are written like
any other: a chunk that is absent is an error, never zeros.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore
from jaxtyping import Int, Shaped

from saejax.errors import InputError

CHUNK_ROWS = 1024
"""Rows of an inner chunk at most."""

_LITTLE_ENDIAN = {"name": "bytes", "configuration": {"endian": "little"}}
_ZSTD = {"name": "zstd", "configuration": {"level": 3}}
_CRC32C = {"name": "crc32c"}


def chunk_rows_of(shard_rows: int) -> int:
    """Return the rows of an inner chunk: the largest divisor of `shard_rows` up to `CHUNK_ROWS`."""
    return max(rows for rows in range(1, min(CHUNK_ROWS, shard_rows) + 1) if shard_rows % rows == 0)


class RowArray:
    """One array of shape `[rows]` or `[rows, width]`."""

    def __init__(self, array: tensorstore.TensorStore, path: Path) -> None:
        """Wrap an open array; `create` and `open` are the ways from a folder."""
        self._array, self._path = array, path

    @classmethod
    def create(cls, path: Path, dtype: str, width: int | None, shard_rows: int, *, compress: bool) -> "RowArray":
        """Make an empty array, or open the one that is there to write on.

        Args:
            path: the array's folder.
            dtype: `bfloat16`, `float32`, `int32` or `bool`.
            width: length of the second axis; None for an array of one axis.
            shard_rows: rows per file.
            compress: whether chunks are compressed by zstd (activations gain nothing from it).
        """
        if (path / "zarr.json").exists():
            return cls.open(path)
        chunk = [_LITTLE_ENDIAN, *([_ZSTD] if compress else []), _CRC32C]
        tail = [] if width is None else [width]
        sharding = {
            "chunk_shape": [chunk_rows_of(shard_rows), *tail],
            "codecs": chunk,
            "index_codecs": [_LITTLE_ENDIAN, _CRC32C],
        }
        metadata = {
            "shape": [0, *tail],
            "data_type": dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard_rows, *tail]}},
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        }
        return cls(tensorstore.open({**_spec(path), "metadata": metadata, "create": True}).result(), path)

    @classmethod
    def open(cls, path: Path) -> "RowArray":
        """Open an array.

        Raises:
            InputError: it is absent, or its metadata cannot be read.
        """
        with _damage_named(path):
            return cls(tensorstore.open({**_spec(path), "open": True}).result(), path)

    @property
    def dtype(self) -> np.dtype:
        """Type of the entries as they are stored."""
        return self._array.dtype.numpy_dtype

    def write(self, start: int, data: Shaped[np.ndarray, "rows *width"]) -> tensorstore.Future:
        """Begin to write the last rows of the array, which end it where they end.

        Args:
            start: the first row, the beginning of a shard.
            data: the rows; not to be changed before the write is over.

        Returns:
            A future that is done when the data are on disk.
        """
        end = [start + len(data), *self._array.shape[1:]]
        self._array = self._array.resize(exclusive_max=end).result()
        return self._array[start:].write(data).commit

    def read(self, spans: Sequence[tuple[int, int]]) -> Shaped[np.ndarray, "rows *width"]:
        """Return the rows of some spans `(start, stop)`, one after the other, in the stored type.

        Raises:
            InputError: a chunk is absent or its checksum is wrong.
        """
        parts = [self._array[start:stop].translate_to[0] for start, stop in spans]
        whole = parts[0] if len(parts) == 1 else tensorstore.concat(parts, axis=0)
        with _damage_named(self._path):
            return np.asarray(whole.read().result())

    def gather(self, rows: Int[np.ndarray, "rows"]) -> Shaped[np.ndarray, "rows *width"]:
        """Return any rows, in the stored type; each costs the reading of its chunk.

        Raises:
            InputError: a chunk is absent or its checksum is wrong.
        """
        with _damage_named(self._path):
            return np.asarray(self._array[rows].read().result())


def _spec(path: Path) -> dict[str, Any]:
    return {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{path.resolve()}/"},
        "store_data_equal_to_fill_value": True,
        "fill_missing_data_reads": False,
    }


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turn TensorStore's ValueError about lost or altered data into one line for the user."""
    try:
        yield
    except ValueError as error:
        reason = str(error).partition(" [")[0]
        raise InputError(f"{path} is damaged: {reason}; delete its run and make it again") from error
