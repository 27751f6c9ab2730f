"""Mean squared canonical correlation, over all directions of both matrices.

With x `[n, dx]` and y `[n, dy]` column-centred, Ux `[n, kx]` an orthonormal basis of the columns of x, kx their rank,
and the same for y:

    cca_mean_squared(x, y) = ||Ux' Uy||_F^2 / min(kx, ky)

which is the trace of Sxx^-1 Sxy Syy^-1 Syx over min(kx, ky), with S the covariances. It is the share that linear
regression explains of the whitened smaller side.

Range 0 to 1, larger is more similar. Random pairings score max(kx, ky) / (n - 1) on average, exactly, and with
kx + ky above n - 1 no pairing scores below (kx + ky - n + 1) / min(kx, ky).
Invariant to every invertible linear map of the columns and to shifts, on either side: so each direction counts as
much as any other, also one whose variance is little more than rounding.

Cost per permutation: 2 n kx ky flop for the product of `saejax.similarity.bases`, then one pass over it. Float32 cores
stay within 2e-7 of float64 ones. Tolerance: 1e-6.

Source: Hotelling, "Relations between two sets of variates", 1936; as a similarity of representations "R^2_CCA" in
Kornblith, Norouzi, Lee, Hinton, "Similarity of neural network representations revisited", ICML 2019.
"""

import functools

import numpy as np
import scipy.linalg

from saejax.similarity.bases import BASES, padded
from saejax.similarity.measure import Measure, all_directions
from saejax.similarity.pair import Pair
from saejax.similarity.squares import SquaresState, squares_core, squares_core_batch, squares_moments
from saejax.types import AnyArray


def own(pair: Pair) -> SquaresState:
    """Return equal weights of all directions."""
    kx, ky = pair.x.rank, pair.y.rank
    return SquaresState(padded(np.full(kx, 1 / min(kx, ky))), padded(np.ones(ky)))


def reference(x: AnyArray, y: AnyArray) -> float:
    """Return the mean squared cosine of the principal angles between the columns of the centred matrices."""
    pair = Pair.of(x, y)
    angles = scipy.linalg.subspace_angles(pair.x.centred, pair.y.centred)
    return float(np.mean(np.cos(angles) ** 2))


CCA_MEAN_SQUARED = Measure(
    name="cca_mean_squared",
    larger_is_more_similar=True,
    invariances=("rotation", "scale", "shift", "linear map", "column scale", "column permutation"),
    tolerance=1e-6,
    statistics=(BASES,),
    own=own,
    core=squares_core,
    core_batch=squares_core_batch,
    reference=reference,
    constant=lambda pair: pair.saturated,
    directions=all_directions,
    exact_moments=functools.partial(squares_moments, own),
)
