"""Aligned cosine: how alike the directions of paired rows are after the best rotation of one matrix onto the other.

With x `[n, dx]` and y `[n, dy]` as they stand (not centred), the narrower with columns of zeros to the width of the
other, and Q the orthogonal matrix (reflections count) that brings x nearest to y:

    Q = argmin ||x Q - y|| = U V'  of the singular value decomposition  x' y = U S V'
    aligned_cosine(x, y) = mean over rows of cos(x_i Q, y_i) = <Q, x^' y^> / n

with x^ and y^ the rows scaled to unit length. A rotation keeps lengths, so only the part of Q between directions that
x and y have counts: with A the coordinates of x in its right singular vectors and B those of y, and A^ and B^ their
rows at unit length, the score is the inner product of A^' B^ with the polar factor of A' B. A re-pairing p changes
the two products A' B[p] and A^' B^[p]; all else stays. Where rows are equally long, as those of most decoders are, the
two products are one and the score is its nuclear norm. Where they are not, long rows decide Q, under which all rows
count equally.

Range -1 to 1, larger is more similar. A random pairing does not score 0, because Q is fitted to it: the null mean
grows with d / n.
Invariant to rotation of the columns and to scaling by one number, on either side.

Numerics. Directions of little weight turn Q without moving x' y much, and may matter to the score where rows differ in
length: found in float32, Q was off by up to 0.1 in score with one row 1,000 times as long as the others. A float32
product serves, because its roundings are relative to the weights of the directions; Q is found from it in float64
whatever the device, on the CPU by LAPACK, elsewhere by matrix products (`saejax_kernels.polar_factors`). Float32 cores
then stay within 1e-7 of float64 ones with rows up to ten times as long as others, and within 2e-6 at the 1,000 times
that is let in. Where x' y[p] lacks a direction that both x and y have, neither Q nor the score is determined.
Tolerance: 1e-5.

Cost per permutation: 4 n kx ky flop for the two products, k = min(n, d), and a singular value decomposition. On two
cores at n = 4,000 and d = 512 or 768 the products take 23 or 49 ms, the decomposition 75 or 240 ms, the nuclear norm
that replaces it for equally long rows 11 or 30 ms. On a device 41 steps of 4 k^3 flop in float64, which the GPUs of
data centres do at full speed, others at 1/32 of it or less, and TPUs by emulation.

Sources: the measure as in Klabunde et al., "ReSi: a comprehensive benchmark for representational similarity
measures", 2024; the rotation: Schönemann, "A generalized solution of the orthogonal Procrustes problem", 1966.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from saejax_kernels import nuclear_norms, polar_factors
from saejax_kernels.summation import pairwise_sum

from saejax.errors import InputError
from saejax.similarity.measure import Bounds, CrossStatistic, Measure, exactly
from saejax.similarity.pair import Pair
from saejax.similarity.products import PADDING, multiply, multiply_batch, multiply_exact, pad_columns
from saejax.types import AnyArray, Permutation, Permutations

# Relative difference of lengths up to which rows are equally long; it moves no score by more than twice as much.
EVEN = 1e-6

# Longest row over shortest up to which float32 products decide the score to within the tolerance.
MOST_LENGTHS = 1e3


class FactorsState(NamedTuple):
    """What no re-pairing changes.

    Attributes:
        a: rows of x in its right singular vectors, divided by sqrt(n) times the longest.
        b: the same for y.
        unit_a: the same directions, every row of length 1 / sqrt(n).
        unit_b: the same for y.
    """

    a: Float[AnyArray, "n kx"]
    b: Float[AnyArray, "n ky"]
    unit_a: Float[AnyArray, "n kx"]
    unit_b: Float[AnyArray, "n ky"]


class Products(NamedTuple):
    """What a re-pairing changes.

    Attributes:
        raw: A' B[p], which decides the rotation.
        unit: A^' B^[p] / n, which is scored under it.
    """

    raw: Float[AnyArray, "*perm kx ky"]
    unit: Float[AnyArray, "*perm kx ky"]


class AlignedCosineState(NamedTuple):
    """What no re-pairing changes.

    Attributes:
        even: 1 where the rows of x are equally long and so are those of y, 0 elsewhere.
    """

    even: Float[AnyArray, ""]


def check(pair: Pair) -> None:
    """Refuse rows without a direction, and rows so unlike in length that rounding would decide the score.

    Raises:
        InputError: a row is zero, or the lengths of the rows of one matrix span more than `MOST_LENGTHS`.
    """
    for name, side in pair.sides:
        zero = np.flatnonzero(~side.values.any(axis=1))
        if len(zero):
            raise InputError(
                f"aligned_cosine: row {zero[0]} of {name} is 0 in every column ({len(zero)} such row(s)), so it has "
                "no direction; leave that pair out"
            )
        lengths = _lengths(side.values)
        shortest, longest = np.argmin(lengths), np.argmax(lengths)
        if lengths[longest] > MOST_LENGTHS * lengths[shortest]:
            raise InputError(
                f"aligned_cosine: rows of {name} have lengths from {lengths[shortest]:.3g} (row {shortest}) to "
                f"{lengths[longest]:.3g} (row {longest}), a ratio above {MOST_LENGTHS:g}, where the long rows leave "
                "the rotation of the short ones to rounding; leave out those pairs"
            )


def prepare(pair: Pair, extent: tuple[int, int] | None = None) -> FactorsState:
    """Find the factors of both products, in float64; 16 n (kx + ky) bytes.

    Args:
        pair: the matrices.
        extent: of no meaning here.
    """
    (a, unit_a), (b, unit_b) = (_factors(side.values) for _, side in pair.sides)
    return FactorsState(a, b, unit_a, unit_b)


def own(pair: Pair) -> AlignedCosineState:
    """Return whether rows are equally long."""
    lengths = (_lengths(side.values) for _, side in pair.sides)
    return AlignedCosineState(np.asarray(float(all(np.ptp(each) <= EVEN * each.max() for each in lengths))))


def core(own: AlignedCosineState, values: tuple[Products, ...], perm: Permutation) -> Bounds:
    """Return the mean cosine of one re-pairing, the rotation found in float64; pure JAX."""
    raw, unit = values[0]
    with jax.enable_x64(True):
        rotation = polar_factors(jnp.asarray(raw, jnp.float64)[None])[0]
        cosine = pairwise_sum((rotation * jnp.asarray(unit, jnp.float64)).reshape(-1))
    return exactly(cosine.astype(unit.dtype))


def core_batch(own: AlignedCosineState, values: tuple[Products, ...], perms: Permutations) -> np.ndarray:
    """Return the mean cosines of a batch, from the host."""
    if own.even:
        return np.asarray(nuclear_norms(values[0].raw, impl="lapack"))
    raw, unit = (np.asarray(product, np.float64) for product in values[0])
    left, _, right = np.linalg.svd(raw, full_matrices=False)
    return np.sum(left @ right * unit, axis=(1, 2))


def core_exact(own: AlignedCosineState, values: tuple[Products, ...], perm: Permutation) -> float:
    """Return the mean cosine of one re-pairing in float64."""
    raw, unit = (np.asarray(product) for product in values[0])
    left, _, right = np.linalg.svd(raw, full_matrices=False)
    return float(np.vdot(left @ right, unit))


def reference(x: AnyArray, y: AnyArray) -> float:
    """Return the aligned cosine of two matrices, straight from the definition."""
    pair = Pair.of(x, y)
    check(pair)
    width = max(side.values.shape[1] for _, side in pair.sides)
    left, right = (np.pad(side.values, ((0, 0), (0, width - side.values.shape[1]))) for _, side in pair.sides)
    u, _, vt = np.linalg.svd(left.T @ right)
    rotated = left @ (u @ vt)
    lengths = np.linalg.norm(rotated, axis=1) * np.linalg.norm(right, axis=1)
    return float(np.mean(np.sum(rotated * right, axis=1) / lengths))


def _factors(matrix: Float[np.ndarray, "n d"]) -> tuple[np.ndarray, np.ndarray]:
    lengths = _lengths(matrix)
    _, _, right = np.linalg.svd(matrix, full_matrices=False)
    coordinates = pad_columns(matrix @ right.T) / np.sqrt(len(matrix))
    return coordinates / lengths.max(), coordinates / lengths[:, None]


def _lengths(matrix: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n"]:
    largest = np.abs(matrix).max()
    return largest * np.linalg.norm(matrix / largest, axis=1)


def _compute(state: FactorsState, perm: Permutation) -> Products:
    return Products(multiply((state.a, state.b), perm), multiply((state.unit_a, state.unit_b), perm))


def _compute_batch(state: FactorsState, perms: Permutations) -> Products:
    return Products(multiply_batch((state.a, state.b), perms), multiply_batch((state.unit_a, state.unit_b), perms))


def _compute_exact(state: FactorsState, perm: Permutation) -> Products:
    return Products(multiply_exact((state.a, state.b), perm), multiply_exact((state.unit_a, state.unit_b), perm))


def _size(pair: Pair) -> int:
    return 24 * pair.n * sum(min(side.values.shape) + PADDING for _, side in pair.sides)


def _making(pair: Pair) -> int:
    """Return the bytes of finding the larger decomposition."""
    return max(side.decomposition_bytes + side.decomposing_bytes for _, side in pair.sides)


def _scratch(state: FactorsState) -> int:
    """Return the bytes of two products, of the rows gathered for them, and of what the polar factor takes."""
    n, kx, ky = len(state.a), state.a.shape[1], state.b.shape[1]
    return 8 * n * ky + 40 * kx * ky + 32 * min(kx, ky) ** 2


PRODUCTS = CrossStatistic(
    name="products of rows and of unit rows", prepare=prepare, compute=_compute, size=_size, making=_making,
    scratch=_scratch, compute_batch=_compute_batch, compute_exact=_compute_exact,
)  # fmt: skip

ALIGNED_COSINE = Measure(
    name="aligned_cosine",
    larger_is_more_similar=True,
    invariances=("rotation", "scale", "column permutation"),
    tolerance=1e-5,
    statistics=(PRODUCTS,),
    own=own,
    core=core,
    reference=reference,
    check=check,
    core_batch=core_batch,
    core_exact=core_exact,
)
