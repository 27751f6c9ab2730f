"""Who goes with whom, given correlations in slabs: many-to-one, mutual best and one-to-one.

Many-to-one and mutual best need only the running best of every row and column, so the whole matrix is never
held; one-to-one is an assignment problem and needs all of it at once.
"""

import dataclasses
from collections.abc import Iterable
from typing import Literal

import numpy as np
import scipy.optimize
from jaxtyping import Float, Int

Method = Literal["many_to_one", "mutual_best", "one_to_one"]


@dataclasses.dataclass(frozen=True)
class Matches:
    """Matched rows and columns of a correlation matrix.

    Attributes:
        rows: the row of every match.
        columns: its column.
        correlation: their correlation.
    """

    rows: Int[np.ndarray, "n"]
    columns: Int[np.ndarray, "n"]
    correlation: Float[np.ndarray, "n"]


def match(slabs: Iterable[Float[np.ndarray, "_ columns"]], method: Method) -> Matches:
    """Match the rows of a correlation matrix with its columns.

    Args:
        slabs: the matrix, as consecutive groups of whole rows; exactly one slab for `one_to_one`.
        method: `many_to_one`: every column takes its best row, and a row may be taken often; `mutual_best`: a
            row and a column that are each other's best; `one_to_one`: the assignment of the most possible
            pairs with the largest sum of correlations.

    Returns:
        The matches, in the order of the columns. The best of equals is the one with the lowest index, except
        in `one_to_one`, where equal assignments are decided by scipy, always in the same way.
    """
    if method == "one_to_one":
        (matrix,) = slabs
        return _assignment(matrix)
    best = _BestOfEach()
    for slab in slabs:
        best.add(slab)
    columns = np.arange(len(best.row_of_column))
    if method == "mutual_best":
        columns = columns[best.column_of_row[best.row_of_column] == columns]
    return Matches(best.row_of_column[columns], columns, best.correlation[columns])


class _BestOfEach:
    """The best row of every column and the best column of every row, slab by slab."""

    def __init__(self) -> None:
        self.row_of_column = np.zeros(0, np.int64)
        self.column_of_row = np.zeros(0, np.int64)
        self.correlation = np.zeros(0)

    def add(self, slab: Float[np.ndarray, "slab columns"]) -> None:
        """Take in the next rows."""
        first = len(self.column_of_row)
        if not first:
            self.row_of_column = np.zeros(slab.shape[1], np.int64)
            self.correlation = np.full(slab.shape[1], -np.inf)
        rows = slab.argmax(axis=0)
        values = slab[rows, np.arange(slab.shape[1])]
        better = values > self.correlation
        self.correlation[better] = values[better]
        self.row_of_column[better] = first + rows[better]
        self.column_of_row = np.concatenate([self.column_of_row, slab.argmax(axis=1)])


def _assignment(matrix: Float[np.ndarray, "rows columns"]) -> Matches:
    rows, columns = scipy.optimize.linear_sum_assignment(matrix, maximize=True)
    order = np.argsort(columns)
    return Matches(rows[order], columns[order], matrix[rows, columns][order])
