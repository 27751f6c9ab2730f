from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from saejax_kernels import pair_sums

IMPLS: list[Literal["jax", "numba"]] = ["jax", "numba"]
LARGEST = {"float32": 2**24, "float64": 2**26, "int16": 2**15 - 1, "int32": 2**31 - 1}


def symmetric(rng: np.random.Generator, n: int, dtype: str) -> np.ndarray:
    """Return whole numbers over all of the range that a dtype is to hold exactly."""
    lower = np.tril(rng.integers(-LARGEST[dtype], LARGEST[dtype], (n, n), endpoint=True), -1)
    return (lower + lower.T).astype(dtype)


def permutations(rng: np.random.Generator, n: int, count: int) -> np.ndarray:
    return np.stack([rng.permutation(n) for _ in range(count)])


def exact(a: np.ndarray, b: np.ndarray, perms: np.ndarray) -> tuple[list[int], np.ndarray]:
    """Return the sums over i < j in integers of any length, and those of the terms' sizes."""
    pairs = np.tril_indices(len(a), -1)
    weights = np.array([int(x) for x in a[pairs]], dtype=object)
    terms = [weights * np.array([int(x) for x in b[np.ix_(p, p)][pairs]], dtype=object) for p in perms]
    return [sum(each) for each in terms], np.array([float(sum(abs(each))) for each in terms])


@pytest.mark.parametrize("dtype", LARGEST)
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("n", "count"), [(3, 1), (17, 8), (40, 13)])
def test_sum_over_pairs_is_the_sum_in_integers(impl: Literal["jax", "numba"], dtype: str, n: int, count: int) -> None:
    rng = np.random.default_rng(n)
    a, b, perms = symmetric(rng, n, dtype), symmetric(rng, n, dtype), permutations(rng, n, count)
    with jax.enable_x64(dtype == "float64"):
        sums = np.asarray(pair_sums(a, b, perms, impl=impl))
    expected, sizes = exact(a, b, perms)
    rounding = 2.0**-53 if impl == "numba" or dtype == "float64" else 2.0**-24
    errors = [abs(float(int(each) - true)) for each, true in zip(sums, expected, strict=True)]
    assert np.all(errors <= 3 * rounding * sizes)


def test_numba_adds_sixteen_bits_in_sixty_four() -> None:
    """Of 4,400 rows of the largest numbers, where sums in float64 would be rounded row by row."""
    rng = np.random.default_rng(0)
    n = 4400
    upper = np.triu(rng.integers(2**15 - 100, 2**15, (n, n), dtype=np.int16), 1)
    a = upper + upper.T
    perms = permutations(rng, n, 2)
    expected = [sum(int(a[i].astype(np.int64) @ a[p[i]][p]) for i in range(n)) // 2 for p in perms]
    assert min(expected) > 2**53
    assert pair_sums(a, a, perms, impl="numba").tolist() == [float(each) for each in expected]
    assert pair_sums(a, -a, perms, impl="numba").tolist() == [-float(each) for each in expected]


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_numba_adds_whole_numbers_without_error_below_2_to_53(dtype: str) -> None:
    rng = np.random.default_rng(1)
    n = 300
    ranks = [np.tril(rng.integers(2**17, size=(n, n)), -1) for _ in range(2)]
    a, b = ((lower + lower.T).astype(dtype) for lower in ranks)
    perms = permutations(rng, n, 9)
    assert pair_sums(a, b, perms, impl="numba").tolist() == exact(a, b, perms)[0]


def test_jax_keeps_its_digits_over_many_rows() -> None:
    """Terms of one sign, where adding one after another would lose three digits of seven."""
    n = 4000
    ones = np.ones((n, n), dtype=np.float32) - np.eye(n, dtype=np.float32)
    tenths = ones * np.float32(0.1)
    expected = float(np.float32(0.1)) * n * (n - 1) / 2
    sums = np.asarray(pair_sums(ones, tenths, permutations(np.random.default_rng(0), n, 2), impl="jax"), np.float64)
    assert np.all(abs(sums / expected - 1) <= 3 * 2.0**-24)


def test_jax_reference_traces_under_jit_and_vmap() -> None:
    rng = np.random.default_rng(1)
    n = 20
    a = np.stack([symmetric(rng, n, "float32") for _ in range(3)])
    perms = permutations(rng, n, 5)
    each = jax.jit(jax.vmap(lambda one: pair_sums(one, a[0], perms, impl="jax")))(jnp.asarray(a))
    for one, sums in zip(a, each, strict=True):
        np.testing.assert_allclose(sums, pair_sums(one, a[0], perms, impl="jax"), rtol=1e-5)
