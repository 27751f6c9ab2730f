"""RSA: how alike the two matrices order their rows' distances, by rank correlation.

With d(i, j) = 1 - corr(x_i, x_j) the correlation distance of rows i < j, and d'(i, j) that of y:

    rsa(x, y) = Spearman correlation of d and d' over the n (n - 1) / 2 pairs, ties at their mid-rank

Re-pairing y re-labels its distances and changes neither their ranks nor the ranks' mean and norm. So with a and b
the centred ranks scaled to unit norm over i < j, found once, score = sum_{i < j} a[i, j] b[p_i, p_j].

Range -1 to 1, larger is more similar; the mean over all re-pairings is exactly 0.
Invariant to shifting a row by one number and to scaling a row, on either side. NOT invariant to rotation of the
columns: the correlation of two rows is taken about each row's own mean over the columns, and a rotation moves that.

Distances are ranked as float64 computes them. Two equal rows are at the same distance from any third, a tie; but they
lie at a distance of 0 or a few 1e-16 from each other, in an order that rounding decides. With many equal rows on one
side this moves a score by about 1e-5, in the observed pairing and in every re-pairing alike.

Cost per permutation: n^2 / 2 gathered products by `saejax_kernels.pair_sums`, on the CPU (`score_batch`) or anywhere
(`score`). On two cores 0.06 and 0.8 ms at n = 600, against 43 ms for ranking anew for each pairing; 5.8 and 57 ms
at n = 4,000 against 4,900 (`scripts/bench_null.py`). Float32 scores stay within 2e-7 of float64 ones.

Source: Kriegeskorte, Mur, Bandettini, "Representational similarity analysis", 2008.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.spatial.distance import squareform

from saejax.errors import InputError
from saejax.similarity.measure import Bounds, Measure, exactly
from saejax.similarity.pair import Pair
from saejax.similarity.quadratic import quadratic
from saejax.types import AnyArray, Matrix, Permutation

ROUNDING = 1e-12  # more than float64 leaves between correlation distances that are equal in exact arithmetic


class RSAState(NamedTuple):
    """Nothing: the ranks are the whole state."""


def check(pair: Pair) -> None:
    """Refuse rows that have no correlation with others.

    Raises:
        InputError: a row is constant.
    """
    for name, side in pair.sides:
        constant = np.flatnonzero(np.ptp(side.values, axis=1) == 0)
        if len(constant):
            raise InputError(
                f"rsa: row {constant[0]} of {name} is constant ({side.values[constant[0], 0]:.6g} in every column; "
                f"{len(constant)} such row(s)), so it has no correlation with the others; leave that pair out"
            )


def ranks(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """Rank the distances of both sides, in float64.

    Args:
        pair: the matrices.

    Returns:
        Standardised ranks of x and y, `[n, n]`, of unit norm over i < j; 16 n^2 bytes.

    Raises:
        InputError: all distances of one side are equal, so that they have no order.
    """
    a, b = (squareform(_standardised_ranks(distances)) for distances in _distance_pair(pair))
    return a, b


def own(pair: Pair) -> RSAState:
    """Return nothing: the ranks are the whole state."""
    return RSAState()


def core(own: RSAState, values: tuple[AnyArray, ...], perm: Permutation) -> Bounds:
    """Return the rank correlation of the distances in x and in y[perm]."""
    return exactly(values[0])


def reference(x: AnyArray, y: AnyArray) -> float:
    """Return the RSA of two matrices, straight from the definition."""
    pair = Pair.of(x, y)
    check(pair)
    return float(np.corrcoef([_ranks(distances) for distances in _distance_pair(pair)])[0, 1])


def _distance_pair(pair: Pair) -> tuple[np.ndarray, ...]:
    distances = tuple(_distances(side.values) for _, side in pair.sides)
    for (name, _), values in zip(pair.sides, distances, strict=True):
        if np.ptp(values) <= ROUNDING:
            raise InputError(
                f"rsa: all {len(values)} correlation distances in {name} are equal ({values[0]:.3g}), so they have "
                "no order; give rows of more columns or leave rsa out of measures"
            )
    return distances


def _distances(matrix: Matrix) -> Float[np.ndarray, "pairs"]:
    """Return 1 - correlation of rows i < j, row by row."""
    rows = matrix - matrix.mean(axis=1, keepdims=True)
    rows /= np.sqrt(np.einsum("nd,nd->n", rows, rows))[:, None]
    distances = rows @ rows.T
    np.subtract(1, distances, out=distances)
    np.clip(distances, 0, 2, out=distances)
    return squareform(distances, checks=False)


def _ranks(values: Float[np.ndarray, "pairs"]) -> Float[np.ndarray, "pairs"]:
    """Return ranks from 1, equal values at the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def _standardised_ranks(values: Float[np.ndarray, "pairs"]) -> Float[np.ndarray, "pairs"]:
    ranks = _ranks(values)
    ranks -= ranks.mean()
    return ranks / np.linalg.norm(ranks)


RSA = Measure(
    name="rsa",
    larger_is_more_similar=True,
    invariances=("row shift", "row scale"),
    tolerance=1e-6,
    statistics=(quadratic("ranks of correlation distances", ranks),),
    own=own,
    core=core,
    reference=reference,
    check=check,
)
