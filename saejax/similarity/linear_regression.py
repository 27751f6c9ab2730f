"""Linear regression: the share of the variance of x that y explains.

With x `[n, dx]` and y `[n, dy]` column-centred and Uy `[n, ky]` an orthonormal basis of the columns of y:

    linear_regression(x, y) = R^2 = ||Uy' x||_F^2 / ||x||_F^2

the fraction of variance explained by the least-squares fit of every column of x from all columns of y. With
x = Ux diag(sx) Vx' it is the sum of sx[a]^2 M[a, b]^2 over sx[a]^2, M = Ux' Uy.

Range 0 to 1, larger is more similar. Asymmetric: x is predicted, y predicts. Random pairings score ky / (n - 1) on
average, exactly, and 1 where y has as many directions as n - 1.
Invariant to rotation of the columns, to scaling by one number and to shifts on either side; on the side of y also to
every invertible linear map.

Cost per permutation: 2 n kx ky flop for the product of `saejax.similarity.bases`, then one pass over it. Float32 cores
stay within 2e-7 of float64 ones. Tolerance: 1e-6.

Source: Kornblith, Norouzi, Lee, Hinton, "Similarity of neural network representations revisited", ICML 2019, section 3.
"""

import functools

import numpy as np

from saejax.similarity.bases import BASES, padded
from saejax.similarity.measure import Measure, all_directions
from saejax.similarity.pair import Pair
from saejax.similarity.squares import SquaresState, squares_core, squares_core_batch, squares_moments
from saejax.types import AnyArray


def own(pair: Pair) -> SquaresState:
    """Weigh directions of x by their variance, those of y equally."""
    return SquaresState(padded((pair.x.singular / pair.x.norm) ** 2), padded(np.ones(pair.y.rank)))


def reference(x: AnyArray, y: AnyArray) -> float:
    """Return R^2 of the least-squares fit of x from y."""
    pair = Pair.of(x, y)
    coefficients, *_ = np.linalg.lstsq(pair.y.centred, pair.x.centred)
    residual = pair.x.centred - pair.y.centred @ coefficients
    return float(1 - np.sum(residual**2) / np.sum(pair.x.centred**2))


LINEAR_REGRESSION = Measure(
    name="linear_regression",
    larger_is_more_similar=True,
    invariances=("rotation", "scale", "shift", "column permutation"),
    invariances_of_y=("rotation", "scale", "shift", "linear map", "column scale", "column permutation"),
    tolerance=1e-6,
    statistics=(BASES,),
    own=own,
    core=squares_core,
    core_batch=squares_core_batch,
    reference=reference,
    constant=lambda pair: pair.y.rank >= pair.n - 1,
    directions=all_directions,
    exact_moments=functools.partial(squares_moments, own),
)
