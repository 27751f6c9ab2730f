"""Two matrices with paired rows, and what many measures need of each, found once.

What makes two matrices comparable at all is decided here; what a single measure asks beyond that, it asks itself.
"""

import functools
import numbers
from typing import Any

import numpy as np
from jaxtyping import Float

from saejax.errors import InputError
from saejax.types import AnyArray

FEWEST_PAIRS = 4
SMALLEST = 1e-70  # of a matrix's largest entry; fourth powers of it and of its inverse stay within float64
KINDS = "biufV"  # bool, int, unsigned, float; those of ml_dtypes are V to numpy
EPSILON = float(np.finfo(np.float64).eps)


class Side:
    """One matrix in float64, with its singular value decomposition about the column means.

    A direction counts where its singular value is above max(n, d) * 2.2e-16 of the largest, the rule of numpy's
    `matrix_rank`, or of the largest entry before centring where that is larger: what lies below is rounding.

    Attributes:
        values: the matrix, `[n, d]`.
    """

    def __init__(self, values: Float[np.ndarray, "n d"]) -> None:
        """Wrap a matrix that `Pair.of` has checked."""
        self.values = values

    @property
    def centred(self) -> Float[np.ndarray, "n d"]:
        """The matrix less its column means; made anew each time, because it is as large as the matrix."""
        return self.values - self.values.mean(axis=0)

    @functools.cached_property
    def norm(self) -> float:
        """Frobenius norm about the column means."""
        return float(np.linalg.norm(self.singular))

    @functools.cached_property
    def _decomposition(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        left, singular, right = np.linalg.svd(self.centred, full_matrices=False)
        # Centring takes one direction from the n rows; its singular value is rounding, however small the others are.
        most = min(len(left) - 1, len(singular))
        largest = max(singular[0], np.abs(self.values).max())
        rank = int(np.sum(singular[:most] > max(self.values.shape) * EPSILON * largest))
        return left[:, :rank], singular[:rank], right[:rank]

    @property
    def decomposition_bytes(self) -> int:
        """Bytes that are kept of the decomposition."""
        n, d = self.values.shape
        return 8 * min(n, d) * (n + d + 1)

    @property
    def decomposing_bytes(self) -> int:
        """Bytes that it takes besides to find it: the centred matrix, LAPACK's copies and its work space."""
        n, d = self.values.shape
        return 16 * n * d + self.decomposition_bytes + 40 * min(n, d) ** 2

    @property
    def left(self) -> Float[np.ndarray, "n r"]:
        """Left singular vectors of the centred matrix, largest singular value first."""
        return self._decomposition[0]

    @property
    def singular(self) -> Float[np.ndarray, "r"]:
        """Singular values of the centred matrix, falling."""
        return self._decomposition[1]

    @property
    def right(self) -> Float[np.ndarray, "r d"]:
        """Right singular vectors, as rows."""
        return self._decomposition[2]

    @property
    def rank(self) -> int:
        """Number of directions in which the rows differ."""
        return len(self.singular)


class Pair:
    """Two matrices with paired rows.

    Attributes:
        x: one side.
        y: the other, with as many rows.
    """

    def __init__(self, x: Side, y: Side) -> None:
        """Wrap two sides; `of` is the way from arrays."""
        self.x, self.y = x, y

    @classmethod
    def of(cls, x: AnyArray | Any, y: AnyArray | Any) -> "Pair":
        """Read two matrices with paired rows, and refuse what no measure can compare.

        Args:
            x: `[n, dx]`, any real dtype; whatever numpy reads as an array.
            y: `[n, dy]`.

        Raises:
            InputError: a matrix is not two-dimensional, real and finite, is constant, or far too large or small; row
                counts differ, or there are fewer than four rows.
        """
        left, right = _as_matrix(x, "x"), _as_matrix(y, "y")
        if len(left) != len(right):
            raise InputError(
                f"x has {len(left)} rows and y {len(right)}; row i of x is paired with row i of y, give as many of each"
            )
        if len(left) < FEWEST_PAIRS:
            raise InputError(f"x and y have {len(left)} rows; give at least {FEWEST_PAIRS} pairs")
        for name, matrix in (("x", left), ("y", right)):
            if not np.ptp(matrix, axis=0).any():
                raise InputError(f"{name} is constant (all {len(matrix)} rows are equal); give rows that differ")
            largest = np.abs(matrix).max()
            if not SMALLEST <= largest <= 1 / SMALLEST:
                raise InputError(
                    f"{name} has a largest entry of {largest:.3g}, whose powers float64 cannot hold; scale it"
                )
        return cls(Side(left), Side(right))

    @property
    def n(self) -> int:
        """Number of pairs."""
        return len(self.x.values)

    @property
    def saturated(self) -> bool:
        """Whether the columns of one side span all that n centred rows can: every direction of the other lies in it."""
        return max(self.x.rank, self.y.rank) >= self.n - 1

    @property
    def sides(self) -> tuple[tuple[str, Side], tuple[str, Side]]:
        """Both sides with the names that errors call them."""
        return ("x", self.x), ("y", self.y)


def _as_matrix(values: Any, name: str) -> Float[np.ndarray, "n d"]:
    try:
        matrix = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{name} cannot be read as an array ({error}); give real numbers on the CPU without a gradient, as "
            "`tensor.detach().cpu().float()` does"
        ) from None
    if matrix.ndim == 0 and matrix.dtype == object:
        raise InputError(f"{name} is a {type(values).__name__}, which is no array of numpy; convert it to a dense one")
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise InputError(f"{name} has shape {matrix.shape}; give a matrix, one row per feature")
    if np.ma.is_masked(values):
        raise InputError(f"{name} masks {np.ma.count_masked(values)} value(s); leave those rows out of x and y")
    real = _as_real(matrix, name)
    bad = np.argwhere(~np.isfinite(real))
    if len(bad):
        row, column = bad[0]
        overflow = matrix.dtype == np.float16 and np.isinf(real).any()
        remedy = "float16 ends at 65,504: give float32" if overflow else "leave those rows out of x and y"
        raise InputError(
            f"{name} holds {len(bad)} value(s) that are not finite, the first {real[row, column]} at row {row}, "
            f"column {column} (counted from 0); {remedy}"
        )
    return real


def _as_real(matrix: np.ndarray, name: str) -> Float[np.ndarray, "n d"]:
    """Convert numbers, bfloat16 and the like among them, but not what may be read as numbers: words, dates."""
    if matrix.dtype == object:
        strangers = [place for place, value in np.ndenumerate(matrix) if not isinstance(value, numbers.Real | np.bool_)]
        if strangers:
            row, column = strangers[0]
            raise InputError(
                f"{name} holds {len(strangers)} value(s) that are no numbers, the first {matrix[row, column]!r} at row "
                f"{row}, column {column} (counted from 0); give real numbers"
            )
    elif matrix.dtype.kind not in KINDS or matrix.dtype.names:
        raise InputError(f"{name} has dtype {matrix.dtype}; give real numbers")
    try:
        return matrix.astype(np.float64)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{name} has dtype {matrix.dtype}, of which float64 is not made ({error})") from None
