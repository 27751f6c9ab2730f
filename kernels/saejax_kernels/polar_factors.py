"""Orthogonal polar factors of a batch of matrices, by matrix products alone.

With m = U S V', the polar factor is U V': the limit of x <- a x - b (x x') x from x = m, which applies a x - b x^3 to
every singular value and leaves U and V alone. The pairs (a, b) are (3/2, 1/2) at the end, the step of Newton and
Schulz [1, 2]. Before that they belong to the best cubic for the interval in which the singular values then lie [3]: it
makes a small one 2.5 times larger per step instead of 1.5 times.

The best cubic sends the top of its interval to the bottom of the next. If the interval is wide, a value near the top
then falls to the level of the smallest, and rounding turns its singular vectors as if it had been so small from the
start. So a cubic is chosen for an interval no wider than `CUSHION` says, which [3] does too: it costs 2 % of the
growth and divides the error in the polar factor by up to eight.

Nothing here needs LAPACK, so it runs on any device and splits over devices; in jaxlib 0.10, LAPACK calls on batches
can hang or crash a CPU with many cores (jax issue 39292).

[1] Björck and Bowie, "An iterative algorithm for computing the best estimate of an orthogonal matrix", 1971.
[2] Higham, Functions of Matrices, 2008, chapter 8.
[3] The cubic case of Amsel, Persson, Musco, Gower, "The Polar Express", 2025, arXiv 2505.16932.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from saejax_kernels.summation import pairwise_sum

# Rounding may push a singular value above 1, where a cubic that is best below 1 falls steeply.
MARGIN = 1.001

# Lower end over upper end of the widest interval that a cubic is chosen for.
CUSHION = 0.1

# Terms of a sum that may be added one after another where roundings must not pile up.
BLOCK = 128

# Width of the interval around 1 from which the step of Newton and Schulz is about as good as the best cubic.
NEAR = 0.4


@jax.jit
def polar_factors(m: Float[jax.Array | np.ndarray, "perm a b"]) -> Float[jax.Array, "perm a b"]:
    """Return the orthogonal polar factor of every matrix of a batch, in the precision of the matrices.

    Its rows are orthonormal if a <= b, else its columns; no such matrix is nearer to m.

    Args:
        m: matrices without a singular value above 1. Memory beyond the argument, in numbers per matrix:
            2 a b + 2 min(a, b)^2.

    Returns:
        U V' for every m = U S V'. With eps the spacing of the numbers in use, the error has a spectral norm of at most
        4 eps sqrt(max(a, b)) max(S) / min(S). Where S is below 32 eps, the factor is not determined in this
        precision: that part of U V' comes out shortened, and as zero where S is zero.
    """
    epsilon = float(jnp.finfo(m.dtype).eps)
    wide = jnp.asarray(m if m.shape[1] <= m.shape[2] else m.mT)
    polar = polar_iteration(wide, polar_schedule(32 * epsilon, epsilon))
    return polar if m.shape[1] <= m.shape[2] else polar.mT


def polar_schedule(smallest: float, error: float) -> list[tuple[float, float]]:
    """Return the coefficients (a, b) of the steps x <- a x - b x^3 that take singular values to 1.

    While values lie in [low, high], the cubic with p(low) = p(high) = 2 - max p is the one that comes nearest to 1
    on all of it; its maximum, 2 b s^3, is at s with 3 s^2 = low^2 + low high + high^2.

    Args:
        smallest: values from here to 1 reach 1; smaller ones grow in proportion, to less than 1.
        error: largest distance from 1 that is left.
    """
    low, high, steps = smallest, MARGIN, []
    while high - low > NEAR:
        end = max(low, CUSHION * high)
        s = math.sqrt((end * end + end * high + high * high) / 3)
        b = 2 / (2 * s**3 + end * high * (end + high))
        a = 3 * s * s * b
        steps.append((a, b))
        low, high = a * low - b * low**3, 2 * b * s**3 * MARGIN
    left = max(1 - low, high - 1)
    while left > error:
        steps.append((1.5, 0.5))
        left = 1.5 * left**2 + 0.5 * left**3
    return steps


def polar_iteration(
    wide: Float[jax.Array, "perm a b"], schedule: Sequence[tuple[float, float]]
) -> Float[jax.Array, "perm a b"]:
    """Divide matrices by a bound on their spectral norm and apply the steps of a schedule.

    The bound is 1, or the fourth root of the sum of the fourth powers of the singular values if that is less; the
    first step needs x x' anyway. The last step sends nothing above 1, up to half of the error in its x x': that one is
    a `careful_product`.

    Args:
        wide: matrices without a singular value above 1, and with no more rows than columns.
        schedule: coefficients (a, b) of the steps, at least two.
    """
    gram = product(wide, wide.mT)
    bound = jnp.sqrt(frobenius_norms(gram))
    bound = jnp.where(bound > 0, jnp.minimum(bound, 1), 1)[:, None, None]
    x, gram = wide / bound, gram / bound / bound
    identity = jnp.eye(wide.shape[1], dtype=wide.dtype)

    def advance(x: jax.Array, gram: jax.Array, pair: jax.Array) -> jax.Array:
        # Not a x - b gram x, whose terms nearly cancel at the end: they would leave the roundings of large terms.
        return (pair[0] - pair[1]) * x + pair[1] * product(identity - gram, x)

    def step(state: tuple[jax.Array, jax.Array], pair: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        x = advance(*state, pair)
        return (x, product(x, x.mT)), None

    pairs = jnp.asarray(schedule, wide.dtype)
    (x, gram), _ = jax.lax.scan(step, (x, gram), pairs[:-2])
    x = advance(x, gram, pairs[-2])
    return advance(x, careful_product(x, x.mT), pairs[-1])


def careful_product(x: Float[jax.Array, "perm a b"], y: Float[jax.Array, "perm b c"]) -> Float[jax.Array, "perm a c"]:
    """Multiply with sums that are exact to (`BLOCK` + b / `BLOCK`) / 8 spacings of numbers, in whatever order.

    Some libraries for GPUs add b terms one after another. If all terms are equal, all roundings may go the same way:
    up to b / 8 spacings were seen.
    """
    blocks = -(-x.shape[2] // BLOCK)
    more = blocks * BLOCK - x.shape[2]
    x = jnp.pad(x, ((0, 0), (0, 0), (0, more))).reshape(*x.shape[:2], blocks, BLOCK)
    y = jnp.pad(y, ((0, 0), (0, more), (0, 0))).reshape(len(y), blocks, BLOCK, y.shape[2])
    x, y = jnp.moveaxis(x, 2, 0), jnp.moveaxis(y, 1, 0)

    def add(total: jax.Array, block: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + product(*block), None

    return jax.lax.scan(add, product(x[0], y[0]), (x[1:], y[1:]))[0]


def frobenius_norms(m: Float[jax.Array, "perm a b"]) -> Float[jax.Array, "perm"]:
    """Return the root of the sum of squares of every matrix, without underflow."""
    largest = jnp.max(jnp.abs(m), axis=(1, 2))
    unit = jnp.where(largest > 0, largest, 1)
    squares = jnp.square(m / unit[:, None, None])
    return unit * jnp.sqrt(pairwise_sum(squares.reshape(len(m), -1)))


def product(x: jax.Array, y: jax.Array) -> jax.Array:
    """Multiply in the precision of the arguments: the default on an accelerator is TF32 or bfloat16."""
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)
