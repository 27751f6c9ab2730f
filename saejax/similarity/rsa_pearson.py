"""RSA with Pearson's correlation: how alike the two matrices space their rows, by correlation distance.

With s(i, j) the correlation of rows x_i and x_j over the columns of x `[n, dx]`, and s'(i, j) that of y `[n, dy]`:

    rsa_pearson(x, y) = Pearson correlation of 1 - s and 1 - s' over the n (n - 1) / 2 pairs i < j

Unlike ranks (`rsa`), correlations are inner products: with z_i the row x_i less its own mean, at unit length, s(i, j)
is z_i . z_j. So no n x n matrix is needed. Let A hold the rows z_i less their mean m, d_i = |A_i|^2 less the mean of
these, g_i = A_i . m, and B, e, h the same of y. The correlations, centred over pairs, have the inner product

    ||A' B[p]||_F^2 - tr A A' tr B B' / (n - 1) - d . e - 2 d . h - 2 g . e + 2 (n - 2) g . h      (e, h re-paired)

which is divided by its value for each side with itself, the same for all pairings. Taking m out first keeps float32
exact where all rows point the same way. `saejax.similarity.off_diagonal` sums it.

Range -1 to 1, larger is more similar; the mean over all re-pairings is exactly 0.
Invariant to shifting a row by one number, to scaling a row and to one order of the columns for another, on either
side. NOT invariant to rotation of the columns: the correlation of two rows is taken about each row's own mean over
the columns, and a rotation moves that.

Cost per permutation: 2 n dx dy flop for the product of the rows, with at most n - 1 columns on either side, then one
pass over it and one over the rows. Float32 cores stay within 3e-7 of float64 ones. Tolerance: 1e-6.

Source: Kriegeskorte, Mur, Bandettini, "Representational similarity analysis", 2008.
"""

import numpy as np
from jaxtyping import Float

from saejax.errors import InputError
from saejax.similarity.measure import Measure
from saejax.similarity.moments import Moments, factor_sums, mantel_moments
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
from saejax.similarity.pair import Pair, Side
from saejax.similarity.products import product
from saejax.types import AnyArray

SPREAD = 1e-9  # standard deviation of the correlations below which they are taken for equal


def check(pair: Pair) -> None:
    """Refuse rows that have no correlation with others, or all the same.

    Raises:
        InputError: a row is constant, or all correlations of one side are equal.
    """
    for name, side in pair.sides:
        constant = np.flatnonzero(np.ptp(side.values, axis=1) == 0)
        if len(constant):
            raise InputError(
                f"rsa_pearson: row {constant[0]} of {name} is constant ({side.values[constant[0], 0]:.6g} in every "
                f"column; {len(constant)} such row(s)), so it has no correlation with the others; leave that pair out"
            )
        pairs = pair.n * (pair.n - 1) // 2
        if self_product(gram(*_rows(side)), _form(pair.n)) <= 2 * pairs * SPREAD**2:
            raise InputError(
                f"rsa_pearson: all {pairs} correlations of rows of {name} are equal, so there is nothing to correlate; "
                "give rows of more columns or leave rsa_pearson out of measures"
            )


def own(pair: Pair) -> OffDiagonalState:
    """Return the weights of the factors and the row terms."""
    rows = [_rows(side) for _, side in pair.sides]
    weights = _factor(rows[0][0])[1], _factor(rows[1][0])[1]
    return off_diagonal_state((gram(*rows[0]), gram(*rows[1])), weights, _form(pair.n))


def factors(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """Return A and B at unit size or, where they have n columns or more, the eigenvectors of A A' and B B'."""
    return _factor(_rows(pair.x)[0])[0], _factor(_rows(pair.y)[0])[0]


def making(pair: Pair) -> int:
    """Return the bytes of standardised rows and factors of both sides; of A A' and its eigenvectors for wide ones."""
    wide = any(side.values.shape[1] >= pair.n for _, side in pair.sides)
    return 2 * sum(side.values.nbytes for _, side in pair.sides) + wide * 40 * pair.n**2


def exact_moments(pair: Pair, skewness: bool) -> Moments:
    """Return the exact mean, 0, and SD over all re-pairings; the skewness has no closed form here."""
    # Correlations less one number: A A' + g 1' + 1 g'. In full they would cancel where all rows point the same way.
    a, b = (factor_sums(*_rows(side)) for _, side in pair.sides)
    moments = mantel_moments(a, b)
    # Pearson's correlation over i < j, q / 2 the sum of squares of either side: mean 0 by its own centring.
    return moments.rescaled(2 / np.sqrt(a.squares * b.squares))._replace(mean=0.0)


def reference(x: AnyArray, y: AnyArray) -> float:
    """Return the RSA of two matrices, straight from the definition."""
    pair = Pair.of(x, y)
    check(pair)
    above = np.triu_indices(pair.n, 1)
    distances = np.stack([1 - np.corrcoef(side.values)[above] for _, side in pair.sides])
    return float(np.corrcoef(distances)[0, 1])


def _rows(side: Side) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n"]]:
    """Return A and g."""
    rows = side.values - side.values.mean(axis=1, keepdims=True)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    mean = rows.mean(axis=0)
    rows -= mean
    return rows, rows @ mean


def _factor(rows: Float[np.ndarray, "n d"]) -> tuple[Float[np.ndarray, "n k"], Factor]:
    n, d = rows.shape
    if d < n:
        size = np.linalg.norm(rows)
        return rows / size, Factor(np.full(d, size**2), whole=False)
    similarities = rows @ rows.T
    # Rows of mean 0 make the constant vector an eigenvector; a negative eigenvalue puts it first, to be dropped.
    values, vectors = np.linalg.eigh(similarities - np.trace(similarities) / n)
    return vectors[:, 1:], Factor(values[1:], whole=True)


def _form(n: int) -> Float[np.ndarray, "2 2"]:
    return np.array([[-1.0, -2.0], [-2.0, 2.0 * (n - 2)]])


RSA_PEARSON = Measure(
    name="rsa_pearson",
    larger_is_more_similar=True,
    invariances=("scale", "column permutation", "row shift", "row scale"),
    tolerance=TOLERANCE,
    statistics=(product("product of standardised rows", factors, making),),
    own=own,
    core=off_diagonal_core,
    core_batch=off_diagonal_core_batch,
    reference=reference,
    check=check,
    exact_moments=exact_moments,
)
