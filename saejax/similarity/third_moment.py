"""The third central moment of T(p) = sum_ij K[i, j] L[p_i, p_j] over all re-pairings, for matrices with zero row sums.

Derivation. T less its mean is the same sum for K - c H and L - c' H, where H = I - 1 1' / n and c = tr K / (n - 1):
those still have zero row sums and now zero trace. Let K and L be so moved. T^3 is a sum over three index pairs.
Group its terms by which of the six indices coincide, one set partition of six slots to each group:

    E T^3 = sum over partitions of  K_pattern L_pattern / (n)_k

with k the number of blocks, (n)_k = n (n - 1) ... (n - k + 1), and K_pattern the sum of the product of three entries
over DIFFERENT values for different blocks. By Moebius inversion over the partitions that merge blocks, K_pattern is a
sum of such sums over FREE values, with weight (-1)^(m - 1) (m - 1)! for each m blocks merged into one. A free sum is
a graph of three edges on the blocks; it vanishes where a vertex has one edge end (a row sum) and where a loop stands
alone (the trace). Five graphs are left:

    triangle   sum_ijk K_ij K_jk K_ki      handle     sum_i K_ii (K^2)_ii     loops   sum_i K_ii^3
    triple     sum_ij K_ij^3               dumbbell   sum_ij K_ii K_ij K_jj

So E T^3 = v' C(n) v' with v the five sums of K, v' those of L and C(n) a 5 x 5 matrix of rational functions of n,
which `_products` works out by running through the 203 partitions; with patterns of more blocks than rows left out it
holds for every n >= 4. Written out for n >= 6 it is the third moment of Kazi-Aoual et al. at zero traces.

Uniform scheme only, as all of `saejax.similarity.moments`.

Source: Kazi-Aoual, Hitier, Sabatier, Lebreton, "Refined approximations to permutation tests for multivariate
inference", Computational Statistics and Data Analysis 20, 1995; Josse, Pagès, Husson, "Testing the significance of
the RV coefficient", ibid. 53, 2008.
"""

import functools
import math
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

ORDER = 3
GRAPHS = {(3, 0): 0, (2, 0): 1, (2, 1): 2, (2, 2): 3, (1, 3): 4}  # (vertices, loops) of each, in the order of ThirdSums
BLOCK = 2**20


class ThirdSums(NamedTuple):
    """The five sums of one symmetric matrix with zero row sums, moved to zero trace: K below is K - tr K / (n - 1) H.

    Attributes:
        triangle: sum_ijk K_ij K_jk K_ki, the trace of K^3.
        triple: sum_ij K_ij^3.
        handle: sum_i K_ii (K^2)_ii.
        dumbbell: sum_ij K_ii K_ij K_jj.
        loops: sum_i K_ii^3.
    """

    triangle: float
    triple: float
    handle: float
    dumbbell: float
    loops: float


def third_central_moment(n: int, a: ThirdSums, b: ThirdSums) -> float:
    """Return E (T - E T)^3 over all n! re-pairings, each as likely as any other: a' C(n) b.

    Args:
        n: pairs, at least 4.
        a: sums of K.
        b: sums of L.
    """
    terms = (product * Fraction(1, math.perm(n, blocks)) for blocks, product in _products().items() if blocks <= n)
    return float(np.asarray(a) @ np.sum(list(terms), axis=0).astype(np.float64) @ np.asarray(b))


def factor_third(factor: Float[np.ndarray, "n d"]) -> ThirdSums:
    """Return the third-order sums of K = factor factor', columns of the factor centred.

    O(n^2 d) time for n^2 / 2 inner products, and O(n d^2); memory for two copies of the factor and blocks of 40 MiB in
    all. On two cores 0.9 s at n = 4,000 and d = 512. A factor of more columns than its rank is better replaced by its
    left singular vectors times singular values.
    """
    factor = np.asarray(factor, np.float64)
    n = len(factor)
    trace = float(np.vdot(factor, factor))
    ones = np.ones((n, 1))
    left, right = np.hstack([factor, ones]), np.hstack([factor, ones * (trace / (n - 1) / n)])
    return _low_rank_third(left, right, np.einsum("nd,nd->n", factor, factor) - trace / n)


def ucentred_third(factor: Float[np.ndarray, "n d"]) -> ThirdSums:
    """Return the third-order sums of the U-centred K = factor factor', scaled to unit norm off its zero diagonal.

    With centred columns K has row sums 0, and with d its diagonal the U-centred matrix of Szekely and Rizzo (2014) is
    K_ij + (d_i + d_j) / (n - 2) - tr K / ((n - 1) (n - 2)) for i != j: of rank d + 2 off the diagonal. Cost as
    `factor_third`.
    """
    factor = np.asarray(factor, np.float64)
    factor = factor - factor.mean(axis=0)
    n = len(factor)
    diagonal = np.einsum("nd,nd->n", factor, factor)[:, None]
    ones = np.ones((n, 1))
    left = np.hstack([factor, diagonal, ones])
    right = np.hstack([factor, ones / (n - 2), diagonal / (n - 2) - diagonal.sum() / ((n - 1) * (n - 2))])
    gram = right.T @ left
    own = np.einsum("nr,nr->n", left, right)
    norm = math.sqrt(float(np.vdot(gram, gram.T) - own @ own))
    return ThirdSums(*(sums / norm**3 for sums in _low_rank_third(left, right, np.zeros(n))))


