"""The nuclear norm of a weighted product of bases: the core of SVCCA and of every Procrustes distance.

    core = ||diag(wx) M diag(wy)||_* / most

with M the product of `saejax.similarity.bases`. Weights of 0 and 1 cut directions (SVCCA); singular values scaled to
unit norm give the inner product of two matrices after the best rotation (Procrustes). Either way no singular value
exceeds 1. On the host singular values come from `saejax_kernels.nuclear_norms`, on devices from matrix products with
a certificate, and one by one in float64 from LAPACK.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from saejax_kernels import nuclear_bounds, nuclear_norms

from saejax.similarity.bases import weighted
from saejax.similarity.measure import Bounds
from saejax.types import AnyArray, Permutation, Permutations

CANONICAL = 2e-4
"""Smallest canonical correlation that devices resolve; those of random pairings are mostly far above."""
GRADED = 1e-5
"""The same for products weighted by singular values, whose own fall off."""


class NuclearState(NamedTuple):
    """What no re-pairing changes.

    Attributes:
        wx: weights of the directions of x.
        wy: weights of those of y.
        most: the nuclear norm that counts as 1.
    """

    wx: Float[AnyArray, "kx"]
    wy: Float[AnyArray, "ky"]
    most: Float[AnyArray, ""]


def nuclear_core(
    own: NuclearState, values: tuple[AnyArray, ...], perm: Permutation, smallest: float = CANONICAL
) -> Bounds:
    """Return bounds of the core of one re-pairing; pure JAX.

    Args:
        own: weights.
        values: the product of bases.
        perm: the re-pairing, which the product has seen already.
        smallest: the smallest singular value that is resolved.
    """
    low, high = nuclear_bounds(weighted(values[0], own.wx, own.wy)[None], smallest=smallest)
    return Bounds(low[0] / own.most, high[0] / own.most)


def nuclear_core_batch(own: NuclearState, values: tuple[AnyArray, ...], perms: Permutations) -> np.ndarray:
    """Return the cores of a batch, from the host."""
    wx, wy = (np.trim_zeros(np.asarray(weights), "b") for weights in (own.wx, own.wy))
    return np.asarray(nuclear_norms(weighted(values[0], wx, wy), impl="lapack")) / float(own.most)


def nuclear_core_exact(own: NuclearState, values: tuple[AnyArray, ...], perm: Permutation) -> float:
    """Return the core of one re-pairing by a singular value decomposition in float64."""
    product = np.asarray(weighted(values[0], own.wx, own.wy))
    return float(np.linalg.svd(product, compute_uv=False).sum() / own.most)
