"""The product of two factors, the rows of one of them re-paired.

With A `[n, kx]` made of x and B `[n, ky]` made of y, whatever they are,

    M(p) = A' B[p]

costs 2 n kx ky flop per re-pairing p. The factors of `saejax.similarity.bases` are shared by most measures; the ones
made here belong to measures that normalise rows, which no basis of the columns knows about.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from saejax_kernels import on_all_cores

from saejax.similarity.measure import CrossStatistic
from saejax.similarity.padding import with_zeros
from saejax.similarity.pair import Pair
from saejax.types import AnyArray, Permutation, Permutations

# Factors get columns of zeros up to a multiple of this, so that pairs of nearly equal widths share a compiled program.
PADDING = 32


class FactorsState(NamedTuple):
    """What no re-pairing changes.

    Attributes:
        a: factor of x.
        b: factor of y.
    """

    a: Float[AnyArray, "n kx"]
    b: Float[AnyArray, "n ky"]


def product(
    name: str, factors: Callable[[Pair], tuple[np.ndarray, np.ndarray]], making: Callable[[Pair], int]
) -> CrossStatistic:
    """Return the statistic M of two factors.

    Args:
        name: what it is.
        factors: makes A and B in float64, `[n, kx]` and `[n, ky]`, no wider than x and y.
        making: bytes that it takes to make them.
    """

    def prepare(pair: Pair, extent: tuple[int, int] | None = None) -> FactorsState:
        return FactorsState(*(pad_columns(factor) for factor in factors(pair)))

    return CrossStatistic(
        name=name, prepare=prepare, compute=multiply, size=_size, making=making, scratch=scratch,
        compute_batch=multiply_batch, compute_exact=multiply_exact,
    )  # fmt: skip


def pad_columns(factor: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n padded"]:
    """Append columns of zeros, up to a multiple of `PADDING`."""
    n, k = factor.shape
    return with_zeros(factor, n, -(-k // PADDING) * PADDING)


def multiply(factors: tuple[AnyArray, AnyArray], perm: Permutation) -> jax.Array:
    """Return M of one re-pairing, `[kx, ky]`; pure JAX."""
    # The highest precision, because the default on an accelerator is TF32 or bfloat16 and would move p-values.
    a, b = (jnp.asarray(factor) for factor in factors)
    return jnp.matmul(a.T, b[perm], precision=jax.lax.Precision.HIGHEST)


def multiply_batch(factors: tuple[AnyArray, AnyArray], perms: Permutations) -> Float[np.ndarray, "perm kx ky"]:
    """Return M of a batch, from the host.

    By numpy's BLAS: with n = 4,000, kx = 512, ky = 768 and AVX-512 on two cores 12 ms, by XLA 16.
    """
    (a, b), perms = (np.asarray(factor) for factor in factors), np.asarray(perms)
    products = np.empty((len(perms), a.shape[1], b.shape[1]), a.dtype)

    def work(blocks: Sequence[slice]) -> None:
        rows = np.empty((blocks[0].stop - blocks[0].start, *b.shape), b.dtype)
        for block in blocks:
            some = rows[: block.stop - block.start]
            np.take(b, perms[block], axis=0, out=some, mode="clip")  # any other mode copies the rows once more
            np.matmul(a.T, some, out=products[block])

    on_all_cores(work, len(perms), b.nbytes)
    return products


def multiply_exact(factors: tuple[AnyArray, AnyArray], perm: Permutation) -> Float[np.ndarray, "kx ky"]:
    """Return M of one re-pairing from float64 factors of numpy, without a copy of them."""
    a, b = factors
    return np.asarray(a).T @ np.take(np.asarray(b), np.asarray(perm), axis=0)


def scratch(factors: tuple[AnyArray, AnyArray]) -> int:
    """Return the bytes of a product, of the rows gathered for it, and of two copies that readers make."""
    (n, kx), ky = factors[0].shape, factors[1].shape[1]
    return 4 * n * ky + 12 * kx * ky + 16 * min(kx, ky) ** 2


def _size(pair: Pair) -> int:
    return 12 * pair.n * sum(side.values.shape[1] + PADDING for _, side in pair.sides)
