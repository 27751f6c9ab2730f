"""Nuclear norms (sums of singular values) of a batch of matrices of spectral norm at most 1.

In JAX as <m, Q>, with Q the polar factor of m [1, chapter 8], which `polar_factors` finds by matrix products alone. An
error in Q enters in second order, so the sum is as exact as a singular value decomposition: a value below 32 eps counts
in part, all others in full.

In numba by squaring: the singular values of m are the roots of the eigenvalues of its smaller Gram matrix. Squaring
costs half the digits, so the Gram matrix is summed and diagonalised in float64: a singular value is then good to
1e-8, where a float32 Gram matrix would leave 3e-4. Householder reflections bring it to tridiagonal form [2, algorithm
8.3.1], the eigenvalues of which follow from the QL iteration without square roots of Pal, Walker and Kahan [3,
section 8-15]. LAPACK does the same, but its calls from several threads wait for one another inside OpenBLAS; these
run one matrix per core.

On two cores the eigenvalues of a Gram matrix of 235 and 491 rows took 0.6 and 3.8 ms, by LAPACK's DSYEVD 1.4 and 6.6,
and XLA's singular values of the matrix itself 4 and 23. While other programs used the cores too, LAPACK took ten to
thirty times as long as alone, these three times.

[1] Higham, Functions of Matrices, 2008.
[2] Golub and Van Loan, Matrix Computations, 4th edition, 2013.
[3] Parlett, The Symmetric Eigenvalue Problem, 1980.
"""

from typing import Literal, no_type_check

import jax
import jax.numpy as jnp
import numba
import numpy as np
from jaxtyping import Float

from saejax_kernels.polar_factors import polar_factors
from saejax_kernels.summation import FAST_SUMS, pairwise_sum

EPSILON = float(np.finfo(np.float64).eps)


def nuclear_norms(
    m: Float[jax.Array | np.ndarray, "perm a b"], *, impl: Literal["jax", "numba"]
) -> Float[jax.Array | np.ndarray, "perm"]:
    """Sum the singular values of every matrix of a batch.

    Args:
        m: matrices without a singular value above 1, such as products of orthonormal bases. Rows and columns of
            zeros at the end cost next to nothing in numba.
        impl: `jax` traces under `jit` and `vmap` on any device, in the dtype of `m`; `numba` runs on the CPU from
            the host, in float64. Memory beyond the argument, in numbers per matrix: 2 a b + 2 min(a, b)^2, and
            2 min(a, b)^2.

    Returns:
        One nuclear norm per matrix.
    """
    if impl == "jax":
        m = jnp.asarray(m)
        return pairwise_sum((m * polar_factors(m)).reshape(len(m), -1))
    if impl != "numba":
        raise ValueError(f"impl {impl!r} is unknown; choose jax or numba")
    with jax.enable_x64(True):
        grams = np.array(_grams(m))
    norms = np.empty(len(grams))
    _root_traces(grams, norms)
    return norms


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
