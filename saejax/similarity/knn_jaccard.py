"""k-NN Jaccard similarity: the share of nearest neighbours that the two matrices have in common.

With N(i) and N'(i) the k rows of smallest cosine distance to row i of x `[n, dx]` and of y `[n, dy]`, the row itself
left out:

    knn_jaccard(x, y) = mean over i of |N(i) & N'(i)| / |N(i) | N'(i)| = mean over i of m_i / (2 k - m_i)

where m_i counts the shared neighbours. k = 10 unless given: `knn_jaccard(k=...)`.

Range 0 to 1, larger is more similar; 1 whatever the pairing where n = k + 1. The mean over all re-pairings is about
k / (2 n), and exact in `saejax.similarity.neighbour_moments`.
Invariant to rotation of the columns, to scaling by one number and to scaling each row by a positive number of its
own, on either side; not to shifts, because cosines are taken about the origin. Rows of zeros, rows of one direction
and ties among neighbours are refused (`saejax.similarity.neighbours`).

Cost per permutation: 2 n k steps for the shared ranks of `saejax.similarity.neighbours`, and n k to count them. On two
cores 0.04 ms at n = 4,000 and k = 10. What is counted is whole, so float32 cores differ from float64 ones by the
rounding of one sum, 1e-7. Tolerance: 1e-6.

Source: as a similarity of representations, Schumacher, Wolf, Ritzert, Lemmerich, Bachmann, Frantzen, Klabunde,
Grohe, Strohmaier, "The effects of randomness on the stability of node embeddings", 2021; Wang, Rao, Guo, Wang, Liu,
Guan, "Towards understanding the instability of network embedding", 2022.
"""

import functools
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from saejax_kernels.summation import pairwise_sum
from scipy.spatial.distance import cdist

from saejax.similarity.measure import Bounds, Measure, exactly
from saejax.similarity.moments import Moments
from saejax.similarity.neighbour_moments import jaccard_mean
from saejax.similarity.neighbours import NEIGHBOURS, matches, measure_name, refuse_ambiguous
from saejax.similarity.pair import Pair
from saejax.types import AnyArray, Permutation


class JaccardState(NamedTuple):
    """What no re-pairing changes.

    Attributes:
        shares: by number of shared neighbours, from 1, what such a row adds to the score: m / (2 k - m) / n.
    """

    shares: Float[AnyArray, "k"]


@functools.cache
def knn_jaccard(*, k: int = NEIGHBOURS) -> Measure:
    """Return the Jaccard similarity of k nearest neighbours.

    Args:
        k: neighbours of each row.

    Raises:
        InputError: k lies outside 1 to 255.
    """
    name = measure_name("knn_jaccard", k)
    return Measure(
        name=name, larger_is_more_similar=True, invariances=("rotation", "scale", "column permutation", "row scale"),
        tolerance=1e-6, statistics=(matches(k),), own=functools.partial(_own, k), core=_core,
        reference=functools.partial(_reference, k), check=functools.partial(refuse_ambiguous, name, k),
        constant=lambda pair: pair.n == k + 1, exact_moments=functools.partial(_moments, k),
    )  # fmt: skip


def _own(k: int, pair: Pair) -> JaccardState:
    shared = np.arange(1, k + 1)
    return JaccardState(shared / (2 * k - shared) / pair.n)


def _moments(k: int, pair: Pair, skewness: bool) -> Moments:
    """Return the exact mean over all re-pairings; the SD has no closed form."""
    return Moments(jaccard_mean(pair.n, k), math.nan)


def _core(own: JaccardState, values: tuple[AnyArray, ...], perm: Permutation) -> Bounds:
    shared = jnp.sum(values[0] > 0, axis=1)
    return exactly(pairwise_sum(jnp.where(shared > 0, jnp.asarray(own.shares)[shared - 1], 0)))


def _reference(k: int, x: AnyArray, y: AnyArray) -> float:
    """Return the score of two matrices, straight from the definition."""
    pair = Pair.of(x, y)
    refuse_ambiguous("knn_jaccard", k, pair)
    lists = []
    for _, side in pair.sides:
        distances = cdist(side.values, side.values, "cosine")
        np.fill_diagonal(distances, np.inf)
        lists.append([set(row[:k]) for row in np.argsort(distances, axis=1).tolist()])
    return float(np.mean([len(a & b) / len(a | b) for a, b in zip(*lists, strict=True)]))


KNN_JACCARD = knn_jaccard()
