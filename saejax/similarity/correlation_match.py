"""Correlation matches: how well single columns of one matrix find partners among the columns of the other.

With x `[n, dx]`, y `[n, dy]` and C `[dx, dy]` the Pearson correlations of their columns over the rows:

    soft_correlation_match = (mean over columns of x of max_b C[a, b] + mean over columns of y of max_a C[a, b]) / 2
    hard_correlation_match = max over one-to-one assignments a -> b(a) of mean of C[a, b(a)]

the hard one with min(dx, dy) pairs, the columns left over counting nothing. With Zx and Zy the columns centred and of
unit length, C = Zx' Zy, and a re-pairing p changes it to Zx' Zy[p]. The two measures share that product. It is not
made from the product of `saejax.similarity.bases`: the way back from bases to columns costs two more products, which
pays only if n is far above dx + dy and other measures need the bases anyway, and a column of little variance beside
others would be lost in them.

Range -1 to 1, larger is more similar. Neither has a null mean of 0: the largest of d correlations over n rows is of
the order sqrt(2 ln d / n) for any re-pairing.
Invariant to shifts, to scaling by one positive number or each column by its own, and to the order of the columns, on
either side. NOT to rotation: they ask whether the axes themselves agree.

Cost per permutation: 2 n dx dy flop for C; on two cores at n = 4,000 and d = 512 or 768, 7 or 13 ms. Soft adds a pass
over C, 0.1 or 0.3 ms. Hard adds the assignment: on the CPU by scipy, one matrix per core, 3 or 15 ms; on a device by
the Hungarian algorithm of optax, which takes one step after another however many matrices there are, and up to d^2 / 2
of them. (A call back to scipy from the device would be shorter, but hangs in jaxlib 0.10 with several CPU devices.)
Both find an optimum, and float32 scores stay within 1e-7 of float64 ones. Tolerance: 1e-6.

Source: Li, Yosinski, Clune, Lipson, Hopcroft, "Convergent learning: do different neural networks learn the same
representations?", 2015; the mean of both directions as in Klabunde et al., "ReSi", 2024.
"""

import dataclasses
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import Float
from saejax_kernels.summation import pairwise_sum

from saejax.errors import InputError
from saejax.similarity.measure import Bounds, Measure, exactly
from saejax.similarity.pair import Pair
from saejax.similarity.products import PADDING, product
from saejax.types import AnyArray, Permutation, Permutations

# Added to correlations, so that every column there is a better match than a column of padding, which gets 0.
LIFT = 2


class MatchState(NamedTuple):
    """What no re-pairing changes.

    Attributes:
        real_x: 1 for every column of x, 0 for padding.
        real_y: the same for y.
    """

    real_x: Float[AnyArray, "kx"]
    real_y: Float[AnyArray, "ky"]


def own(pair: Pair) -> MatchState:
    """Return which rows and columns of the product are correlations."""
    widths = (side.values.shape[1] for _, side in pair.sides)
    return MatchState(*(np.pad(np.ones(width), (0, -width % PADDING)) for width in widths))


def soft_core(own: MatchState, values: tuple[AnyArray, ...], perm: Permutation) -> Bounds:
    """Return the mean largest correlation of a column of either side; pure JAX."""
    real_x, real_y = jnp.asarray(own.real_x), jnp.asarray(own.real_y)
    real = (real_x[:, None] > 0) & (real_y > 0)
    correlations = jnp.where(real, values[0], -LIFT)
    best_x = jnp.max(correlations, axis=1) * real_x
    best_y = jnp.max(correlations, axis=0) * real_y
    return exactly((pairwise_sum(best_x) / real_x.sum() + pairwise_sum(best_y) / real_y.sum()) / 2)


