"""Procrustes distances: how far apart two matrices stay after the best rotation of one onto the other.

With x `[n, dx]` and y `[n, dy]` column-centred, the inner product that the best orthogonal map Q leaves is

    max_Q <x Q, y> = ||x' y||_*,    core = ||x' y||_* / (||x|| ||y||),    0 <= core <= 1

with ||.||_* the sum of singular values and ||.|| the Frobenius norm. Three distances are made of it, all falling with
the core; smaller is more similar:

    procrustes                  min_Q ||x Q / ||x|| - y / ||y|| || = sqrt(2 - 2 core)          0 to sqrt(2)
    angular_procrustes          arccos(core)                                                   0 to pi / 2
    procrustes_size_and_shape   min_Q ||x Q - y|| = sqrt(||x||^2 + ||y||^2 - 2 ||x' y||_*)     at least 0

Reflections count as rotations. The narrower matrix gets columns of zeros, which change neither norms nor singular
values. With the singular value decompositions Ux Sx Vx' of x and Uy Sy Vy' of y, ||x' y[p]||_* = ||Sx M(p) Sy||_*,
M(p) the product of `saejax.similarity.bases`; all else is the same for every re-pairing p. Two rotated copies score 0
up to 3e-8 of their norms, the root of a rounding.
Invariant to rotation of the columns and to shifts, and but for `procrustes_size_and_shape` to scaling by one number,
on either side.

Cost per permutation: 2 n kx ky flop for M, k = min(n - 1, d), which others share, and the singular values of a kx x ky
matrix by `saejax.similarity.nuclear`: on two cores at n = 4,000 and d = 512 or 768, 7 or 13 ms and 5 or 19 ms. Float32
cores stay within 1e-7 of float64 ones on the CPU. Tolerance: 2e-6.

Sources: Ding, Denain, Steinhardt, "Grounding representation similarity with statistical testing", 2021 (procrustes);
Williams, Kunz, Kornblith, Linderman, "Generalized shape metrics on neural representations", 2021 (the other two);
Schönemann, "A generalized solution of the orthogonal Procrustes problem", 1966 (the best rotation).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float

from saejax.similarity.bases import BASES, padded
from saejax.similarity.measure import Bounds, Measure
from saejax.similarity.nuclear import GRADED, NuclearState, nuclear_core, nuclear_core_batch, nuclear_core_exact
from saejax.similarity.pair import Pair, Side
from saejax.types import AnyArray, Matrix, Permutation, Permutations


class ProcrustesState(NamedTuple):
    """What no re-pairing changes.

    Attributes:
        wx: singular values of centred x over the largest, so that no weighted product has one above 1.
        wy: those of y.
        most: the nuclear norm of a perfect match under these weights.
        norm_x: Frobenius norm of centred x.
        norm_y: that of y.
    """

    wx: Float[AnyArray, "kx"]
    wy: Float[AnyArray, "ky"]
    most: Float[AnyArray, ""]
    norm_x: Float[AnyArray, ""]
    norm_y: Float[AnyArray, ""]


def own(pair: Pair) -> ProcrustesState:
    """Return the weights of the directions of both matrices, and the norms."""
    wx, wy = (padded(side.singular / side.singular[0]) for _, side in pair.sides)
    most = np.linalg.norm(wx) * np.linalg.norm(wy)
    return ProcrustesState(wx, wy, np.asarray(most), np.asarray(pair.x.norm), np.asarray(pair.y.norm))


def core(own: ProcrustesState, values: tuple[AnyArray, ...], perm: Permutation) -> Bounds:
    """Return ||x' y[perm]||_* / (||x|| ||y||); pure JAX."""
    return nuclear_core(_nuclear(own), values, perm, GRADED)


def core_batch(own: ProcrustesState, values: tuple[AnyArray, ...], perms: Permutations) -> np.ndarray:
    """Return the cores of a batch, from the host."""
    return nuclear_core_batch(_nuclear(own), values, perms)


