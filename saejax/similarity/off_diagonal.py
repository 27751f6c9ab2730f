"""Inner products of two matrices of row similarities whose diagonals do not count, one of them re-paired.

With K = A A' and L = B B' for factors with columns of mean 0, d and e their diagonals less the mean of each, and M(p)
the product A' B[p]:

    T(p) = ||M(p)||_F^2 - tr K tr L / (n - 1) + sum_i u_i' Q v_{p_i}

where each row has a few terms, u_i for x and v_i for y, d_i and e_i among them. The first two summands are <K, L[p]>
after the trace of both is spread evenly over the centred directions, which changes all off-diagonal entries by one
constant. The third takes the diagonals out again, and adds what centring the off-diagonal entries needs. So no n x n
matrix is made. Debiased CKA and RSA with Pearson's correlation are such sums.

Where columns are as many as rows, K is near to a multiple of the identity, and the first two summands cancel. But
then the factor spans all n - 1 centred directions, and the trace comes off its weights beforehand, without loss. What
may still cancel is one row that outweighs all others and meets its like. The core is an interval where the rounding
of all summands may exceed the tolerance.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from saejax_kernels import weighted_squares
from saejax_kernels.summation import pairwise_sum

from saejax.similarity.bases import padded
from saejax.similarity.measure import Bounds
from saejax.types import AnyArray, Permutation, Permutations

TOLERANCE = 1e-6
ROUNDINGS = 4.0  # of each summand, in units of the spacing of numbers
RESOLVED = 1e-6  # share of its summands that a sum must keep for float32 to tell draws apart


class OffDiagonalState(NamedTuple):
    """What no re-pairing changes; T is 1 where x and y have the same similarities.

    Attributes:
        wx: weights of the rows of M, of either sign.
        wy: weights of its columns.
        ax: row terms of x, Q applied.
        ay: row terms of y.
        constant: what is added.
    """

    wx: Float[AnyArray, "kx"]
    wy: Float[AnyArray, "ky"]
    ax: Float[AnyArray, "n terms"]
    ay: Float[AnyArray, "n terms"]
    constant: Float[AnyArray, ""]


class Gram(NamedTuple):
    """Sums over K = A A', which is never formed.

    Attributes:
        terms: the diagonal less its mean, and further terms of each row.
        trace: sum of the diagonal.
        squares: sum of the squares of all entries.
    """

    terms: Float[np.ndarray, "n terms"]
    trace: float
    squares: float


class Factor(NamedTuple):
    """K as a sum over directions: K = basis diag(weights) basis'.

    Attributes:
        weights: one per column of the basis.
        whole: whether the basis is orthonormal and spans all n - 1 centred directions.
    """

    weights: Float[np.ndarray, "k"]
    whole: bool


def gram(factor: Float[np.ndarray, "n d"], *further: Float[np.ndarray, "n"]) -> Gram:
    """Sum over K = factor factor'; memory for one matrix of min(n, d)^2."""
    diagonal = np.einsum("nd,nd->n", factor, factor)
    small = factor.T @ factor if factor.shape[1] <= len(factor) else factor @ factor.T
    terms = np.column_stack([diagonal - diagonal.mean(), *further])
    return Gram(terms, float(diagonal.sum()), float(np.vdot(small, small)))


def self_product(k: Gram, form: Float[np.ndarray, "terms terms"]) -> float:
    """Return T of K with itself as it stands, 0 where too little is left of its summands."""
    taken = np.vdot(k.terms @ form, k.terms)
    total = k.squares - k.trace**2 / (len(k.terms) - 1) + taken
    return float(total) if total > RESOLVED * (k.squares + abs(taken)) else 0.0


def off_diagonal_state(
    grams: tuple[Gram, Gram], factors: tuple[Factor, Factor], form: Float[np.ndarray, "terms terms"]
) -> OffDiagonalState:
    """Scale all summands so that K and L score 1 with themselves.

    Args:
        grams: sums over K and L, of which neither is 0 with itself.
        factors: what the bases of M leave out of K and L.
        form: Q.
    """
    n, norms = len(grams[0].terms), [np.sqrt(self_product(each, form)) for each in grams]
    wx, wy = (
        padded((factor.weights - factor.whole * each.trace / (n - 1)) / norm)
        for factor, each, norm in zip(factors, grams, norms, strict=True)
    )
    # With the trace taken off one side, there is none left to spread.
    spread = 0.0 if factors[0].whole or factors[1].whole else grams[0].trace * grams[1].trace / (n - 1)
    return OffDiagonalState(
        wx=wx,
        wy=wy,
        ax=grams[0].terms @ form / norms[0],
        ay=grams[1].terms / norms[1],
        constant=np.asarray(-spread / (norms[0] * norms[1])),
    )


def off_diagonal_core(own: OffDiagonalState, values: tuple[AnyArray, ...], perm: Permutation) -> Bounds:
    """Return T of one re-pairing; pure JAX."""
    sums, sizes = weighted_squares(values[0][None], own.wx, own.wy, impl="jax")
    taken = jnp.sum(own.ax * jnp.asarray(own.ay)[perm], axis=1)
    core = jnp.asarray(sums)[0] + own.constant + pairwise_sum(taken)
    return _around(core, sizes[0] + jnp.abs(own.constant) + jnp.sum(jnp.abs(taken)), core.dtype)


def off_diagonal_core_batch(own: OffDiagonalState, values: tuple[AnyArray, ...], perms: Permutations) -> Bounds:
    """Return T of a batch, from the host."""
    sums, sizes = weighted_squares(values[0], own.wx, own.wy, impl="numba")
    taken = np.sum(np.asarray(own.ax) * np.asarray(own.ay)[perms], axis=2, dtype=np.float64)
    constant = float(own.constant)
    cores = sums + constant + taken.sum(axis=1)
    return _around(cores, sizes + abs(constant) + np.abs(taken).sum(axis=1), values[0].dtype)


def _around(core: AnyArray, sizes: AnyArray, dtype: np.dtype) -> Bounds:
    """Return the interval of a core whose summands have such sizes, where it is wider than the tolerance."""
    xp = core.__array_namespace__()
    error = xp.maximum(ROUNDINGS * float(np.finfo(dtype).eps) * sizes - TOLERANCE, 0)
    return Bounds(core - error, core + error)
