"""CKA: the cosine of the angle between the two matrices of inner products of rows, with linear kernel.

With x `[n, dx]` and y `[n, dy]` column-centred:

    cka(x, y) = ||x' y||_F^2 / (||x' x||_F ||y' y||_F) = <x x', y y'> / (||x x'||_F ||y y'||_F)

With x = Ux diag(sx) Vx', ||x' y||_F^2 is the sum of sx[a]^2 M[a, b]^2 sy[b]^2, M = Ux' Uy. This is the estimator as
first published, also called the RV coefficient. It is biased: each row's product with itself counts, so random
pairings score trK trL / ((n - 1) ||K||_F ||L||_F) on average (K = x x', L = y y'), which tends to 1 as the columns
outnumber the rows. `cka_debiased` leaves those products out and is the one to report.

Range 0 to 1, larger is more similar.
Invariant to rotation of the columns, to scaling by one number and to shifts, on either side.

Cost per permutation: 2 n kx ky flop for the product of `saejax.similarity.bases`, then one pass over it. Float32 cores
stay within 2e-7 of float64 ones. Tolerance: 1e-6.

Source: Kornblith, Norouzi, Lee, Hinton, "Similarity of neural network representations revisited", ICML 2019; Robert
and Escoufier, "A unifying tool for linear multivariate statistical methods: the RV-coefficient", 1976.
"""

import functools

import numpy as np

from saejax.similarity.bases import BASES, padded
from saejax.similarity.measure import Measure
from saejax.similarity.pair import Pair
from saejax.similarity.squares import SquaresState, squares_core, squares_core_batch, squares_moments
from saejax.types import AnyArray


def own(pair: Pair) -> SquaresState:
    """Weigh directions by their share of ||x' x||_F and ||y' y||_F."""
    squares = (side.singular**2 for _, side in pair.sides)
    return SquaresState(*(padded(each / np.linalg.norm(each)) for each in squares))


def reference(x: AnyArray, y: AnyArray) -> float:
    """Return the CKA of two matrices, from their Gram matrices."""
    gram_x, gram_y = (side.centred @ side.centred.T for _, side in Pair.of(x, y).sides)
    return float(np.vdot(gram_x, gram_y) / (np.linalg.norm(gram_x) * np.linalg.norm(gram_y)))


CKA = Measure(
    name="cka",
    larger_is_more_similar=True,
    invariances=("rotation", "scale", "shift", "column permutation"),
    tolerance=1e-6,
    statistics=(BASES,),
    own=own,
    core=squares_core,
    core_batch=squares_core_batch,
    reference=reference,
    exact_moments=functools.partial(squares_moments, own),
)