def core_exact(own: ProcrustesState, values: tuple[AnyArray, ...], perm: Permutation) -> float:
    """Return the core of one re-pairing in float64."""
    return nuclear_core_exact(_nuclear(own), values, perm)


def distance(own: ProcrustesState, core: AnyArray) -> AnyArray:
    """Return the distance of the matrices scaled to unit norm."""
    xp = core.__array_namespace__()
    return xp.asarray(xp.sqrt(2 * _shortfall(core)))


def angle(own: ProcrustesState, core: AnyArray) -> AnyArray:
    """Return the angle between the matrices, in radians."""
    xp = core.__array_namespace__()
    return xp.asarray(xp.acos(1 - _shortfall(core)))


def size_and_shape_distance(own: ProcrustesState, core: AnyArray) -> AnyArray:
    """Return the distance of the matrices as they stand."""
    xp = core.__array_namespace__()
    squared = (own.norm_x - own.norm_y) ** 2 + 2 * own.norm_x * own.norm_y * _shortfall(core)
    return xp.asarray(xp.sqrt(squared))


def _nuclear(own: ProcrustesState) -> NuclearState:
    return NuclearState(own.wx, own.wy, own.most)


def _shortfall(core: AnyArray) -> AnyArray:
    """Return how much a core lacks of a perfect match; rounding may leave it above 1."""
    xp = core.__array_namespace__()
    return xp.asarray(xp.clip(1 - core, 0, 1))


def _reference(score: Callable[[Matrix, Matrix], float], x: AnyArray, y: AnyArray) -> float:
    """Rotate x onto y, both centred and as wide as the wider, and score the two."""
    pair = Pair.of(x, y)
    width = max(side.values.shape[1] for _, side in pair.sides)
    left, right = (_widened(side, width) for _, side in pair.sides)
    rotation, _ = scipy.linalg.orthogonal_procrustes(left, right)
    return score(left @ rotation, right)


def _widened(side: Side, width: int) -> Matrix:
    return np.pad(side.centred, ((0, 0), (0, width - side.centred.shape[1])))


def _reference_distance(x: AnyArray, y: AnyArray) -> float:
    return _reference(lambda a, b: float(np.linalg.norm(a / np.linalg.norm(a) - b / np.linalg.norm(b))), x, y)


def _reference_angle(x: AnyArray, y: AnyArray) -> float:
    def score(a: Matrix, b: Matrix) -> float:
        cosine = np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b))
        return float(np.arccos(np.clip(cosine, -1, 1)))

    return _reference(score, x, y)


def _reference_size_and_shape(x: AnyArray, y: AnyArray) -> float:
    return _reference(lambda a, b: float(np.linalg.norm(a - b)), x, y)


def _procrustes(
    name: str,
    score_of: Callable[[ProcrustesState, AnyArray], AnyArray],
    reference: Callable[[AnyArray, AnyArray], float],
    invariances: tuple[str, ...],
    best: Callable[[Pair], float] = lambda pair: 0.0,
) -> Measure:
    return Measure(
        name=name, larger_is_more_similar=False, invariances=invariances, tolerance=2e-6, statistics=(BASES,),
        own=own, core=core, core_batch=core_batch, core_exact=core_exact, reference=reference, score_of=score_of,
        best=best,
    )  # fmt: skip


PROCRUSTES = _procrustes(
    "procrustes", distance, _reference_distance, ("rotation", "scale", "shift", "column permutation")
)
ANGULAR_PROCRUSTES = _procrustes(
    "angular_procrustes", angle, _reference_angle, ("rotation", "scale", "shift", "column permutation")
)
PROCRUSTES_SIZE_AND_SHAPE = _procrustes(
    "procrustes_size_and_shape", size_and_shape_distance, _reference_size_and_shape,
    ("rotation", "shift", "column permutation"), lambda pair: abs(pair.x.norm - pair.y.norm),
)  # fmt: skip
