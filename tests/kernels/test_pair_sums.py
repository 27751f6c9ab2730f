from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from saejax_kernels import pair_sums

IMPLS: list[Literal["jax", "numba"]] = ["jax", "numba"]


def symmetric(rng: np.random.Generator, n: int) -> np.ndarray:
    lower = np.tril(rng.normal(size=(n, n)), -1)
    return (lower + lower.T).astype(np.float32)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("n", "count"), [(3, 1), (17, 8), (40, 13)])
def test_sum_over_pairs_is_the_sum_in_float64(impl: Literal["jax", "numba"], n: int, count: int) -> None:
    rng = np.random.default_rng(n)
    a, b = symmetric(rng, n), symmetric(rng, n)
    perms = np.stack([rng.permutation(n) for _ in range(count)])
    upper = np.triu(np.ones((n, n)), 1)
    expected = [np.sum(upper * a * b[np.ix_(p, p)], dtype=np.float64) for p in perms]
    np.testing.assert_allclose(pair_sums(a, b, perms, impl=impl), expected, atol=1e-6 * n * n, rtol=0)


def test_numba_sums_rows_in_float32_and_their_total_in_float64() -> None:
    n = 400
    ones = np.ones((n, n), dtype=np.float32) - np.eye(n, dtype=np.float32)
    huge = ones * np.float32(2**12 + 1)
    total = pair_sums(ones, huge, np.arange(n)[None], impl="numba")
    assert total[0] == (2**12 + 1) * n * (n - 1) / 2  # beyond 2^24, where float32 would round


def test_jax_reference_traces_under_jit_and_vmap() -> None:
    rng = np.random.default_rng(1)
    n = 20
    a = np.stack([symmetric(rng, n) for _ in range(3)])
    perms = np.stack([rng.permutation(n) for _ in range(5)])
    each = jax.jit(jax.vmap(lambda one: pair_sums(one, a[0], perms, impl="jax")))(jnp.asarray(a))
    for one, sums in zip(a, each, strict=True):
        np.testing.assert_allclose(sums, pair_sums(one, a[0], perms, impl="numba"), atol=1e-4)
