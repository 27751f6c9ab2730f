"""Nuclear norms (sums of singular values) of a batch of matrices of spectral norm at most 1.

In JAX by matrix products alone: with Q the orthogonal polar factor of m, ||m||_* = <m, Q> [1, chapter 8], and Q is
the limit of x <- a x - b (x x') x from x = m. The pairs (a, b) are those of Newton and Schulz at the end and, before
it, the best cubic for the interval in which the singular values then lie, which takes 14 steps instead of 30 [2].
Nothing of this needs LAPACK, so it runs on any device, splits over devices, and is as exact as a singular value
decomposition: a value below 32 eps counts in part, all others in full, and an error in Q enters in second order.
XLA's own decomposition would do on one CPU, but in jaxlib 0.10 its batches can hang with several CPU devices, and on
GPUs it is slow.

In numba by squaring: the singular values of m are the roots of the eigenvalues of its smaller Gram matrix. Squaring
costs half the digits, so the Gram matrix is summed and diagonalised in float64: a singular value is then good to
1e-8, where a float32 Gram matrix would leave 3e-4. Householder reflections bring it to tridiagonal form [3, algorithm
8.3.1], the eigenvalues of which follow from the QL iteration without square roots of Pal, Walker and Kahan [4,
section 8-15]. LAPACK does the same, but its calls from several threads wait for one another inside OpenBLAS; these
run one matrix per core.

On two cores the eigenvalues of a Gram matrix of 235 and 491 rows took 0.6 and 3.8 ms, by LAPACK's DSYEVD 1.4 and 6.6,
and XLA's singular values of the matrix itself 4 and 23. While other programs used the cores too, LAPACK took ten to
thirty times as long as alone, these three times.

[1] Higham, Functions of Matrices, 2008.
[2] The cubic case of Amsel, Persson, Musco, Gower, "The Polar Express", 2025, arXiv 2505.16932.
[3] Golub and Van Loan, Matrix Computations, 4th edition, 2013.
[4] Parlett, The Symmetric Eigenvalue Problem, 1980.
"""

import math
from typing import Literal, no_type_check

import jax
import jax.numpy as jnp
import numba
import numpy as np
from jaxtyping import Float

from saejax_kernels.summation import pairwise_sum

EPSILON = float(np.finfo(np.float64).eps)

# Rounding may push a singular value above 1, where a cubic that is best below 1 falls steeply.
MARGIN = 1.001

# Sums may be reassociated, which is what lets them use vector lanes; NaN and infinity keep their meaning.
FAST_SUMS = {"reassoc", "contract", "nsz"}


def nuclear_norms(
    m: Float[jax.Array | np.ndarray, "perm a b"], *, impl: Literal["jax", "numba"]
) -> Float[jax.Array | np.ndarray, "perm"]:
    """Sum the singular values of every matrix of a batch.

    Args:
        m: matrices without a singular value above 1, such as products of orthonormal bases. Rows and columns of
            zeros at the end cost next to nothing in numba.
        impl: `jax` traces under `jit` and `vmap` on any device, in the dtype of `m`; `numba` runs on the CPU from
            the host, in float64. Memory beyond the argument, in numbers per matrix: 2 a b + min(a, b)^2, and
            2 min(a, b)^2.

    Returns:
        One nuclear norm per matrix.
    """
    if impl == "jax":
        return _polar_inner_products(jnp.asarray(m))
    if impl != "numba":
        raise ValueError(f"impl {impl!r} is unknown; choose jax or numba")
    with jax.enable_x64(True):
        grams = np.array(_grams(m))
    norms = np.empty(len(grams))
    _root_traces(grams, norms)
    return norms


def polar_schedule(epsilon: float) -> list[tuple[float, float]]:
    """Return the coefficients (a, b) of the steps x <- a x - b x^3 that take singular values to 1.

    While values lie in [low, high], the cubic with p(low) = p(high) = 2 - max p is the one that comes nearest to 1
    on all of it; its maximum is at s with 3 s^2 = low^2 + low high + high^2.

    Args:
        epsilon: relative spacing of the numbers in use; values from 32 epsilon to 1 reach 1 to within it.
    """
    low, high, steps = 32 * epsilon, MARGIN, []
    while high - low > 0.2:
        s = math.sqrt((low * low + low * high + high * high) / 3)
        b = 2 / (2 * s**3 + low * high * (low + high))
        steps.append((3 * s * s * b, b))
        low = b * low * high * (low + high)
        high = (2 - low) * MARGIN
    error = max(1 - low, high - 1)
    while error > epsilon:
        steps.append((1.5, 0.5))
        error = 1.5 * error**2 + 0.5 * error**3
    return steps


