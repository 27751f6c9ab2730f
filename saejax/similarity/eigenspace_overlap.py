"""Eigenspace overlap: how much of the space of columns the two matrices share, columns not centred.

With U and U' orthonormal bases of the columns of x `[n, dx]` and y `[n, dy]` as they are:

    eigenspace_overlap(x, y) = ||U' U'||_F^2 / max(dx, dy)

(the trace of the product of both projections). Columns count, not ranks: rank-deficient matrices score below 1 even
with themselves.

No product of its own is needed. With Ux and Uy bases of the CENTRED columns, U lies in the span of [1 / sqrt n, Ux],
and is all of it, or all but one direction wx (a unit vector of 1 + kx coefficients). With D(p) = diag(1, M(p)) and M
the product of `saejax.similarity.bases`, that direction comes off:

    ||U' U'[p]||_F^2 = ||D||_F^2 - ||D' wx||^2 - ||D wy||^2 + (wx' D wy)^2

Which it is, follows from the column means: with x = Ux diag(sx) Vx' + 1 m', wx is proportional to
(1, -sqrt(n) diag(1 / sx) Vx m) where m lies in the span of Vx, and is left out (0) where it does not.

Range 0 to 1, larger is more similar. The constant direction, if both matrices have it, is shared by all pairings.
Invariant to every invertible linear map of the columns, on either side; not to shifts.

Cost per permutation: 2 n kx ky flop for the product of `saejax.similarity.bases`, then one pass over it and two
products with a vector. Float32 cores stay within 2e-7 of float64 ones. Tolerance: 1e-6.

Source: May, Zhang, Dao, Re, "On the downstream performance of compressed word embeddings", NeurIPS 2019.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Float
from saejax_kernels import weighted_squares
from saejax_kernels.summation import pairwise_sum

from saejax.similarity.bases import BASES, padded
from saejax.similarity.measure import Bounds, Measure, all_directions, exactly
from saejax.similarity.moments import Moments, factor_sums, uncentred_moments
from saejax.similarity.pair import EPSILON, Pair, Side
from saejax.types import AnyArray, Permutation


class OverlapState(NamedTuple):
    """What no re-pairing changes.

    Attributes:
        mask_x: 1 for each centred direction of x.
        mask_y: the same for y.
        wx: the direction that the columns of x lack, among the centred ones; 0 where they lack none.
        wy: the same for y.
        constant_x: its coefficient of the constant direction.
        constant_y: the same for y.
        columns: max(dx, dy).
    """

    mask_x: Float[AnyArray, "kx"]
    mask_y: Float[AnyArray, "ky"]
    wx: Float[AnyArray, "kx"]
    wy: Float[AnyArray, "ky"]
    constant_x: Float[AnyArray, ""]
    constant_y: Float[AnyArray, ""]
    columns: Float[AnyArray, ""]


def own(pair: Pair) -> OverlapState:
    """Find the directions that the columns of either side lack."""
    (constant_x, wx), (constant_y, wy) = (_lacking(side) for _, side in pair.sides)
    columns = max(side.values.shape[1] for _, side in pair.sides)
    return OverlapState(
        padded(np.ones(len(wx))), padded(np.ones(len(wy))), padded(wx), padded(wy), np.asarray(constant_x),
        np.asarray(constant_y), np.asarray(float(columns)),
    )  # fmt: skip


def core(own: OverlapState, values: tuple[AnyArray, ...], perm: Permutation) -> Bounds:
    """Return the overlap of one re-pairing; pure JAX."""
    seen_x = jnp.matmul(own.wx, values[0], precision=jax.lax.Precision.HIGHEST)
    seen_y = jnp.matmul(values[0], own.wy, precision=jax.lax.Precision.HIGHEST)
    both = own.constant_x * own.constant_y + pairwise_sum(jnp.asarray(own.wx) * seen_y)
    squares, _ = weighted_squares(values[0][None], own.mask_x, own.mask_y, impl="jax")
    whole = 1 + jnp.asarray(squares)[0]
    lacking_x = own.constant_x**2 + pairwise_sum(jnp.square(seen_x))
    lacking_y = own.constant_y**2 + pairwise_sum(jnp.square(seen_y))
    return exactly((whole - lacking_x - lacking_y + both**2) / own.columns)


def best(pair: Pair) -> float:
    """Return the overlap of two subspaces of which one lies in the other, of as many directions as there can be."""
    widths = [side.values.shape[1] for _, side in pair.sides]
    return min(*widths, pair.n) / max(widths)


def exact_moments(pair: Pair, skewness: bool) -> Moments:
    """Return the exact mean and SD over all re-pairings; the skewness has no closed form here."""
    sums = [factor_sums(scipy.linalg.orth(side.values)) for _, side in pair.sides]
    return uncentred_moments(*sums).rescaled(1 / max(side.values.shape[1] for _, side in pair.sides))


def reference(x: AnyArray, y: AnyArray) -> float:
    """Return the overlap of two matrices, straight from the definition."""
    sides = [side.values for _, side in Pair.of(x, y).sides]
    overlap = np.linalg.norm(scipy.linalg.orth(sides[0]).T @ scipy.linalg.orth(sides[1])) ** 2
    return float(overlap / max(side.shape[1] for side in sides))


def _lacking(side: Side) -> tuple[float, Float[np.ndarray, "k"]]:
    """Return the direction of span(1, centred columns) that the columns lack: constant and centred coefficients."""
    n, d = side.values.shape
    mean = np.sqrt(n) * side.values.mean(axis=0)
    direction = np.concatenate([[1.0], -(side.right @ mean) / side.singular])
    direction /= np.linalg.norm(direction)
    # What the columns have of it, 0 but for rounding where they lack it; the largest singular value is at most this.
    has = direction[0] * mean + (direction[1:] * side.singular) @ side.right
    if np.linalg.norm(has) > max(n, d) * EPSILON * np.hypot(side.singular[0], np.linalg.norm(mean)):
        direction[:] = 0
    return float(direction[0]), direction[1:]


EIGENSPACE_OVERLAP = Measure(
    name="eigenspace_overlap",
    larger_is_more_similar=True,
    invariances=("rotation", "scale", "linear map", "column scale", "column permutation"),
    tolerance=1e-6,
    statistics=(BASES,),
    own=own,
    core=core,
    reference=reference,
    directions=all_directions,
    best=best,
    constant=lambda pair: any(np.linalg.matrix_rank(side.values) == pair.n for _, side in pair.sides),
    exact_moments=exact_moments,
)
