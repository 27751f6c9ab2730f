"""Projection-weighted CCA: canonical correlations averaged by how much of x lies along each.

With x `[n, dx]` and y `[n, dy]` column-centred, h_i `[n]` the canonical variates of x, of unit norm and orthogonal to
each other, rho_i their canonical correlations with y, and x_j the columns of x:

    alpha_i = sum_j |<h_i, x_j>|,    pwcca(x, y) = sum_i alpha_i rho_i / sum_i alpha_i,    i = 1 .. min(kx, ky)

kx and ky are the ranks. With Ux `[n, kx]` and Uy orthonormal bases of the columns, Ux' Uy = A diag(rho) B', the
variates are h_i = Ux a_i; with x = Ux diag(sx) Vx' their products with the columns are a_i' diag(sx) Vx', where no
re-pairing changes any but a_i. Asymmetric: weights come from x, whichever side is wider.

The code that its authors published, and copies of it, differ in two ways. They project x on the canonical
coefficients without the whitening that makes variates of them, and with the column means added back; the directions
so weighted are neither the variates nor orthogonal, and are made so by a QR decomposition. And with fewer columns in y
than in x they combine the columns of one side with coefficients of the other. A test builds variates from the
generalised eigenvalue problem and shows that these weights are theirs.

Where two canonical correlations are equal, any rotation of their variates serves as well, and weights depend on
which: the score is not determined by the matrices. So pairs are refused that have several correlations of 1 under
every pairing, which is where kx + ky exceeds n; unless all are 1, with n - 1 directions on one side, and the score
with them. Nearly equal ones leave float32 in doubt: the core is an interval that holds what rounding may make of it,
and the float64 core is that of LAPACK. A pairing that leaves float64 in doubt is refused when it is met.

Range 0 to 1, larger is more similar. Random pairings do not score near 0, see `saejax.similarity.svcca`.
Invariant, x: to scaling by one number, to shifts and to the order of the columns, but not to rotation, because
weights are sums over columns; y: to every invertible linear map and to shifts.

Cost per permutation: 2 n kx ky flop for the product of `saejax.similarity.bases`, then singular vectors: on the CPU by
LAPACK from a kx x kx matrix in float64, 100 ms on two cores with kx = 512 and ky = 768, elsewhere by
`saejax.similarity.jacobi`. Float32 cores stay within 3e-7 of float64 ones where no correlations are nearly equal.
Tolerance: 1e-6.

Source: Morcos, Raghu, Bengio, "Insights on representational similarity in neural networks with canonical
correlation", NeurIPS 2018, section 2.2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Float

from saejax.errors import InputError
from saejax.similarity.bases import BASES, PADDING
from saejax.similarity.jacobi import left_singular_vectors
from saejax.similarity.measure import Bounds, Measure, all_directions
from saejax.similarity.pair import Pair
from saejax.types import AnyArray, Permutation, Permutations

TOLERANCE = 1e-6
ROUNDINGS = 5.0  # by how many spacings of numbers an entry of M may be off


class PWCCAState(NamedTuple):
    """What no re-pairing changes.

    Attributes:
        loadings: diag(sx) Vx', what each direction of x adds to each column, over the norm of x.
        count: min(kx, ky).
    """

    loadings: Float[AnyArray, "kx dx"]
    count: Float[AnyArray, ""]


def check(pair: Pair) -> None:
    """Refuse pairs with several canonical correlations of 1, and others below, under every pairing.

    Raises:
        InputError: the ranks exceed the number of pairs in sum.
    """
    kx, ky = pair.x.rank, pair.y.rank
    if kx + ky > pair.n and max(kx, ky) < pair.n - 1:
        raise InputError(
            f"pwcca: {kx} directions of x and {ky} of y among {pair.n} pairs have {kx + ky - pair.n + 1} canonical "
            f"correlations of 1 under every pairing, whose weights are not determined; give at least {kx + ky} pairs, "
            f"or fewer columns"
        )


def own(pair: Pair) -> PWCCAState:
    """Return the loadings of x."""
    side = pair.x
    loadings = side.singular[:, None] * side.right / side.norm
    count = np.asarray(float(min(side.rank, pair.y.rank)))
    return PWCCAState(np.pad(loadings, ((0, -side.rank % PADDING), (0, 0))), count)


def core(own: PWCCAState, values: tuple[AnyArray, ...], perm: Permutation) -> Bounds:
    """Return the core of one re-pairing; pure JAX."""
    product = jnp.asarray(values[0])
    vectors = left_singular_vectors(product)
    rows, projections = (
        jnp.matmul(vectors, each, precision=jax.lax.Precision.HIGHEST) for each in (product, own.loadings)
    )
    return _weighted_mean(jnp.linalg.norm(rows, axis=1), projections, jnp.asarray(own.count), product.dtype)


def core_batch(own: PWCCAState, values: tuple[AnyArray, ...], perms: Permutations) -> Bounds:
    """Return the cores of a batch, one after another, from the host."""
    kx = int(np.any(own.loadings, axis=1).sum())
    loadings, count = np.asarray(own.loadings[:kx], np.float64), np.asarray(own.count)
    bounds = []
    for product in values[0]:
        product = np.asarray(product[:kx], np.float64)
        vectors = np.linalg.eigh(product @ product.T)[1].T
        correlations = np.linalg.norm(vectors @ product, axis=1)
        bounds.append(_weighted_mean(correlations, vectors @ loadings, count, np.float32))
    return Bounds(np.array([low for low, _ in bounds]), np.array([high for _, high in bounds]))


def core_exact(own: PWCCAState, values: tuple[AnyArray, ...], perm: Permutation) -> float:
    """Return the core of one re-pairing by a singular value decomposition in float64.

    Raises:
        InputError: correlations are so nearly equal that not even float64 tells their weights.
    """
    product = values[0][: int(np.any(own.loadings, axis=1).sum())]
    # Variates of x beyond those of y have correlation 0, and may be taken for one that counts with 0.
    left, found, _ = np.linalg.svd(product, full_matrices=len(product) > product.shape[1])
    correlations = np.pad(found, (0, left.shape[1] - len(found)))
    low, high = _weighted_mean(correlations, left.T @ own.loadings[: len(product)], own.count, np.float64)
    if high > low:
        raise InputError(
            f"pwcca: canonical correlations of a pairing are equal, so that their weights are not determined, and the "
            f"score is one from about {low:.4g} to {high:.4g}; leave pwcca out of measures"
        )
    return float(low)


def reference(x: AnyArray, y: AnyArray) -> float:
    """Return the PWCCA of two matrices from the variates themselves."""
    pair = Pair.of(x, y)
    check(pair)
    bases = [scipy.linalg.orth(side.centred) for _, side in pair.sides]
    left, correlations, _ = np.linalg.svd(bases[0].T @ bases[1], full_matrices=False)
    variates = bases[0] @ left
    weights = np.abs(variates.T @ pair.x.centred).sum(axis=1)
    return float(np.average(correlations, weights=weights))


def _weighted_mean(
    correlations: Float[AnyArray, "k"],
    projections: Float[AnyArray, "k dx"],
    count: Float[AnyArray, ""],
    dtype: type[np.floating] | np.dtype,
) -> Bounds:
    """Return the mean of the largest correlations, weighted by projections, and what rounding may make of it.

    An error of eps in M turns two variates towards each other by eps over the distance of their correlations, at
    most. To first order that moves their weights by the projections of the one with the signs of the other; where
    signs change, by the square of the angle times both weights; and never by more than sqrt(2) - 1 of these. The
    changes of different pairs are independent and add up by their squares.

    Args:
        correlations: one per variate, in any order.
        projections: <h_i, x_j>, 0 for rows of padding.
        count: how many correlations there are.
        dtype: in what M was computed.
    """
    xp = projections.__array_namespace__()
    weights = xp.sum(xp.abs(projections), axis=1)
    # A stable sort, so that a variate of correlation 0 comes before the padding.
    places = xp.argsort(xp.argsort(-correlations, stable=True))
    counted = xp.where(places < count, weights, 0)
    mean = xp.sum(counted * correlations) / xp.sum(counted)
    pull = xp.where(places < count, correlations - mean, 0)
    first = pull[:, None] * (xp.sign(projections) @ projections.T)
    second = xp.maximum(xp.abs(pull)[:, None], xp.abs(pull)) * (weights[:, None] + weights)
    error = ROUNDINGS * float(np.finfo(dtype).eps)
    meet = (weights[:, None] > 0) & (weights > 0) & ~xp.eye(len(weights), dtype=bool)
    angle = xp.where(meet, error / xp.maximum(xp.abs(correlations[:, None] - correlations), error), 0)
    changes = xp.minimum(angle * xp.abs(first - first.T) + angle**2 * second, (2**0.5 - 1) * second)
    doubt = xp.sqrt(xp.sum(changes**2) / 2) / xp.sum(counted)
    beyond = xp.maximum(doubt - TOLERANCE, 0)
    return Bounds(mean - beyond, mean + beyond)


PWCCA = Measure(
    name="pwcca",
    larger_is_more_similar=True,
    invariances=("scale", "shift", "column permutation"),
    invariances_of_y=("rotation", "scale", "shift", "linear map", "column scale", "column permutation"),
    tolerance=TOLERANCE,
    statistics=(BASES,),
    own=own,
    core=core,
    core_batch=core_batch,
    core_exact=core_exact,
    reference=reference,
    constant=lambda pair: pair.saturated,
    check=check,
    directions=all_directions,
)
