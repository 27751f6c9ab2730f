import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saejax.similarity.measure import CrossStatistic, statistic_batch
from saejax.similarity.pair import Pair, Side
from saejax.similarity.quadratic import QuadraticState, once_per_side, quadratic

RNG = np.random.default_rng(0)
N = 17
PERMS = np.stack([RNG.permutation(N) for _ in range(6)]).astype(np.int32)


def whole_numbers(side: Side) -> np.ndarray:
    lower = np.tril(np.round(side.values @ side.values.T * 1000), -1)
    return lower + lower.T


def pair() -> Pair:
    return Pair.of(RNG.normal(size=(N, 3)), RNG.normal(size=(N, 4)))


def exact(statistic: CrossStatistic, state: QuadraticState, perm: np.ndarray) -> float:
    assert statistic.compute_exact is not None
    return float(statistic.compute_exact(state, perm))


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.int16])
def test_every_way_sums_over_pairs(dtype: type) -> None:
    statistic = quadratic("products", lambda side: whole_numbers(side).astype(dtype), lambda n: 4, lambda side: 0)
    state = statistic.prepare(pair(), None)
    a, b = (leaf.astype(int).tolist() for leaf in state)
    expected = [sum(a[i][j] * b[p[i]][p[j]] for i in range(N) for j in range(i)) for p in PERMS]
    assert [exact(statistic, state, perm) for perm in PERMS] == expected
    np.testing.assert_allclose(statistic_batch(statistic, state, PERMS), expected, rtol=1e-12)
    mapped = jax.jit(jax.vmap(statistic.compute, in_axes=(None, 0)))(state, PERMS)
    np.testing.assert_allclose(mapped, expected, atol=1e-5 * np.abs(expected).max())


def test_sums_may_be_mapped_over_matrices_too() -> None:
    statistic = quadratic("products", lambda side: whole_numbers(side).astype(np.float32), lambda n: 4, lambda side: 0)
    states = [statistic.prepare(pair(), None) for _ in range(3)]
    expected = np.array([[exact(statistic, state, perm) for perm in PERMS] for state in states])
    stacked = QuadraticState(*(jnp.stack(leaves) for leaves in zip(*states, strict=True)))
    inner = jax.vmap(jax.vmap(statistic.compute, in_axes=(None, 0)), in_axes=(0, None))
    outer = jax.vmap(jax.vmap(statistic.compute, in_axes=(0, None)), in_axes=(None, 0))
    together = jax.vmap(statistic.compute)(stacked, jnp.asarray(PERMS[:3]))
    for sums, wanted in (
        (jax.jit(inner)(stacked, PERMS), expected),
        (jax.jit(outer)(stacked, PERMS).T, expected),
        (together, expected.diagonal()),
    ):
        np.testing.assert_allclose(sums, wanted, atol=1e-5 * np.abs(expected).max())


def test_size_counts_both_matrices() -> None:
    made = pair()
    for itemsize in (2, 4):
        statistic = quadratic("products", whole_numbers, lambda n, itemsize=itemsize: itemsize, lambda side: 5)
        assert statistic.size(made) == 2 * itemsize * N**2
        assert statistic.making(made) == 5


def test_what_is_made_of_a_side_is_made_once_and_goes_with_it() -> None:
    @once_per_side
    def make(side: Side) -> np.ndarray:
        return side.values.copy()

    sides = pair()
    assert make(sides.x) is make(sides.x)
    assert make(sides.y) is not make(sides.x)
    made = weakref.ref(make(sides.x))
    assert made() is not None
    del sides
    gc.collect()
    assert made() is None
