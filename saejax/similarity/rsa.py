"""RSA: how alike the two matrices order their rows' distances, by rank correlation.

With d(i, j) the distance of rows i < j of x `[n, dx]`, and d'(i, j) that of y `[n, dy]`:

    rsa(x, y) = Spearman correlation of d and d' over the n (n - 1) / 2 pairs, ties at their mid-rank

Three distances. `rsa`, correlation: d = 1 - corr(x_i, x_j), the field's default. It is NOT invariant to rotation of
the columns: the correlation of two rows is taken about each row's own mean over the columns, and a rotation moves
that. `rsa_cosine`: d = 1 - cos(x_i, x_j), and `rsa_euclidean`: d = |x_i - x_j|, which are invariant to rotation.

Range -1 to 1, larger is more similar; the mean over all re-pairings is exactly 0. Invariances, on either side:

    correlation  adding a number to a row, scaling a row, permuting the columns
    cosine       scaling a row, rotating the columns
    euclidean    scaling the matrix, adding one vector to all rows, rotating the columns

Re-pairing y re-labels its distances and changes neither their ranks nor the ranks' mean and norm. So with a and b
centred ranks as whole numbers (`saejax.similarity.ranks`), found once,

    core = score = slope * T + intercept,   T = sum_{i < j} a[i, j] b[p_i, p_j]

is Pearson's correlation of a and b[p, p]: Spearman's with 32 bits a rank, and within `score_error` of it with 16.

Distances are rounded to 36 leading bits, so that those that are equal in exact arithmetic tie, and so do rows of one
direction, and of opposite ones (`saejax.similarity.distances`). Published code leaves such rows at 0 or a few 1e-16, in
an order that rounding decides. Its scores differ from ours by about (k / N)^1.5 / sqrt(N) with k such pairs of N: 1e-5
where rows of a small matrix are often repeated, 1e-2 and more with two columns, where half of all pairs of rows have
one direction.

Cost per permutation: n^2 / 2 gathered products by `saejax_kernels.pair_sums`; at n = 4,000 6 ms of one core with 32
bits and 4 ms with 16, against about 4,900 ms for ranking anew (`scripts/bench_null.py`). Ranking takes 1.5 s of one
core for each side, once. Float32 cores stay within 2e-7 of float64 ones. Tolerance: 1e-6.

Source: Kriegeskorte, Mur, Bandettini, "Representational similarity analysis", 2008.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, cast

import jax.numpy as jnp
import numpy as np
import scipy.stats
from jaxtyping import Float
from scipy.spatial.distance import cdist, pdist

from saejax.errors import InputError
from saejax.similarity.distances import TIE_BITS, Inner, Rows
from saejax.similarity.measure import Bounds, Measure, exactly
from saejax.similarity.moments import Moments, mantel_moments, matrix_sums
from saejax.similarity.pair import Pair, Side
from saejax.similarity.quadratic import once_per_side, quadratic
from saejax.similarity.ranks import LARGEST_EXACT, MOST_ROWS, Ranks, exact_ranks, quantised_ranks, ranking_bytes
from saejax.types import AnyArray, Permutation

FEW = 64  # rows among which some distances nearly always differ

NAMES: dict[Inner, str] = {"correlation": "rsa", "cosine": "rsa_cosine", "euclidean": "rsa_euclidean"}
INVARIANCES: dict[Inner, tuple[str, ...]] = {
    "correlation": ("scale", "row shift", "row scale", "column permutation"),
    "cosine": ("scale", "row scale", "rotation", "column permutation"),
    "euclidean": ("scale", "shift", "rotation", "column permutation"),
}


class RSAState(NamedTuple):
    """What makes a correlation of a pair sum.

    Attributes:
        slope: 1 over the product of both norms.
        intercept: what the means of both sides' numbers take away.
        error: bound on how far the correlation is from that of exact ranks.
    """

    slope: Float[AnyArray, ""]
    intercept: Float[AnyArray, ""]
    error: Float[AnyArray, ""]


@functools.cache
def rsa(*, inner: str = "correlation", rank_bits: int | None = None) -> Measure:
    """Return RSA with one of three distances inside and Spearman's correlation outside.

    Correlation is the field's default, and is NOT invariant to rotation of the columns; cosine and euclidean are.

    Args:
        inner: the distance of two rows: `correlation`, `cosine` or `euclidean`.
        rank_bits: bits that a rank is kept in. 32 are exact and take 8 n^2 bytes for both sides; 16 take 4 n^2 and
            move scores by at most `score_error`, 3e-5 for distances without ties. When None, 32 up to n = 4,096 and
            16 above.

    Raises:
        InputError: there is no such distance, or number of bits.
    """
    if inner not in NAMES:
        raise InputError(f"rsa: inner {inner!r} is unknown; choose among {', '.join(NAMES)}")
    if rank_bits not in (None, 16, 32):
        raise InputError(f"rsa: rank_bits {rank_bits!r} must be 16 or 32")
    inner = cast(Inner, inner)
    ranked = once_per_side(functools.partial(_ranked, inner, rank_bits))
    return Measure(
        name=NAMES[inner],
        larger_is_more_similar=True,
        invariances=INVARIANCES[inner],
        tolerance=1e-6,
        statistics=(
            quadratic(
                f"{inner} distance ranks",
                lambda side: ranked(side).matrix,
                lambda n: _bits(rank_bits, n) // 8,
                lambda side: ranking_bytes(side.values, _bits(rank_bits, len(side.values))),
            ),  # fmt: skip
        ),
        own=functools.partial(_own, ranked),
        core=_core,
        reference=functools.partial(_reference, inner),
        check=functools.partial(_check, inner, rank_bits),
        exact_moments=functools.partial(_moments, ranked),
        score_error=_score_error,
    )


def _bits(rank_bits: int | None, n: int) -> int:
    return rank_bits or (32 if n <= LARGEST_EXACT else 16)


def _ranked(inner: Inner, rank_bits: int | None, side: Side) -> Ranks:
    rows = Rows.of(side.values, inner)
    return exact_ranks(rows) if _bits(rank_bits, len(side.values)) == 32 else quantised_ranks(rows)


def _own(ranked: Callable[[Side], Ranks], pair: Pair) -> RSAState:
    a, b = ranked(pair.x), ranked(pair.y)
    slope = 1 / a.norm / b.norm
    intercept = -a.total / (pair.n * (pair.n - 1) / 2) * b.total * slope
    return RSAState(np.asarray(slope), np.asarray(intercept), np.asarray(a.angle + b.angle))


def _core(own: RSAState, values: tuple[AnyArray, ...], perm: Permutation) -> Bounds:
    """Return the correlation of the ranks in x and in y[perm]."""
    return exactly(jnp.asarray(values[0]) * own.slope + own.intercept)


def _moments(ranked: Callable[[Side], Ranks], pair: Pair, skewness: bool) -> Moments:
    """Return the moments of the correlation of the ranks as they are kept; the skewness is not known."""
    a, b = ranked(pair.x), ranked(pair.y)
    moments = mantel_moments(matrix_sums(a.matrix), matrix_sums(b.matrix))
    return moments.rescaled(1 / a.norm / b.norm)._replace(mean=0.0)


def _score_error(own: RSAState) -> float:
    return float(own.error)


def _check(inner: Inner, rank_bits: int | None, pair: Pair) -> None:
    """Refuse rows at no distance from others, and distances without an order.

    Raises:
        InputError: a row is constant (correlation) or zero (cosine); all distances of one side are equal; or there are
            more rows than 32 bits hold ranks of.
    """
    name = NAMES[inner]
    if _bits(rank_bits, pair.n) == 32 and pair.n > MOST_ROWS:
        raise InputError(f"{name}: {pair.n} rows have more pairs than rank_bits 32 can rank; use rank_bits 16")
    for side_name, side in pair.sides:
        _check_rows(inner, side_name, side)
        few = side.values[:: -(-pair.n // FEW)]
        if not any(_differ(Rows.of(values, inner)) for values in (few, side.values)):
            raise InputError(
                f"{name}: all {pair.n * (pair.n - 1) // 2} {inner} distances in {side_name} are equal, so they have no "
                f"order; give rows of more columns or leave {name} out of measures"
            )


def _check_rows(inner: Inner, side_name: str, side: Side) -> None:
    name, values = NAMES[inner], side.values
    if inner == "correlation":
        if values.shape[1] == 1:
            raise InputError(
                f"{name}: {side_name} has 1 column, and the correlation of two rows needs at least 2; give more "
                "columns, or ask for rsa_euclidean"
            )
        constant = np.flatnonzero(values.max(axis=1) == values.min(axis=1))
        if len(constant):
            raise InputError(
                f"{name}: row {constant[0]} of {side_name} is constant ({values[constant[0], 0]:.6g} in every column; "
                f"{len(constant)} such row(s)), so it has no correlation with the others; leave that pair out"
            )
    zero = np.flatnonzero(~values.any(axis=1))
    if inner == "cosine" and len(zero):
        raise InputError(
            f"{name}: row {zero[0]} of {side_name} is zero ({len(zero)} such row(s)), so it has no direction; leave "
            "that pair out"
        )


def _differ(rows: Rows) -> bool:
    """Say whether two distances differ by more than rounding."""
    smallest, largest = np.inf, -np.inf
    for distances in rows.upper():
        smallest, largest = min(smallest, distances.min()), max(largest, distances.max())
        if largest > smallest * (1 + 2.0 ** (2 - TIE_BITS)):
            return True
    return False


def _reference(inner: Inner, x: AnyArray, y: AnyArray) -> float:
    """Return the RSA of two matrices, straight from the definition."""
    ranks = [scipy.stats.rankdata(_distances(inner, side.values)) for _, side in Pair.of(x, y).sides]
    return float(np.corrcoef(ranks)[0, 1])


def _distances(inner: Inner, matrix: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "pairs"]:
    """Return the distances of rows i < j, or numbers that order as they do; rows of one direction are at 0."""
    if inner == "euclidean":
        return _rounded(pdist(matrix))
    rows = matrix - matrix.mean(axis=1, keepdims=True) if inner == "correlation" else matrix
    norms = np.linalg.norm(rows, axis=1)
    rows = rows / norms[:, None]
    noise = 1e-15 * np.linalg.norm(matrix, axis=1) / norms
    above = np.triu_indices(len(rows), 1)
    near, far = (cdist(rows, sign * rows, "sqeuclidean") / 2 for sign in (1, -1))
    for side in (near, far):
        side[side <= (noise[:, None] + noise) ** 2 / 2] = 0
    with np.errstate(divide="ignore"):
        return _rounded(np.where(near <= 1, near, 1 / far)[above])


def _rounded(distances: Float[np.ndarray, "pairs"]) -> Float[np.ndarray, "pairs"]:
    mantissas, exponents = np.frexp(distances)
    return np.ldexp(np.round(mantissas * 2.0 ** (TIE_BITS + 1)), exponents)


RSA = rsa()
RSA_COSINE = rsa(inner="cosine")
RSA_EUCLIDEAN = rsa(inner="euclidean")
