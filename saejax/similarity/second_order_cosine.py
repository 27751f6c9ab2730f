"""Second-order cosine similarity: does a row see its neighbourhood at the same distances in both matrices?

With d and d' the cosine distances within x `[n, dx]` and within y `[n, dy]`, N(i) and N'(i) the k rows nearest to row i
in each, the row itself left out, and U(i) = N(i) | N'(i), every member counted once:

    second_order_cosine(x, y) = mean over i of the cosine of (d(i, j)) and (d'(i, j)) over j in U(i)

k = 10 unless given: `second_order_cosine(k=...)`. Hamilton et al. compare cosine similarities; the public library
(resi) compares distances, and so do we.

Range 0 to 1, larger is more similar. Distances are positive, so random pairings score far above 0 (0.7 and more): a
score means nothing without its null.
Invariant to rotation of the columns, to scaling by one number and to scaling each row by a positive number of its
own, on either side; not to shifts, because cosines are taken about the origin. Rows of zeros, rows of one direction
and ties among neighbours are refused (`saejax.similarity.neighbours`).

Under a re-pairing p, row i meets n k distances within y at random places, d'(p_i, p_j) for j in N(i), and as many
within x. So all distances are kept: 16 n^2 bytes, and 8 n^2 more for the float32 copy that is scored. Computing the
few that are wanted from unit rows needs no n^2 bytes but 2 n k (dx + dy) flop: 1.4 ms per permutation instead of 0.2
at n = 4,000, d = 512 and 768, and in float32 it loses the digits of small distances.

Cost per permutation: 2 n k reads at random places, the shared ranks of `saejax.similarity.neighbours` and 14 n k flop.
On two cores 0.4 ms at n = 4,000 and k = 10. Float32 cores stay within 2e-7 of float64 ones. Tolerance: 1e-6.

Source: Hamilton, Leskovec, Jurafsky, "Cultural shift or linguistic drift? Comparing two computational measures of
semantic change", EMNLP 2016.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer
from saejax_kernels import listed_entries
from saejax_kernels.summation import pairwise_sum
from scipy.spatial.distance import cdist

from saejax.similarity.measure import Bounds, CrossStatistic, Measure, exactly
from saejax.similarity.neighbours import (
    NEIGHBOURS,
    distance_blocks,
    matches,
    matches_state,
    measure_name,
    nearest,
    refuse_ambiguous,
)
from saejax.similarity.pair import Pair, Side
from saejax.types import AnyArray, Permutation, Permutations


class DistancesState(NamedTuple):
    """What no re-pairing changes.

    Attributes:
        nx: neighbours of each row of x, nearest first, numbered from 1; 0 stands for nobody.
        ny: the same for y.
        dx: cosine distances within x.
        dy: the same for y.
    """

    nx: Integer[AnyArray, "n k"]
    ny: Integer[AnyArray, "n k"]
    dx: Float[AnyArray, "n n"]
    dy: Float[AnyArray, "n n"]


class FarDistances(NamedTuple):
    """Distances on one side between rows that are neighbours on the other.

    Attributes:
        in_y: d'(p_i, p_j) for row i of x and its neighbours j.
        in_x: d(q_i, q_j) for row i of y and its neighbours j, with q the inverse of p.
    """

    in_y: Float[AnyArray, "*perm n k"]
    in_x: Float[AnyArray, "*perm n k"]


class CosineState(NamedTuple):
    """What no re-pairing changes.

    Attributes:
        near_x: distances of the neighbours in x.
        near_y: the same for y.
        n: number of pairs.
    """

    near_x: Float[AnyArray, "n k"]
    near_y: Float[AnyArray, "n k"]
    n: Float[AnyArray, ""]


@functools.cache
def second_order_cosine(*, k: int = NEIGHBOURS) -> Measure:
    """Return the second-order cosine similarity over k nearest neighbours.

    Args:
        k: neighbours of each row.

    Raises:
        InputError: k lies outside 1 to 255.
    """
    name = measure_name("second_order_cosine", k)
    return Measure(
        name=name, larger_is_more_similar=True, invariances=("rotation", "scale", "column permutation", "row scale"),
        tolerance=1e-6, statistics=(matches(k), _far_distances(k)), own=functools.partial(_own, k), core=_core,
        reference=functools.partial(_reference, k), check=functools.partial(refuse_ambiguous, name, k),
    )  # fmt: skip


@functools.cache
def _far_distances(k: int) -> CrossStatistic:
    return CrossStatistic(
        name=f"distances of {k} neighbours", prepare=functools.partial(_distances_state, k), compute=_compute,
        size=functools.partial(_size, k), making=_making, scratch=_scratch,
        compute_batch=_compute_batch, compute_exact=_compute_exact,
    )  # fmt: skip


def _distances_state(k: int, pair: Pair, extent: tuple[int, int] | None = None) -> DistancesState:
    return DistancesState(*matches_state(k, pair), *(_distances(side) for _, side in pair.sides))


def _distances(side: Side) -> Float[np.ndarray, "n n"]:
    kept = np.empty((len(side.values), len(side.values)))
    for block, distances in distance_blocks(side.values):
        kept[block] = distances
    return kept


def _compute(state: DistancesState, perm: Permutation) -> FarDistances:
    perm = jnp.asarray(perm)
    inverse = jnp.zeros_like(perm).at[perm].set(jnp.arange(len(perm), dtype=perm.dtype))
    in_y = listed_entries(state.dy, state.nx, perm[None], impl="jax")[0]
    return FarDistances(in_y, listed_entries(state.dx, state.ny, inverse[None], impl="jax")[0])


def _compute_batch(state: DistancesState, perms: Permutations) -> FarDistances:
    perms = np.asarray(perms, np.int64)
    inverse = np.empty_like(perms)
    np.put_along_axis(inverse, perms, np.arange(perms.shape[1])[None], axis=1)
    in_y = listed_entries(state.dy, state.nx, perms, impl="numba")
    return FarDistances(in_y, listed_entries(state.dx, state.ny, inverse, impl="numba"))


def _compute_exact(state: DistancesState, perm: Permutation) -> FarDistances:
    return FarDistances(*(each[0] for each in _compute_batch(state, np.asarray(perm)[None])))


def _size(k: int, pair: Pair) -> int:
    return 24 * pair.n**2 + 8 * pair.n * k


def _making(pair: Pair) -> int:
    """Return 0: what distances take on their way, the neighbours, which are asked for too, have taken before."""
    return 0


def _scratch(state: DistancesState) -> int:
    """Return the bytes of two kinds of distances, of a gathered copy of each, and of the permutation both ways."""
    return 16 * state.nx.size + 16 * len(state.nx)


def _own(k: int, pair: Pair) -> CosineState:
    near_x, near_y = (nearest(side, k).distances[:, :k] for _, side in pair.sides)
    return CosineState(near_x, near_y, np.asarray(float(pair.n)))


def _core(own: CosineState, values: tuple[AnyArray, FarDistances], perm: Permutation) -> Bounds:
    """Return the mean cosine of one re-pairing.

    A sum over U(i) is one over all of N'(i), found at row p_i, and one over those in N(i) that are not shared.
    """
    ranks, far = values
    alone = ranks == 0
    near_x, in_y = (jnp.where(alone, each, 0) for each in (own.near_x, far.in_y))
    near_y, in_x = own.near_y, far.in_x

    def over_union(by_x: AnyArray, by_y: AnyArray) -> jax.Array:
        return jnp.sum(by_x, axis=1) + jnp.sum(by_y, axis=1)[perm]

    inner = over_union(near_x * in_y, near_y * in_x)
    # Roots before the product: squares of small distances would vanish in float32.
    lengths = jnp.sqrt(over_union(near_x**2, in_x**2)) * jnp.sqrt(over_union(in_y**2, near_y**2))
    return exactly(pairwise_sum(jnp.where(lengths > 0, inner / lengths, 0)) / own.n)


def _reference(k: int, x: AnyArray, y: AnyArray) -> float:
    """Return the score of two matrices, straight from the definition."""
    pair = Pair.of(x, y)
    refuse_ambiguous("second_order_cosine", k, pair)
    dx, dy = (cdist(side.values, side.values, "cosine") for _, side in pair.sides)
    cosines = []
    for i, (a, b) in enumerate(zip(dx, dy, strict=True)):
        near = [[j for j in np.argsort(row).tolist() if j != i][:k] for row in (a, b)]
        union = sorted(set(near[0]) | set(near[1]))
        cosines.append(a[union] @ b[union] / (np.linalg.norm(a[union]) * np.linalg.norm(b[union])))
    return float(np.mean(cosines))


SECOND_ORDER_COSINE = second_order_cosine()
