from typing import Literal

import jax
import numpy as np
import pytest
from saejax_kernels import weighted_squares

IMPLS: list[Literal["jax", "numba"]] = ["jax", "numba"]


def example(a: int, b: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng([a, b])
    return rng.normal(size=(3, a, b)).astype(np.float32), rng.normal(size=a), rng.normal(size=b)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("a", "b"), [(1, 1), (1, 9), (9, 1), (33, 64), (100, 301)])
def test_sums_and_sizes(impl: Literal["jax", "numba"], a: int, b: int) -> None:
    m, wx, wy = example(a, b)
    sums, sizes = weighted_squares(m, wx.astype(np.float32), wy.astype(np.float32), impl=impl)
    squares = m.astype(np.float64) ** 2
    expected = np.einsum("qab,a,b->q", squares, abs(wx), abs(wy))
    np.testing.assert_allclose(sizes, expected, rtol=1e-5)
    error = np.abs(np.asarray(sums) - np.einsum("qab,a,b->q", squares, wx, wy))
    assert np.all(error <= 2 * (np.log2(a * b) + 3) * 2.0**-24 * expected)


def test_numba_sums_in_float64_what_float32_would_lose() -> None:
    m = np.full((1, 1, 3), np.float32(1e4))
    m[0, 0, 2] = 1
    sums, sizes = weighted_squares(m, np.ones(1), np.array([1.0, -1.0, 1.0]), impl="numba")
    assert sums[0] == 1
    assert sizes[0] == 2e8 + 1


def test_jax_traces_under_vmap() -> None:
    m, wx, wy = example(7, 12)
    sums, _ = jax.vmap(lambda one: weighted_squares(one[None], wx, wy, impl="jax"))(m)
    np.testing.assert_allclose(sums[:, 0], weighted_squares(m, wx, wy, impl="numba")[0], rtol=1e-4)
