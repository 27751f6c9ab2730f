"""Exact mean and variance of a score over all n! re-pairings, from sums over each side alone.

Every quadratic score is a sum of products of two symmetric matrices, one of which a re-pairing p relabels:

    T(p) = sum_ij K[i, j] L[p_i, p_j]

Derivation. T changes by a constant only when a number is added to all off-diagonal entries of K or of L, or to all
diagonal ones; so both means are moved to 0 first, and with them the mean of T. Then T^2 is a sum over two index pairs
(i, j), (k, l). Group its terms by which of the four indices coincide: within a group the expectation of the product
of L entries is their mean over all choices of that many different indices, so

    E T^2 = sum over coincidence patterns of  K_pattern L_pattern / (n)_k

with k the number of different indices, (n)_k = n (n - 1) ... (n - k + 1), and K_pattern the sum of K[i, j] K[k, l]
over the choices of different indices. Such sums follow from four numbers for each side. With d the diagonal of the
moved matrix and o the row sums of what lies off the diagonal:

    S = sum d^2,   X = sum d o,   W = sum o^2,   q = sum_{i != j} K[i, j]^2

    Var T = S S' / (n - 1) + 4 X X' / ((n - 1) (n - 2)) + 2 q q' / (n)_2 + 4 (W - q) (W' - q') / (n)_3
            + 4 (q - 2 W) (q' - 2 W') / (n)_4

The last three terms are the variance of Mantel (1967) for matrices without a diagonal; for centred matrices, where
all rows sum to 0, the whole equals the variance of Kazi-Aoual et al. (1995), and for U-centred matrices of unit norm
2 / (n (n - 3)) whatever the data.

These are moments over ALL n! re-pairings, each as likely as any other: the uniform scheme. They do not hold where
rows may only be re-paired within strata, blocks or clusters. All sums are taken in float64.

Source: Mantel, "The detection of disease clustering and a generalized regression approach", 1967; Kazi-Aoual, Hitier,
Sabatier, Lebreton, "Refined approximations to permutation tests for multivariate inference", 1995.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Real

from saejax.errors import InputError
from saejax.similarity.third_moment import ThirdSums, third_central_moment

BLOCK = 2**20
ROUNDING = 1e-7  # of its mean: a smaller SD may be that of a constant score, rounded


class Moments(NamedTuple):
    """Moments of a score over all re-pairings, each as likely as any.

    Attributes:
        mean: mean score.
        sd: standard deviation; NaN where only the mean has a closed form.
        skewness: None where it has no closed form, or was not asked for.
    """

    mean: float
    sd: float
    skewness: float | None = None

    def rescaled(self, scale: float, shift: float = 0.0) -> "Moments":
        """Return the moments of scale * score + shift."""
        skewness = None if self.skewness is None else math.copysign(1.0, scale) * self.skewness
        return Moments(scale * self.mean + shift, abs(scale) * self.sd, skewness)


class PairSums(NamedTuple):
    """All that the mean and variance of a quadratic score need to know of one symmetric `[n, n]` matrix.

    Attributes:
        n: rows.
        trace: sum of the diagonal.
        off_diagonal: sum of everything else, each pair counted twice.
        diagonal_squares: S, the sum of (K[i, i] - trace / n)^2.
        mixed: X, the sum of (K[i, i] - trace / n) o[i], with o the off-diagonal row sums less their mean.
        row_squares: W, the sum of o^2.
        squares: q, the sum of squares of the off-diagonal entries less their mean.
    """

    n: int
    trace: float
    off_diagonal: float
    diagonal_squares: float
    mixed: float
    row_squares: float
    squares: float


def factor_sums(factor: Float[np.ndarray, "n d"], terms: Float[np.ndarray, "n"] | None = None) -> PairSums:
    """Return the sums of K = factor factor' + terms 1' + 1 terms', which is never formed.

    O(n d min(n, d)) time; memory for one matrix of min(n, d)^2. The factor may be centred or not: columns of a
    basis, rows of unit norm (cosine similarities), those less their means (correlations).

    Args:
        factor: the factor.
        terms: a number per row; none when None.

    Raises:
        InputError: n is below 4.
    """
    factor = np.asarray(factor, np.float64)
    diagonal = np.einsum("nd,nd->n", factor, factor)
    rows = factor @ factor.sum(axis=0)
    n, d = factor.shape
    gram = factor.T @ factor if d <= n else factor @ factor.T
    squares = float(np.vdot(gram, gram))
    if terms is not None:
        squares += float(4 * terms @ rows + 2 * n * terms @ terms + 2 * terms.sum() ** 2)
        diagonal, rows = diagonal + 2 * terms, rows + n * terms + terms.sum()
    return _sums(diagonal, rows, squares)


def matrix_sums(matrix: Real[np.ndarray, "n n"]) -> PairSums:
    """Return the sums of a symmetric matrix, read once in blocks of rows, 8 MiB of float64 at a time.

    Args:
        matrix: symmetric; float or integer, in memory or mapped from a file.

    Raises:
        InputError: n is below 4.
    """
    n = len(matrix)
    rows, squares = np.empty(n), 0.0
    for start in range(0, n, step := max(1, BLOCK // max(n, 1))):
        block = np.asarray(matrix[start : start + step], np.float64)
        rows[start : start + step] = block.sum(axis=1)
        squares += float(np.vdot(block, block))
    return _sums(np.asarray(matrix.diagonal(), np.float64), rows, squares)


def _sums(diagonal: Float[np.ndarray, "n"], rows: Float[np.ndarray, "n"], squares: float) -> PairSums:
    """Return the sums from the diagonal, the full row sums and the sum of all squares of a matrix."""
    n = len(diagonal)
    if n < 4:
        raise InputError(f"n {n} must be at least 4 pairs")
    off = rows - diagonal
    trace, total = float(diagonal.sum()), float(off.sum())
    d, o = diagonal - trace / n, off - total / n
    return PairSums(
        n=n,
        trace=trace,
        off_diagonal=total,
        diagonal_squares=float(d @ d),
        mixed=float(d @ o),
        row_squares=float(o @ o),
        squares=squares - float(diagonal @ diagonal) - total**2 / (n * (n - 1)),
    )


def mantel_moments(a: PairSums, b: PairSums) -> Moments:
    """Return mean and SD of T = sum_{i < j} K[i, j] L[p_i, p_j], diagonals left out; uniform scheme.

    RSA by Pearson's or Spearman's correlation, on similarities or distances, is T of the matrices so scaled.

    Raises:
        InputError: the sides differ in n.
    """
    n = _common_n(a, b)
    mean = a.off_diagonal * b.off_diagonal / (n * (n - 1))
    return Moments(mean / 2, _root(_off_diagonal_variance(a, b)) / 2)


def uncentred_moments(a: PairSums, b: PairSums) -> Moments:
    """Return mean and SD of T = sum_ij K[i, j] L[p_i, p_j], diagonals included; uniform scheme.

    With K = A A' and L = B B' that is ||A' P B||_F^2: eigenspace overlap, for instance.
    E T = tr K tr L / n + (1'K 1 - tr K) (1'L 1 - tr L) / (n (n - 1)); the variance is that of the module.

    Raises:
        InputError: the sides differ in n.
    """
    n = _common_n(a, b)
    mean = a.trace * b.trace / n + a.off_diagonal * b.off_diagonal / (n * (n - 1))
    return Moments(mean, _root(_variance(a, b)))


def centred_moments(a: PairSums, b: PairSums, thirds: tuple[ThirdSums, ThirdSums] | None = None) -> Moments:
    """Return mean, SD and skewness of T = sum_ij K[i, j] L[p_i, p_j] where K and L have zero row sums; uniform scheme.

    ||A' P B||_F^2 of centred A and B: CKA, RV, R^2, the squared canonical correlations, projections; and squared
    distance correlation. The mean is tr K tr L / (n - 1), so k_x k_y / (n - 1) for projections.

    Args:
        a: sums of K.
        b: sums of L.
        thirds: third-order sums of K and L, unscaled as theirs; the skewness is None without, and where the SD is
            below 1e-7 of the mean, which means that all pairings score the same.

    Raises:
        InputError: the sides differ in n.
    """
    moments = uncentred_moments(a, b)
    return moments if thirds is None else _with_skewness(moments, a.n, *thirds)


def ucentred_moments(n: int, thirds: tuple[ThirdSums, ThirdSums] | None = None) -> Moments:
    """Return mean, SD and skewness of T = sum_ij K[i, j] L[p_i, p_j], U-centred and of unit norm; uniform scheme.

    U-centred matrices have zero diagonals and zero row sums, so the mean is 0 and the variance 2 / (n (n - 3))
    whatever the data. Debiased CKA is T; so is the bias-corrected squared distance correlation.

    Args:
        n: pairs, at least 4.
        thirds: third-order sums of both matrices; the skewness is None without.

    Raises:
        InputError: n is below 4.
    """
    if n < 4:
        raise InputError(f"n {n} must be at least 4 pairs")
    moments = Moments(0.0, math.sqrt(2 / (n * (n - 3))))
    return moments if thirds is None else _with_skewness(moments, n, *thirds)


def _with_skewness(moments: Moments, n: int, a: ThirdSums, b: ThirdSums) -> Moments:
    if moments.sd <= ROUNDING * abs(moments.mean):
        return moments
    return moments._replace(skewness=third_central_moment(n, a, b) / moments.sd**3)


def _variance(a: PairSums, b: PairSums) -> float:
    n = a.n
    diagonals = a.diagonal_squares * b.diagonal_squares / (n - 1)
    mixed = 4 * a.mixed * b.mixed / ((n - 1) * (n - 2))
    return diagonals + mixed + _off_diagonal_variance(a, b)


def _off_diagonal_variance(a: PairSums, b: PairSums) -> float:
    n = a.n
    same = 2 * a.squares * b.squares / math.perm(n, 2)
    sharing = 4 * (a.row_squares - a.squares) * (b.row_squares - b.squares) / math.perm(n, 3)
    apart = 4 * (a.squares - 2 * a.row_squares) * (b.squares - 2 * b.row_squares) / math.perm(n, 4)
    return same + sharing + apart


def _root(variance: float) -> float:
    """Return the square root; rounding may leave a variance of 0 just below it."""
    return math.sqrt(max(variance, 0.0))


def _common_n(a: PairSums, b: PairSums) -> int:
    if a.n != b.n:
        raise InputError(f"n {a.n} of one side is not the {b.n} of the other; moments compare paired rows")
    return a.n
