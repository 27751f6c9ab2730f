"""GULP without ridge: how differently linear regression predicts from the one matrix and from the other.

With Px and Py `[n, n]` the orthogonal projections onto the columns of centred x `[n, dx]` and y `[n, dy]`, of rank kx
and ky:

    gulp(x, y) = ||Px - Py||_F^2 = kx + ky - 2 ||Ux' Uy||_F^2

the squared difference of the two fits, summed over an orthonormal basis of targets. Ux and Uy are orthonormal bases
of the columns. This is the squared GULP distance with lambda = 0 after centring; the normalisation of x and y that
the authors apply first changes nothing then. A ridge would make it depend on their scale.

Range |kx - ky| to kx + ky; SMALLER is more similar, 0 where x and y span the same directions. With kx + ky above
n - 1 no pairing scores above 2 (n - 1) - kx - ky. Published code refuses matrices with more columns than rows;
counting directions by rank needs no such limit, but with n - 1 of them on both sides every pairing scores 0.
Invariant to every invertible linear map of the columns and to shifts, on either side.

The core is ||Ux' Uy||_F^2 / min(kx, ky), that of `cca_mean_squared`, of which gulp is a falling linear function.

Cost per permutation: 2 n kx ky flop for the product of `saejax.similarity.bases`, then one pass over it. Float32 cores
stay within 2e-7 of float64 ones. Tolerance: 1e-6.

Source: Boix-Adsera, Lawrence, Stepaniants, Rigollet, "GULP: a prediction-based metric between representations",
NeurIPS 2022.
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float

from saejax.similarity.bases import BASES, padded
from saejax.similarity.measure import Measure, all_directions
from saejax.similarity.moments import Moments
from saejax.similarity.pair import Pair
from saejax.similarity.squares import SquaresState, squares_core, squares_core_batch, squares_moments
from saejax.types import AnyArray


class GulpState(NamedTuple):
    """What no re-pairing changes.

    Attributes:
        wx: 1 / min(kx, ky) for each direction of x.
        wy: 1 for each of y.
        total: kx + ky.
        least: min(kx, ky).
    """

    wx: Float[AnyArray, "kx"]
    wy: Float[AnyArray, "ky"]
    total: Float[AnyArray, ""]
    least: Float[AnyArray, ""]


def own(pair: Pair) -> GulpState:
    """Count directions."""
    kx, ky = pair.x.rank, pair.y.rank
    least = min(kx, ky)
    return GulpState(
        padded(np.full(kx, 1 / least)), padded(np.ones(ky)), np.asarray(float(kx + ky)), np.asarray(float(least))
    )


def score_of(own: GulpState, core: AnyArray) -> AnyArray:
    """Return the squared distance."""
    return core.__array_namespace__().maximum(own.total - 2 * own.least * core, 0)


def best(pair: Pair) -> float:
    """Return the squared distance of two subspaces of which one lies in the other."""
    return float(abs(pair.x.rank - pair.y.rank))


def exact_moments(pair: Pair, skewness: bool) -> Moments:
    """Return the exact moments of the squared distance over all re-pairings."""
    state = own(pair)
    moments = squares_moments(lambda _: SquaresState(state.wx, state.wy), pair, skewness)
    return moments.rescaled(-2 * float(state.least), float(state.total))


def reference(x: AnyArray, y: AnyArray) -> float:
    """Return the squared Frobenius distance of the two projections, each made in full."""
    bases = (scipy.linalg.orth(side.centred) for _, side in Pair.of(x, y).sides)
    projections = [basis @ basis.T for basis in bases]
    return float(np.linalg.norm(projections[0] - projections[1]) ** 2)


GULP = Measure(
    name="gulp",
    larger_is_more_similar=False,
    invariances=("rotation", "scale", "shift", "linear map", "column scale", "column permutation"),
    tolerance=1e-6,
    statistics=(BASES,),
    own=own,
    core=squares_core,
    core_batch=squares_core_batch,
    reference=reference,
    constant=lambda pair: pair.saturated,
    directions=all_directions,
    best=best,
    score_of=score_of,
    exact_moments=exact_moments,
)
