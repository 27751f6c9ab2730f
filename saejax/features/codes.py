"""Sparse codes on disk: `values` and `indices`, both `[rows, k]`, with one row per store row.

A TopK code lists the same number of latents on every row, so two rectangular arrays keep it without row
pointers. Rows of special tokens hold no code: their indices are -1.
"""

from pathlib import Path

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

from saejax.activations.arrays import RowArray

NO_CODE = -1
SHARD_ROWS = 65536
"""Rows per file, held while they are encoded: 8 bytes per row and latent listed."""


class Codes:
    """The codes of every row of a store."""

    def __init__(self, values: RowArray, indices: RowArray) -> None:
        """Wrap two open arrays; `create` and `open` are the ways from a folder."""
        self._values, self._indices = values, indices

    @classmethod
    def create(cls, folder: Path, k: int) -> "Codes":
        """Make empty codes in a folder that holds none.

        Args:
            folder: where the arrays go.
            k: latents listed per row.
        """
        return cls(
            RowArray.create(folder / "values", "float32", k, SHARD_ROWS, compress=True),
            RowArray.create(folder / "indices", "int32", k, SHARD_ROWS, compress=True),
        )

    @classmethod
    def open(cls, folder: Path) -> "Codes":
        """Open codes for reading.

        Raises:
            InputError: they are absent or damaged.
        """
        return cls(RowArray.open(folder / "values"), RowArray.open(folder / "indices"))

    def write(self, start: int, values: Float[np.ndarray, "rows k"], indices: Int[np.ndarray, "rows k"]) -> None:
        """Write the next rows.

        Args:
            start: the first row, the beginning of a shard.
            values: the codes.
            indices: the latent of each code, or `NO_CODE` throughout a row.
        """
        for future in (self._values.write(start, values), self._indices.write(start, indices)):
            future.result()

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
