"""Lower and upper bounds on nuclear norms (sums of singular values), by matrix products alone.

The nuclear norm has two variational forms [1], with S over the symmetric positive definite matrices:

    max over ||Q||_2 <= 1 of <m, Q>  =  ||m||_*  =  min over S of (tr(m' S^-1 m) + tr S) / 2

so any Q and any S give bounds. Both are attained at Q = U V', the polar factor, and S = (m m')^(1/2) = m Q', for which
S^-1 m = Q. With Q from `polar_factors`, S the symmetric part of m Q', and R = m - S Q what is then left over,

    <m, Q> / ||Q||_2  <=  ||m||_*  <=  tr(S) ||Q||_2 + sqrt(rank(m)) ||R||_F

since ||S Q||_* <= tr(S) ||Q||_2 for S without eigenvalues below zero, and it has none because the iteration turns no
singular value negative. This asks for no inverse of S. A Cholesky factor L of S and C = L^-1 m would give
||L||_F ||C||_F, the second form, and save two steps of the iteration. But on two busy cores it took 1.0 ms at
235 x 235 and 13.7 at 400 x 500, as much as six and nine steps, where R takes 0.1 and 1.0; and it would need LAPACK.

What the iteration leaves: singular values from `smallest` up reach 1 in Q to within rounding. A smaller one, s, counts
in part below, and adds at most sqrt(rank) s above. This is relative to the lesser of 1 and (sum of s^4)^(1/4).

What rounding leaves: Q and S may be any matrices, so their errors cost tightness only. What counts is ||Q||_2 - 1, set
by the last step, which sends nothing above 1; the rounding of R; eigenvalues of S below zero; and three sums.
`rounding_allowance` is taken off and put on for them. Its root is the law of roundings that are independent [2], its
linear term is for those that are not: in a matrix of equal entries all go the same way, which is why the products that
count are `careful_product`s. Such matrices used up to 0.3 of it in float32, up to 3,000 columns and in whatever order a
device sums; random ones, of graded and deficient spectra too, up to 0.4.

(high - low) / norm in float32, most of it that allowance: for random pairings of orthonormal bases, n = 600 and
235 x 235, median 3.7e-6 and largest of forty 5.0e-6; n = 2,000 and 400 x 500, 5.8e-6 and 6.0e-6; n = 4,000 and
491 x 491, 5.3e-6 and 7.4e-6; their middle is within 2e-6 of the norm. For products of matrices of 300 columns, 4.1e-6
and 1.1e-5 with equal variances; with variances like 1 / i 1.2e-5 and 2.7e-5, or 4.7e-6 and 5.0e-6 with `smallest`
1e-5; with variances like 1 / i^2 7e-4 and 1.3e-3, or 1.1e-5 and 1.8e-5.

[1] Recht, Fazel, Parrilo, "Guaranteed minimum-rank solutions of linear matrix equations via nuclear norm
minimization", SIAM Review 52, 2010, section 2. For fixed S the second form is the inequality of the arithmetic and
the geometric mean, singular value by singular value.
[2] Higham and Mary, "A new approach to probabilistic rounding error analysis", 2019.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from saejax_kernels.polar_factors import careful_product, frobenius_norms, polar_iteration, polar_schedule
from saejax_kernels.summation import pairwise_sum


@partial(jax.jit, static_argnames="smallest")
def nuclear_bounds(
    m: Float[jax.Array | np.ndarray, "perm a b"], *, smallest: float = 2e-4
) -> tuple[Float[jax.Array, "perm"], Float[jax.Array, "perm"]]:
    """Bound the sum of the singular values of every matrix of a batch from below and above.

    Args:
        m: matrices without a singular value above 1, such as products of orthonormal bases; with one, the bounds do
            not hold. Rows and columns of zeros change the allowance for rounding and nothing else. Memory beyond the
            argument, in numbers per matrix: 2 a b + 2 min(a, b)^2.
        smallest: singular values from here up are resolved. 2e-4, 13 steps in float32, suits canonical correlations
            and products of matrices with about the same variance in all directions; 1e-5, 17 steps, others.

    Returns:
        low, high: low <= nuclear norm <= high, for every matrix.
    """
    epsilon = float(jnp.finfo(m.dtype).eps)
    wide = jnp.asarray(m if m.shape[1] <= m.shape[2] else m.mT)
    polar = polar_iteration(wide, polar_schedule(smallest, epsilon))
    root = careful_product(wide, polar.mT)
    root = (root + root.mT) / 2
    rest = frobenius_norms(wide - careful_product(root, polar))
    rank = jnp.sum(jnp.any(wide != 0, axis=2), axis=1).astype(wide.dtype)
    low = pairwise_sum((wide * polar).reshape(len(m), -1))
    high = pairwise_sum(jnp.diagonal(root, axis1=1, axis2=2)) + jnp.sqrt(rank) * rest
    slack = rounding_allowance(wide.shape[2], epsilon)
    return low * (1 - slack), high * (1 + slack)


def rounding_allowance(columns: int, epsilon: float) -> float:
    """Return the share of a norm by which rounding may spoil either bound.

    Args:
        columns: length of the sums in the products, the longer side of the matrices.
        epsilon: relative spacing of the numbers in use.
    """
    return epsilon * (4 + math.sqrt(columns) / 2 + columns / 128)