def _polar_inner_products(m: jax.Array) -> jax.Array:
    wide = m if m.shape[1] <= m.shape[2] else m.mT

    def step(x: jax.Array, pair: jax.Array) -> tuple[jax.Array, None]:
        return pair[0] * x - pair[1] * _product(_product(x, x.mT), x), None

    schedule = jnp.asarray(polar_schedule(float(jnp.finfo(m.dtype).eps)), m.dtype)
    polar, _ = jax.lax.scan(step, wide, schedule)
    return pairwise_sum((wide * polar).reshape(len(m), -1))


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    # The highest precision, because the default on an accelerator is TF32 or bfloat16.
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


@jax.jit
def _grams(m: jax.Array) -> jax.Array:
    def gram(one: jax.Array) -> jax.Array:
        wide = (one if one.shape[0] <= one.shape[1] else one.T).astype(jnp.float64)
        return wide @ wide.T

    return jax.lax.map(gram, m)


@numba.njit(parallel=True)
@no_type_check
def _root_traces(grams, norms):
    """Write the sum of the roots of the eigenvalues of every Gram matrix; the matrices are used up."""
    for q in numba.prange(len(grams)):
        diagonal, beside = _tridiagonal(grams[q])
        _diagonalise(diagonal, beside)
        total = 0.0
        for value in diagonal:
            total += np.sqrt(max(value, 0.0))
        norms[q] = total


@numba.njit(fastmath=FAST_SUMS)
@no_type_check
def _tridiagonal(a):
    """Reduce a symmetric matrix by reflections from its last row up, reading and writing its lower triangle."""
    k = len(a)
    diagonal, beside = np.empty(k), np.zeros(k)
    v, w = np.empty(k), np.empty(k)
    for j in range(k - 1, 0, -1):
        diagonal[j] = a[j, j]
        norm2 = 0.0
        for i in range(j):
            v[i] = a[j, i]
            norm2 += v[i] * v[i]
        rest2 = norm2 - v[j - 1] * v[j - 1] if j > 1 else 0.0
        if rest2 <= 0.0:
            beside[j - 1] = v[j - 1]
            continue
        beside[j - 1] = -np.copysign(np.sqrt(norm2), v[j - 1])
        v[j - 1] -= beside[j - 1]
        _reflect(a, v, w, j, 2.0 / (rest2 + v[j - 1] * v[j - 1]))
    diagonal[0] = a[0, 0]
    return diagonal, beside


@numba.njit(fastmath=FAST_SUMS)
@no_type_check
def _reflect(a, v, w, j, scale):
    """Apply H = 1 - scale v v' from both sides to the leading j x j block: H a H = a - v w' - w v'."""
    w[:j] = 0.0
    for r in range(j):
        total, v_r = a[r, r] * v[r], v[r]
        for c in range(r):
            total += a[r, c] * v[c]
            w[c] += a[r, c] * v_r
        w[r] += total
    inner = 0.0
    for i in range(j):
        w[i] *= scale
        inner += w[i] * v[i]
    for i in range(j):
        w[i] -= 0.5 * scale * inner * v[i]
    for r in range(j):
        v_r, w_r = v[r], w[r]
        for c in range(r + 1):
            a[r, c] -= v_r * w[c] + w_r * v[c]


@numba.njit
@no_type_check
def _diagonalise(d, e):
    """Turn the diagonal d of a tridiagonal Gram matrix into its eigenvalues; e, beside it, is used up.

    No eigenvalue of a Gram matrix is negative, so no entry beside the diagonal exceeds the largest on it, and an
    entry that float64 cannot tell from zero next to that one is zero.
    """
    n = len(d)
    floor = (EPSILON * np.max(d)) ** 2
    for i in range(n - 1):
        e[i] = e[i] * e[i]
    for first in range(n):
        while True:
            last = first
            while last < n - 1 and e[last] > floor:
                last += 1
            if last == first:
                break
            _ql_sweep(d, e, first, last)


@numba.njit
@no_type_check
def _ql_sweep(d, e, first, last):
    """Make one shifted QL step on rows first .. last; e holds squares."""
    root = np.sqrt(e[first])
    shift = (d[first + 1] - d[first]) / (2.0 * root)
    shift = d[first] - root / (shift + np.copysign(np.sqrt(shift * shift + 1.0), shift))
    cosine, sine, gamma = 1.0, 0.0, d[last] - shift
    p = gamma * gamma
    for i in range(last - 1, first - 1, -1):
        r = p + e[i]
        if i != last - 1:
            e[i + 1] = sine * r
        before_cosine, before_gamma = cosine, gamma
        cosine, sine = p / r, e[i] / r
        gamma = cosine * (d[i] - shift) - sine * before_gamma
        d[i + 1] = before_gamma + (d[i] - gamma)
        p = gamma * gamma / cosine if cosine != 0.0 else before_cosine * e[i]
    e[first] = sine * p
    d[first] = shift + gamma
