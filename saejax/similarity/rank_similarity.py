"""Rank similarity: do the two matrices share nearest neighbours, and at the same ranks?

With r(j) and r'(j) the ranks, from 1, of row j among the k rows of smallest cosine distance to row i of x `[n, dx]` and
of y `[n, dy]`, m the number of rows that both lists hold, and H_m = 1 + 1/2 + ... + 1/m:

    rank_similarity(x, y) = mean over i of (1 / H_m) sum over shared j of 2 / ((1 + |r(j) - r'(j)|) (r(j) + r'(j)))

with 0 for a row that shares none. A row that shares the same neighbours at ranks 1 to m scores 1. k = 10 unless
given: `rank_similarity(k=...)`.

Range 0 to 1, larger is more similar. As H_m grows with m, a row that shares one more neighbour at a poor rank can
score less than before; that is the published definition.
Invariant to rotation of the columns, to scaling by one number and to scaling each row by a positive number of its
own, on either side; not to shifts, because cosines are taken about the origin. Rows of zeros, rows of one direction
and ties among neighbours are refused (`saejax.similarity.neighbours`).

Cost per permutation: 2 n k steps for the shared ranks of `saejax.similarity.neighbours`, and 8 n k flop for their sum.
On two cores 0.06 ms at n = 4,000 and k = 10. Float32 cores stay within 2e-7 of float64 ones. Tolerance: 1e-6.

Source: Wang, Rao, Guo, Wang, Liu, Guan, "Towards understanding the instability of network embedding", 2022.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from saejax_kernels.summation import pairwise_sum
from scipy.spatial.distance import cdist

from saejax.similarity.measure import Bounds, Measure, exactly
from saejax.similarity.neighbours import NEIGHBOURS, matches, measure_name, refuse_ambiguous
from saejax.similarity.pair import Pair
from saejax.types import AnyArray, Permutation


class RankState(NamedTuple):
    """What no re-pairing changes.

    Attributes:
        weights: by number of shared neighbours, from 1, the weight of a row: 1 / H_m / n.
    """

    weights: Float[AnyArray, "k"]


@functools.cache
def rank_similarity(*, k: int = NEIGHBOURS) -> Measure:
    """Return the rank similarity of k nearest neighbours.

    Args:
        k: neighbours of each row.

    Raises:
        InputError: k lies outside 1 to 255.
    """
    name = measure_name("rank_similarity", k)
    return Measure(
        name=name, larger_is_more_similar=True, invariances=("rotation", "scale", "column permutation", "row scale"),
        tolerance=1e-6, statistics=(matches(k),), own=functools.partial(_own, k), core=_core,
        reference=functools.partial(_reference, k), check=functools.partial(refuse_ambiguous, name, k),
    )  # fmt: skip


def _own(k: int, pair: Pair) -> RankState:
    return RankState(1 / np.cumsum(1 / np.arange(1, k + 1)) / pair.n)


def _core(own: RankState, values: tuple[AnyArray, ...], perm: Permutation) -> Bounds:
    weights = jnp.asarray(own.weights)
    in_y = values[0].astype(weights.dtype)
    in_x = jnp.arange(1, in_y.shape[1] + 1, dtype=weights.dtype)
    terms = jnp.where(in_y > 0, 2 / ((1 + jnp.abs(in_x - in_y)) * (in_x + in_y)), 0)
    shared = jnp.sum(in_y > 0, axis=1)
    return exactly(pairwise_sum(jnp.sum(terms, axis=1) * weights[shared - 1]))  # no term where none is shared


def _reference(k: int, x: AnyArray, y: AnyArray) -> float:
    """Return the score of two matrices, straight from the definition."""
    pair = Pair.of(x, y)
    refuse_ambiguous("rank_similarity", k, pair)
    ranks = []
    for _, side in pair.sides:
        distances = cdist(side.values, side.values, "cosine")
        np.fill_diagonal(distances, np.inf)
        ranks.append([{j: r for r, j in enumerate(row[:k], 1)} for row in np.argsort(distances, axis=1).tolist()])
    scores = []
    for a, b in zip(*ranks, strict=True):
        shared = a.keys() & b.keys()
        total = sum(2 / ((1 + abs(a[j] - b[j])) * (a[j] + b[j])) for j in shared)
        scores.append(total / sum(1 / m for m in range(1, len(shared) + 1)) if shared else 0.0)
    return float(np.mean(scores))


RANK_SIMILARITY = rank_similarity()
