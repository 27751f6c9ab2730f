"""Distance correlation: how far the distances among the rows of one matrix go with those of the other.

With D[i, j] = |x_i - x_j| the Euclidean distances of the rows of x `[n, dx]`, A its double centring (row means and
column means taken away, their mean added), and B the same of y `[n, dy]`, all sums over i and j including i = j:

    dCov^2(x, y) = sum A[i, j] B[i, j] / n^2
    core         = dCov^2(x, y) / sqrt(dCov^2(x, x) dCov^2(y, y)),     distance_correlation(x, y) = sqrt(core)

Re-pairing y re-labels B; so A and B are found once, and

    sum A[i, j] B[p_i, p_j] = 2 sum_{i < j} A[i, j] B[p_i, p_j] + sum_i A[i, i] B[p_i, p_i].

Range 0 to 1, larger is more similar; 1 where the matrices are equal but for rotation, scale and shift. This is the
biased statistic of the definition: random pairings do not score 0, the less so the more columns there are, so a raw
score means nothing without its null.
Invariant to rotation of the columns, to scaling by one number and to shifts, on either side.

Up to n = 4,096 A and B are kept in float64 beside the float32 copies that batches are scored in, 24 n^2 bytes in all.
Above that only entries rounded to float32 are kept, 8 n^2 bytes, and those are the statistic: norms are of the rounded
entries, so the core is that of two matrices within an angle of 6e-8 of A and B each. It moves by less than 1.2e-7
whatever the pairing, and, roundings being independent, by about 1e-7 / n; the score by half of that over the score.
While matrices are made, blocks of distances take 0.1 GiB besides the rows, and half a matrix its entries.

Cost per permutation: n^2 / 2 gathered products by `saejax_kernels.pair_sums`, as of RSA. Float32 cores stay within 1e-7
of float64 ones. Tolerance: 1e-6.

Source: Szekely, Rizzo, Bakirov, "Measuring and testing dependence by correlation of distances", Annals of Statistics
35, 2007.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from saejax_kernels.summation import pairwise_sum
from scipy.spatial.distance import cdist, squareform

from saejax.similarity.distances import Rows
from saejax.similarity.measure import Bounds, Measure, exactly
from saejax.similarity.pair import Pair, Side
from saejax.similarity.quadratic import once_per_side, quadratic
from saejax.types import AnyArray, Permutation

LARGEST_DOUBLE = 4096  # rows up to which matrices are kept in float64


class Centred(NamedTuple):
    """Double-centred distances of one side.

    Attributes:
        matrix: entries off the diagonal, symmetric with a zero diagonal.
        diagonal: the diagonal.
        norm: of both together.
    """

    matrix: Float[np.ndarray, "n n"]
    diagonal: Float[np.ndarray, "n"]
    norm: float


class DistanceCorrelationState(NamedTuple):
    """What no re-pairing changes, besides the distances off the diagonal.

    Attributes:
        x: diagonal of A.
        y: diagonal of B.
        slope: 1 over the product of the norms of A and B.
    """

    x: Float[AnyArray, "n"]
    y: Float[AnyArray, "n"]
    slope: Float[AnyArray, ""]


@once_per_side
def _centred(side: Side) -> Centred:
    """Double-centre the distances, in blocks that are computed twice: for their means, and less those."""
    rows, n = Rows.of(side.values, "euclidean"), len(side.values)
    sums = np.zeros(n)
    for start, block in rows.blocks():
        upper = np.triu(block, 1)
        sums[start : start + len(block)] += upper.sum(axis=1)
        sums[start:] += upper.sum(axis=0)
    means = sums / n
    excess = means - means.mean() / 2
    entries, place = np.empty(n * (n - 1) // 2, np.float64 if n <= LARGEST_DOUBLE else np.float32), 0
    for start, block in rows.blocks():
        block -= excess[start : start + len(block), None]
        block -= excess[start:]
        for i, row in enumerate(block):
            entries[place : place + len(row) - i - 1] = row[i + 1 :]
            place += len(row) - i - 1
    diagonal = -2 * excess
    squares = sum(float(np.sum(part.astype(np.float64) ** 2)) for part in np.array_split(entries, n))
    return Centred(squareform(entries), diagonal, math.sqrt(2 * squares + diagonal @ diagonal))


def _centring_bytes(side: Side) -> int:
    n = len(side.values)
    return Rows.making_bytes(side.values) + (4 if n <= LARGEST_DOUBLE else 2) * n**2


def _own(pair: Pair) -> DistanceCorrelationState:
    a, b = _centred(pair.x), _centred(pair.y)
    return DistanceCorrelationState(a.diagonal, b.diagonal, np.asarray(1 / a.norm / b.norm))


def _core(own: DistanceCorrelationState, values: tuple[AnyArray, ...], perm: Permutation) -> Bounds:
    """Return the squared distance correlation of x and y[perm]."""
    diagonal = pairwise_sum(jnp.asarray(own.x) * jnp.asarray(own.y)[perm])
    return exactly((2 * values[0] + diagonal) * own.slope)


def _score_of(own: DistanceCorrelationState, core: AnyArray) -> AnyArray:
    """Return the root; a core that is 0 may be just below it."""
    xp = core.__array_namespace__()
    return xp.sqrt(xp.clip(core, 0, 1))


def _reference(x: AnyArray, y: AnyArray) -> float:
    """Return the distance correlation of two matrices, straight from the definition."""
    centred = []
    for _, side in Pair.of(x, y).sides:
        distances = cdist(side.values, side.values)
        columns = distances.mean(axis=0, keepdims=True)
        centred.append(distances - columns - columns.T + distances.mean())
    a, b = centred
    return math.sqrt(max(np.mean(a * b), 0) / math.sqrt(np.mean(a * a) * np.mean(b * b)))


DISTANCE_CORRELATION = Measure(
    name="distance_correlation",
    larger_is_more_similar=True,
    invariances=("rotation", "scale", "shift", "column permutation"),
    tolerance=1e-6,
    statistics=(
        quadratic(
            "double-centred distances",
            lambda side: _centred(side).matrix,
            lambda n: 12 if n <= LARGEST_DOUBLE else 4,
            _centring_bytes,
        ),  # fmt: skip
    ),
    own=_own,
    core=_core,
    reference=_reference,
    score_of=_score_of,
)
