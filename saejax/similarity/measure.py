"""What a similarity measure is, and what two matrices must be for any measure to speak about them.

A measure compares two bare matrices whose rows are paired, and splits its work in two: `prepare` does once whatever
no re-pairing of the rows changes, `score` does the rest for one re-pairing. It knows nothing of permutation tests.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from saejax.errors import InputError
from saejax.types import AnyArray

FEWEST_PAIRS = 3


@dataclasses.dataclass(frozen=True)
class Measure:
    """One similarity of two matrices x `[n, dx]` and y `[n, dy]` with paired rows.

    Attributes:
        name: what it is called on the command line and in results.
        larger_is_more_similar: its direction.
        invariances: what may be done to either matrix without changing the score.
        tolerance: bound on how far a float32 score may be from the float64 one, on any device and by either
            implementation. A draw this close to the observed score is scored again in float64, so that counts of
            exceedances do not depend on how scores were computed.
        check: `(x, y)`; quick, raises `InputError` for matrices that the measure cannot compare.
        prepare: `(x, y) -> state`, a tree of float64 and integer arrays.
        score: `(state, perm[n]) -> scalar`, the score of x against y[perm], in the dtype of the state's arrays;
            pure JAX.
        score_batch: `(state, perms[perm, n]) -> [perm]`, the same for a batch, from the host and on the CPU.
        reference: `(x, y) -> float`, the definition, in float64 numpy.
        scratch: `(state) -> int`, bytes that each permutation of a batch takes while it is scored.
    """

    name: str
    larger_is_more_similar: bool
    invariances: tuple[str, ...]
    tolerance: float
    check: Callable[[AnyArray, AnyArray], object]
    prepare: Callable[[AnyArray, AnyArray], Any]
    score: Callable[[Any, AnyArray], AnyArray]
    score_batch: Callable[[Any, AnyArray], AnyArray]
    reference: Callable[[AnyArray, AnyArray], float]
    scratch: Callable[[Any], int]


def as_pair(x: AnyArray, y: AnyArray) -> tuple[np.ndarray, np.ndarray]:
    """Read two matrices with paired rows, and refuse what no measure can compare.

    Args:
        x: `[n, dx]`, any real dtype.
        y: `[n, dy]`.

    Returns:
        Both as float64.

    Raises:
        InputError: a matrix is not two-dimensional, real and finite, or is constant; row counts differ, or there
            are fewer than three rows.
    """
    x, y = _as_matrix(x, "x"), _as_matrix(y, "y")
    if len(x) != len(y):
        raise InputError(
            f"x has {len(x)} rows and y {len(y)}; row i of x is paired with row i of y, give as many of each"
        )
    if len(x) < FEWEST_PAIRS:
        raise InputError(f"x and y have {len(x)} rows; give at least {FEWEST_PAIRS} pairs")
    for name, matrix in (("x", x), ("y", y)):
        _refuse_non_finite(matrix, name)
        if not np.ptp(matrix, axis=0).any():
            raise InputError(f"{name} is constant (all {len(matrix)} rows are equal); give rows that differ")
    return x, y


def _as_matrix(values: AnyArray, name: str) -> np.ndarray:
    matrix = np.asarray(values)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise InputError(f"{name} has shape {matrix.shape}; give a matrix, one row per feature")
    if np.iscomplexobj(matrix):
        raise InputError(f"{name} has dtype {matrix.dtype}; give real numbers")
    try:
        return matrix.astype(np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name} has dtype {matrix.dtype}; give real numbers") from None


def _refuse_non_finite(matrix: np.ndarray, name: str) -> None:
    bad = np.argwhere(~np.isfinite(matrix))
    if len(bad):
        row, column = bad[0]
        raise InputError(
            f"{name} holds {len(bad)} value(s) that are not finite, the first {matrix[row, column]} at row {row}, "
            f"column {column} (counted from 0); leave those rows out of x and y"
        )
