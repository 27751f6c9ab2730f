"""Debiased CKA: CKA without what each row contributes by its likeness to itself. The CKA to report.

With K[i, j] = x_i . x_j, x_i the rows of x `[n, dx]`, U-centring replaces off-diagonal entries by

    K~[i, j] = K[i, j] - sum_l K[i, l] / (n - 2) - sum_l K[l, j] / (n - 2) + sum_kl K[k, l] / ((n - 1) (n - 2))

(sums over off-diagonal entries alone) and the diagonal by 0, so that all rows of K~ sum to 0. With L the same of y
`[n, dy]`:

    cka_debiased(x, y) = sum_ij K~[i, j] L~[i, j] / (||K~||_F ||L~||_F)

Why this one: over all re-pairings its mean is exactly 0 and its variance exactly 2 / (n (n - 3)), whatever the data.
So scores of different matrices, widths and layers share one scale, z = score sqrt(n (n - 3) / 2), where the biased
`cka` has a null mean that grows with the number of columns and tends to 1. It is Pearson's correlation of the
U-centred similarities, the bias-corrected distance correlation of squared distances.

With columns of mean 0 (centring changes no K~), d and e the diagonals of K and L:

    <K~, L~> = ||x' y||_F^2 - n / (n - 2) d . e + tr K tr L / ((n - 1) (n - 2))

and ||x' y||_F^2 = sum_ab sx[a]^2 M[a, b]^2 sy[b]^2; the norms are those of K and L with themselves, which no
re-pairing changes. `saejax.similarity.off_diagonal` has the sum in the form that float32 bears.

Range -1 to 1, larger is more similar. Invariant to rotation of the columns, to scaling by one number and to shifts,
on either side. Refused where K~ is lost beside K: all rows orthogonal about some point, or one row thousands of times
larger than the others.

Cost per permutation: 2 n kx ky flop for the product of `saejax.similarity.bases`, then one pass over it and one over
the rows. Float32 cores stay within 4e-7 of float64 ones; where a row outweighs the others a hundred times or more, and
with fewer than ten rows, the core is an interval that may be wider than the tolerance. Tolerance: 1e-6.

Source: Song, Smola, Gretton, Bedo, Borgwardt, "Feature selection via dependence maximization", 2012 (the unbiased
inner product); Szekely and Rizzo, "Partial distance correlation with methods for dissimilarities", 2014 (U-centring);
Murphy, Zylberberg, Fyshe, "Correcting biased centered kernel alignment measures in biological and artificial neural
networks", 2024 (as a similarity of representations).
"""

import numpy as np
from jaxtyping import Float

from saejax.errors import InputError
from saejax.similarity.bases import BASES
from saejax.similarity.measure import Measure
from saejax.similarity.moments import Moments, ucentred_moments
from saejax.similarity.off_diagonal import (
    TOLERANCE,
    Factor,
    OffDiagonalState,
    gram,
    off_diagonal_core,
    off_diagonal_core_batch,
    off_diagonal_state,
    self_product,
)
from saejax.similarity.pair import Pair
from saejax.similarity.third_moment import ucentred_third
from saejax.types import AnyArray


def check(pair: Pair) -> None:
    """Refuse rows without similarities to one another.

    Raises:
        InputError: nothing is left of the similarities of a side after U-centring.
    """
    for name, side in pair.sides:
        if not self_product(gram(side.centred), _form(pair.n)):
            sizes = np.linalg.norm(side.centred, axis=1)
            raise InputError(
                f"cka_debiased: no similarity of different rows of {name} is left after centring: they are orthogonal "
                f"about some point, or row {np.argmax(sizes)}, at {sizes.max():.3g} from the mean (median "
                f"{np.median(sizes):.3g}), outweighs the others; scale that row or leave it out of x and y"
            )


def own(pair: Pair) -> OffDiagonalState:
    """Return weights of directions and the row terms, the squared distances from the mean."""
    grams = gram(pair.x.centred), gram(pair.y.centred)
    x, y = (Factor(side.singular**2, side.rank == pair.n - 1) for _, side in pair.sides)
    return off_diagonal_state(grams, (x, y), _form(pair.n))


def exact_moments(pair: Pair, skewness: bool) -> Moments:
    """Return the exact moments over all re-pairings: mean 0 and variance 2 / (n (n - 3)), whatever the data."""
    thirds = (ucentred_third(pair.x.centred), ucentred_third(pair.y.centred)) if skewness else None
    return ucentred_moments(pair.n, thirds)


def reference(x: AnyArray, y: AnyArray) -> float:
    """Return the correlation of the U-centred similarities, from the matrices in full."""
    gram_x, gram_y = (_u_centred(side.centred) for _, side in Pair.of(x, y).sides)
    return float(np.vdot(gram_x, gram_y) / (np.linalg.norm(gram_x) * np.linalg.norm(gram_y)))


def _form(n: int) -> Float[np.ndarray, "1 1"]:
    return np.array([[-n / (n - 2)]])


def _u_centred(matrix: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n n"]:
    n = len(matrix)
    similarities = matrix @ matrix.T
    np.fill_diagonal(similarities, 0)
    sums = similarities.sum(axis=0)
    similarities -= (sums[:, None] + sums) / (n - 2) - sums.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(similarities, 0)
    return similarities


CKA_DEBIASED = Measure(
    name="cka_debiased",
    larger_is_more_similar=True,
    invariances=("rotation", "scale", "shift", "column permutation"),
    tolerance=TOLERANCE,
    statistics=(BASES,),
    own=own,
    core=off_diagonal_core,
    core_batch=off_diagonal_core_batch,
    reference=reference,
    check=check,
    exact_moments=exact_moments,
)
