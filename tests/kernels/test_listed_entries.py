from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from saejax_kernels import listed_entries

IMPLS: list[Literal["jax", "numba"]] = ["jax", "numba"]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_entries_are_those_of_the_re_paired_matrix(impl: Literal["jax", "numba"], dtype: type) -> None:
    rng = np.random.default_rng(0)
    n, k = 19, 6
    matrix = rng.normal(size=(n, n)).astype(dtype)
    lists = rng.integers(1, n + 1, size=(n, k)).astype(np.int32)
    perms = np.stack([rng.permutation(n) for _ in range(5)])
    with jax.enable_x64(dtype == np.float64):
        entries = np.asarray(listed_entries(matrix, lists, perms, impl=impl))
    assert entries.dtype == dtype
    for perm, found in zip(perms, entries, strict=True):
        np.testing.assert_array_equal(found, np.take_along_axis(matrix[np.ix_(perm, perm)], lists - 1, axis=1))


@pytest.mark.parametrize("impl", IMPLS)
def test_none_wanted_is_zero(impl: Literal["jax", "numba"]) -> None:
    matrix = np.full((3, 3), 7.0, np.float32)
    lists = np.array([[1, 0], [0, 0], [3, 2]], np.int32)
    entries = listed_entries(matrix, lists, np.array([[2, 0, 1]]), impl=impl)
    np.testing.assert_array_equal(entries, [[[7, 0], [0, 0], [7, 7]]])


def test_jax_reference_traces_under_jit_and_vmap() -> None:
    rng = np.random.default_rng(1)
    n, k = 11, 3
    matrices = rng.normal(size=(4, n, n)).astype(np.float32)
    lists = rng.integers(0, n + 1, size=(n, k)).astype(np.int32)
    perms = np.stack([rng.permutation(n) for _ in range(3)]).astype(np.uint32)
    each = jax.jit(jax.vmap(lambda one: listed_entries(one, lists, perms, impl="jax")))(jnp.asarray(matrices))
    for one, entries in zip(matrices, each, strict=True):
        np.testing.assert_array_equal(entries, listed_entries(one, lists, perms, impl="numba"))
