from typing import Literal

import jax
import numpy as np
import pytest
import scipy.stats
from saejax_kernels import mid_ranks

IMPLS: list[Literal["jax", "numba"]] = ["jax", "numba"]
RNG = np.random.default_rng(0)
VALUES = {
    "different": RNG.normal(size=3000),
    "tied": RNG.integers(0, 40, size=3000).astype(float),
    "few": np.array([2.0, 1.0]),
    "all equal": np.full(500, 3.0),
    "infinite": np.concatenate([RNG.normal(size=100), np.full(30, np.inf)]),
}


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("cells", [1, 7, 2000])
@pytest.mark.parametrize("values", VALUES.values(), ids=list(VALUES))
def test_ranks_are_those_of_scipy_in_cells_of_any_size(
    values: np.ndarray, cells: int, impl: Literal["jax", "numba"]
) -> None:
    edges = np.linspace(-3, 3, cells + 1)[1:-1]
    cell = np.searchsorted(edges, values)
    starts = np.concatenate([[0], np.cumsum(np.bincount(cell, minlength=cells))])
    with jax.enable_x64(True):
        found = np.asarray(mid_ranks(np.sort(values), starts, values, cell, impl=impl))
    expected = 2 * scipy.stats.rankdata(values) - (len(values) + 1)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.int32