def matrix_third(matrix: Float[np.ndarray, "n n"]) -> ThirdSums:
    """Return the third-order sums of a symmetric matrix with zero row sums: double-centred or U-centred.

    2 n^3 flop for the triangles; blocks of rows of 40 MiB in all besides the matrix. On two cores 4 s at n = 4,000.
    """
    matrix = np.asarray(matrix, np.float64)
    n = len(matrix)
    trace = float(matrix.trace())
    shift = trace / (n - 1)
    diagonal = matrix.diagonal() - trace / n
    triangle = triple = handle = dumbbell = 0.0
    for start in range(0, n, step := max(1, BLOCK // n)):
        rows = np.arange(start, min(start + step, n))
        block = matrix[rows] + shift / n
        block[np.arange(len(rows)), rows] -= shift
        square = block * block
        triangle += float(np.vdot(block @ matrix - shift * block, block))
        triple += float(np.vdot(square, block))
        handle += float(diagonal[rows] @ square.sum(axis=1))
        dumbbell += float(diagonal[rows] @ (block @ diagonal))
    return ThirdSums(triangle, triple, handle, dumbbell, float(np.sum(diagonal**3)))


def _low_rank_third(
    left: Float[np.ndarray, "n r"], right: Float[np.ndarray, "n r"], diagonal: Float[np.ndarray, "n"]
) -> ThirdSums:
    """Return the sums of the symmetric matrix that is left right' off its diagonal and `diagonal` on it.

    With D = diag(diagonal - own), own the diagonal of Q = left right', the matrix is Q + D; so the diagonal of its
    square is that of Q^2 + 2 Q D + D^2, and its cube has the trace of Q^3 + 3 Q^2 D + 3 Q D^2 + D^3.
    """
    gram = right.T @ left
    own = np.einsum("nr,nr->n", left, right)
    excess = diagonal - own
    own_square = np.einsum("nr,nr->n", left @ gram, right)
    loops = float(np.sum(diagonal**3))
    return ThirdSums(
        triangle=float(np.vdot(gram @ gram, gram.T) + np.sum(excess * (3 * own_square + excess * (3 * own + excess)))),
        triple=loops + _off_diagonal_cubes(left, right),
        handle=float(diagonal @ (own_square + excess * (2 * own + excess))),
        dumbbell=float((diagonal @ left) @ (right.T @ diagonal) + excess @ diagonal**2),
        loops=loops,
    )


def _off_diagonal_cubes(left: Float[np.ndarray, "n r"], right: Float[np.ndarray, "n r"]) -> float:
    """Return the sum over i != j of (left_i . right_j)^3, of which either triangle holds half."""
    n, total = len(left), 0.0
    for start in range(0, n, step := max(1, BLOCK // n)):
        product = left[start : start + step] @ right[start:].T
        size = len(product)
        np.fill_diagonal(product[:, :size], 0)
        within, beyond = product[:, :size] ** 2, product[:, size:] ** 2
        total += float(np.sum(within * product[:, :size])) + 2 * float(np.sum(beyond * product[:, size:]))
    return total


@functools.cache
def _products() -> dict[int, np.ndarray]:
    """Return for each number of blocks the sum, over partitions into as many, of outer products of their free sums."""
    products: dict[int, np.ndarray] = {}
    for pattern in _set_partitions(2 * ORDER):
        blocks = max(pattern) + 1
        expansion = _in_free_sums(pattern, blocks)
        products.setdefault(blocks, np.zeros((len(GRAPHS), len(GRAPHS)), dtype=object))
        products[blocks] += np.outer(expansion, expansion)
    return products


def _in_free_sums(pattern: tuple[int, ...], blocks: int) -> np.ndarray:
    """Return the weights of the five free sums in a pattern's sum over different values, as exact integers."""
    weights = np.zeros(len(GRAPHS), dtype=object)
    for merging in _set_partitions(blocks):
        graph = _graph(tuple(merging[block] for block in pattern))
        if graph is not None:
            weights[GRAPHS[graph]] += math.prod(
                (-1) ** (m - 1) * math.factorial(m - 1) for m in Counter(merging).values()
            )
    return weights


def _graph(ends: tuple[int, ...]) -> tuple[int, int] | None:
    """Return (vertices, loops) of a graph given by the ends of its edges in turn, None if its free sum vanishes."""
    degrees = Counter(ends)
    loops = [first for first, second in zip(ends[::2], ends[1::2], strict=True) if first == second]
    if min(degrees.values()) < 2 or any(degrees[vertex] == 2 for vertex in loops):
        return None
    return len(degrees), len(loops)


def _set_partitions(count: int) -> Iterator[tuple[int, ...]]:
    """Yield every partition of `count` items as the block of each, blocks numbered as they first appear."""
    if count == 0:
        yield ()
        return
    for head in _set_partitions(count - 1):
        for block in range(max(head, default=-1) + 2):
            yield (*head, block)
