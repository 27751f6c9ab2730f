"""Sums over pairs of rows of two n x n matrices, one of them re-paired: the quadratic assignment statistic.

    T(p) = sum_{i < j} a[i, j] b[p_i, p_j]

is all that a re-pairing p changes where two matrices of distances are compared entry by entry: Spearman RSA (a and b
hold ranks) and distance correlation. Unlike `saejax.similarity.bases` it is shared by no two measures, because each
has matrices of its own.

Matrices of float32, int16 or int32 are kept once, and are the statistic: its one canonical value is the sum of those
very numbers in float64, whatever device made a float32 sum of them. Of float64 matrices there is a float32 copy.
"""

import functools
import weakref
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jaxtyping import Shaped
from saejax_kernels import pair_sums

from saejax.similarity.measure import CrossStatistic
from saejax.similarity.pair import Pair, Side
from saejax.types import AnyArray, Permutation, Permutations

HOPPER = 9.0  # compute capability from which `saejax_kernels.pair_sums_gpu` runs
LARGEST_KERNEL = 32_768  # rows that the kernels of accelerators take

T = TypeVar("T")


class QuadraticState(NamedTuple):
    """What no re-pairing changes.

    Attributes:
        a: symmetric matrix of x with a zero diagonal.
        b: the same for y, of the same dtype.
    """

    a: Shaped[AnyArray, "n n"]
    b: Shaped[AnyArray, "n n"]


def quadratic(
    name: str, matrix: Callable[[Side], np.ndarray], itemsize: Callable[[int], int], making: Callable[[Side], int]
) -> CrossStatistic:
    """Return the statistic T of two matrices.

    Args:
        name: what the matrices hold.
        matrix: makes a of x and b of y, `[n, n]`, symmetric with zero diagonals.
        itemsize: bytes of an entry and of its copies, given n.
        making: bytes that it takes besides to make one.
    """

    def prepare(pair: Pair, extent: tuple[int, int] | None = None) -> QuadraticState:
        return QuadraticState(matrix(pair.x), matrix(pair.y))

    def size(pair: Pair) -> int:
        return 2 * itemsize(pair.n) * pair.n**2

    def most(pair: Pair) -> int:
        return max(making(side) for _, side in pair.sides)

    return CrossStatistic(
        name=name, prepare=prepare, compute=_compute, size=size, making=most, scratch=_scratch,
        compute_batch=_compute_batch, compute_exact=_compute_exact,
    )  # fmt: skip


def once_per_side(make: Callable[[Side], T]) -> Callable[[Side], T]:
    """Keep what a function makes of a side while that side lives: a statistic and its measure may both need it."""
    made: weakref.WeakKeyDictionary[Side, T] = weakref.WeakKeyDictionary()

    @functools.wraps(make)
    def once(side: Side) -> T:
        if side not in made:
            made[side] = make(side)
        return made[side]

    return once


def _compute(state: QuadraticState, perm: Permutation) -> jax.Array:
    return _sum(jnp.asarray(state.a), jnp.asarray(state.b), jnp.asarray(perm))


# The kernels of accelerators take permutations by the batch, so a mapped sum becomes one call of them.
@custom_vmap
def _sum(a: jax.Array, b: jax.Array, perm: jax.Array) -> jax.Array:
    return _sums(a, b, perm[None])[0]


@custom_vmap
def _sums(a: jax.Array, b: jax.Array, perms: jax.Array) -> jax.Array:
    return jnp.asarray(pair_sums(a, b, perms, impl=_device_impl(len(a))))


@_sum.def_vmap
def _map_sum(size: int, mapped: list[bool], a: jax.Array, b: jax.Array, perm: jax.Array) -> tuple[jax.Array, bool]:
    if mapped == [False, False, True]:
        return _sums(a, b, perm), True
    sums, _ = _map_sums(size, mapped, a, b, jnp.expand_dims(perm, -2))
    return sums[:, 0], True


@_sums.def_vmap
def _map_sums(size: int, mapped: list[bool], a: jax.Array, b: jax.Array, perms: jax.Array) -> tuple[jax.Array, bool]:
    def sums(index: jax.Array) -> jax.Array:
        chosen = [values[index] if each else values for values, each in zip((a, b, perms), mapped, strict=True)]
        return _sums(*chosen)

    return jax.lax.map(sums, jnp.arange(size)), True


def _device_impl(n: int) -> Literal["jax", "pallas"]:
    """Return the kernel of a TPU or of a GPU from Hopper on, where it takes so many rows; else plain JAX."""
    device = jax.devices()[0]
    hopper = device.platform == "gpu" and float(device.compute_capability) >= HOPPER
    return "pallas" if n <= LARGEST_KERNEL and (hopper or device.platform == "tpu") else "jax"


def _compute_batch(state: QuadraticState, perms: Permutations) -> np.ndarray:
    return np.asarray(pair_sums(state.a, state.b, perms, impl="numba"))


def _compute_exact(state: QuadraticState, perm: Permutation) -> np.ndarray:
    """Return the sum in float64, int16 without any rounding."""
    return _compute_batch(state, np.asarray(perm)[None]).reshape(())


def _scratch(state: QuadraticState) -> int:
    """Return the bytes of gathered rows and partial sums, by whichever kernel takes most."""
    return 32 * len(state.a)
