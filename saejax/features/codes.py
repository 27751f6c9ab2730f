"""Sparse codes on disk: `values` and `indices`, both `[rows, k]`, with one row per store row.

A TopK code lists the same number of latents on every row, so two rectangular arrays keep it without row
pointers. Rows of special tokens hold no code: their indices are -1.
"""

from pathlib import Path

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

from saejax.activations.arrays import RowArray, RowWriter, chunk_rows_of
from saejax.storage import Folder

NO_CODE = -1
SHARD_ROWS = 65536
"""Rows per file, held while they are encoded: 8 bytes per row and latent listed."""


class CodesWriter:
    """Writes the codes of every row of a store."""

    def __init__(self, folder: Path, k: int) -> None:
        """Say where they go; nothing is written.

        Args:
            folder: where the arrays go.
            k: latents listed per row.
        """
        self._arrays = [
            RowWriter(Folder(folder / name), dtype, k, SHARD_ROWS, chunk_rows_of(SHARD_ROWS), compress=True)
            for name, dtype in (("values", "float32"), ("indices", "int32"))
        ]

    def write(self, shard: int, values: Float[np.ndarray, "rows k"], indices: Int[np.ndarray, "rows k"]) -> None:
        """Write a shard.

        Args:
            shard: its number.
            values: the codes.
            indices: the latent of each code, or `NO_CODE` throughout a row.
        """
        for future in [array.write(shard, data) for array, data in zip(self._arrays, (values, indices), strict=True)]:
            future.result()

    def seal(self, rows: int) -> None:
        """End the arrays, whose shards all stand, at so many rows."""
        for array in self._arrays:
            array.seal(rows)


class Codes:
    """The codes of every row of a store, for reading."""

    def __init__(self, folder: Path) -> None:
        """Open codes.

        Args:
            folder: where the arrays are.

        Raises:
            InputError: they are absent or damaged.
        """
        self._values, self._indices = RowArray(Folder(folder / "values")), RowArray(Folder(folder / "indices"))

    def read(self, start: int, stop: int) -> tuple[Float[np.ndarray, "rows k"], Int[np.ndarray, "rows k"]]:
        """Return values and indices of the rows from `start` to `stop`."""
        return self._values.read([(start, stop)]), self._indices.read([(start, stop)])

    def gather(self, rows: Int[np.ndarray, "rows"]) -> tuple[Float[np.ndarray, "rows k"], Int[np.ndarray, "rows k"]]:
        """Return values and indices of any rows."""
        return self._values.gather(rows), self._indices.gather(rows)


def csr_of(values: Float[np.ndarray, "rows k"], indices: Int[np.ndarray, "rows k"], d: int) -> scipy.sparse.csr_array:
    """Turn codes into a sparse matrix `[rows, d]` without stored zeros.

    Args:
        values: the codes; zero where a latent is listed but does not fire.
        indices: the latent of each code.
        d: number of latents.
    """
    fires = values != 0
    row_ends = np.concatenate([[0], np.cumsum(fires.sum(axis=1))])
    return scipy.sparse.csr_array((values[fires], indices[fires], row_ends), shape=(len(values), d))