def hard_core(own: MatchState, values: tuple[AnyArray, ...], perm: Permutation) -> Bounds:
    """Return the mean correlation of the best one-to-one match; pure JAX."""
    from optax.assignment import hungarian_algorithm

    real_x, real_y = jnp.asarray(own.real_x), jnp.asarray(own.real_y)
    real = real_x[:, None] * real_y
    rows, columns = hungarian_algorithm(-(values[0] + LIFT) * real)
    matched = (values[0] * real)[rows, columns]
    return exactly(pairwise_sum(matched) / jnp.minimum(real_x.sum(), real_y.sum()))


def hard_core_batch(own: MatchState, values: tuple[AnyArray, ...], perms: Permutations) -> np.ndarray:
    """Return the mean correlations of the best matches of a batch, from the host."""
    dx, dy = (int(np.sum(real)) for real in own)
    correlations = np.asarray(values[0])[:, :dx, :dy]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return np.array(list(threads.map(_best_match, correlations)))


def hard_core_exact(own: MatchState, values: tuple[AnyArray, ...], perm: Permutation) -> float:
    """Return the mean correlation of the best match of one re-pairing in float64."""
    dx, dy = (int(np.sum(real)) for real in own)
    return _best_match(np.asarray(values[0])[:dx, :dy])


def soft_reference(x: AnyArray, y: AnyArray) -> float:
    """Return the soft correlation match of two matrices, straight from the definition."""
    correlations = _correlations(x, y)
    return float(correlations.max(axis=1).mean() + correlations.max(axis=0).mean()) / 2


def hard_reference(x: AnyArray, y: AnyArray) -> float:
    """Return the hard correlation match of two matrices, straight from the definition."""
    return _best_match(_correlations(x, y))


def _check(name: str, pair: Pair) -> None:
    for side_name, side in pair.sides:
        constant = np.flatnonzero(np.ptp(side.values, axis=0) == 0)
        if len(constant):
            raise InputError(
                f"{name}: column {constant[0]} of {side_name} is constant ({side.values[0, constant[0]]:.6g} in every "
                f"row; {len(constant)} such column(s)), so it has no correlation with the others; drop such columns"
            )


def _unit_columns(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    left, right = (side.centred / np.abs(side.centred).max(axis=0) for _, side in pair.sides)
    return left / np.linalg.norm(left, axis=0), right / np.linalg.norm(right, axis=0)


def _making(pair: Pair) -> int:
    """Return the bytes of both matrices with unit columns, and of two steps towards the larger."""
    return sum(side.values.nbytes for _, side in pair.sides) + 2 * max(side.values.nbytes for _, side in pair.sides)


def _best_match(correlations: Float[np.ndarray, "dx dy"]) -> float:
    rows, columns = scipy.optimize.linear_sum_assignment(correlations, maximize=True)
    return float(correlations[rows, columns].mean(dtype=np.float64))


def _correlations(x: AnyArray, y: AnyArray) -> Float[np.ndarray, "dx dy"]:
    pair = Pair.of(x, y)
    _check("correlation_match", pair)
    return np.corrcoef(pair.x.values, pair.y.values, rowvar=False)[: x.shape[1], x.shape[1] :]


CORRELATIONS = product("correlations of columns", _unit_columns, _making)


def _match(
    name: str,
    core: Callable[[MatchState, tuple[AnyArray, ...], AnyArray], Bounds],
    reference: Callable[[AnyArray, AnyArray], float],
) -> Measure:
    return Measure(
        name=name, larger_is_more_similar=True, tolerance=1e-6, statistics=(CORRELATIONS,), own=own, core=core,
        invariances=("scale", "shift", "column scale", "column permutation"), reference=reference,
        check=functools.partial(_check, name),
    )  # fmt: skip


SOFT_CORRELATION_MATCH = _match("soft_correlation_match", soft_core, soft_reference)
HARD_CORRELATION_MATCH = dataclasses.replace(
    _match("hard_correlation_match", hard_core, hard_reference), core_batch=hard_core_batch, core_exact=hard_core_exact
)
