"""Sums over pairs of rows of two n x n matrices, one of them re-paired: the quadratic assignment statistic.

    T(p) = sum_{i < j} a[i, j] b[p_i, p_j]

is all that a re-pairing p changes where two matrices of distances are compared entry by entry: Spearman RSA (a and b
hold ranks) and distance correlation. Unlike `saejax.similarity.bases` it is shared by no two measures, because each
has matrices of its own.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Shaped
from saejax_kernels import pair_sums

from saejax.similarity.measure import CrossStatistic
from saejax.similarity.pair import Pair
from saejax.types import AnyArray, Permutation, Permutations


class QuadraticState(NamedTuple):
    """What no re-pairing changes.

    Attributes:
        a: symmetric matrix of x with a zero diagonal.
        b: the same for y.
    """

    a: Shaped[AnyArray, "n n"]
    b: Shaped[AnyArray, "n n"]


def quadratic(name: str, matrices: Callable[[Pair], tuple[np.ndarray, np.ndarray]]) -> CrossStatistic:
    """Return the statistic T of two matrices.

    Args:
        name: what the matrices hold.
        matrices: makes a and b, symmetric with zero diagonals.
    """

    def prepare(pair: Pair, extent: tuple[int, int] | None = None) -> QuadraticState:
        return QuadraticState(*matrices(pair))

    return CrossStatistic(
        name=name, prepare=prepare, compute=_compute, size=_size, scratch=_scratch, compute_batch=_compute_batch,
        compute_exact=_compute_exact,
    )  # fmt: skip


def _compute(state: QuadraticState, perm: Permutation) -> jax.Array:
    return pair_sums(state.a, state.b, perm[None], impl="jax")[0]


def _compute_batch(state: QuadraticState, perms: Permutations) -> np.ndarray:
    return np.asarray(pair_sums(state.a, state.b, perms, impl="numba"))


def _compute_exact(state: QuadraticState, perm: Permutation) -> float:
    """Return the sum in float64, row by row."""
    a, b, perm = np.asarray(state.a), np.asarray(state.b), np.asarray(perm)
    return sum(float(a[i].astype(np.float64) @ b[perm[i]][perm].astype(np.float64)) for i in range(len(a))) / 2


def _size(pair: Pair, extent: tuple[int, int] | None = None) -> int:
    return 16 * pair.n**2


def _scratch(state: QuadraticState) -> int:
    """Return the bytes of two gathered rows."""
    return 8 * len(state.a)
