import tracemalloc

import numpy as np
import pytest
from made_sources import ArraySource, sparse_codes

from saejax.errors import InputError
from saejax.features import correlation
from saejax.features.correlation import correlation_slabs, moments, slab_height

KINDS = [(False, False), (True, True), (True, False), (False, True)]


def correlations(x: ArraySource, y: ArraySource, height: int = 100, rows_per_block: int = 64) -> np.ndarray:
    slabs = correlation_slabs(x, y, moments(x, rows_per_block), moments(y, rows_per_block), height, rows_per_block)
    return np.concatenate(list(slabs))


def reference(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.corrcoef(x.astype(np.float64), y.astype(np.float64), rowvar=False)[: x.shape[1], x.shape[1] :]


@pytest.mark.parametrize(("x_sparse", "y_sparse"), KINDS)
@pytest.mark.parametrize("height", [1, 4, 100])
@pytest.mark.parametrize("rows_per_block", [7, 64, 1000])
def test_correlation_equals_numpys(x_sparse: bool, y_sparse: bool, height: int, rows_per_block: int) -> None:
    x, y = sparse_codes(333, 10, seed=0), sparse_codes(333, 6, seed=1)
    y[:, 2] += x[:, 5]
    y[:, 4] -= x[:, 1]
    found = correlations(ArraySource(x, x_sparse), ArraySource(y, y_sparse), height, rows_per_block)
    np.testing.assert_allclose(found, reference(x, y), atol=1e-13)


@pytest.mark.parametrize(("x_sparse", "y_sparse"), KINDS)
def test_a_large_mean_costs_no_digits(x_sparse: bool, y_sparse: bool) -> None:
    """Sums of squares around zero would keep four digits of these correlations in float64."""
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((2000, 5)).astype(np.float32) for _ in range(2))
    y += x[:, ::-1]
    x, y = x + np.float32(1e6) * ~np.bool_(x_sparse), y - np.float32(1e6) * ~np.bool_(y_sparse)
    found = correlations(ArraySource(x, x_sparse), ArraySource(y, y_sparse), rows_per_block=300)
    np.testing.assert_allclose(found, reference(x, y), atol=1e-11)


def test_codes_that_nearly_always_fire_keep_their_digits() -> None:
    rng = np.random.default_rng(0)
    x = (100 + rng.standard_normal((2000, 4))).astype(np.float32)
    y = x[:, ::-1] + rng.standard_normal((2000, 4)).astype(np.float32)
    np.testing.assert_allclose(correlations(ArraySource(x, True), ArraySource(y, True)), reference(x, y), atol=1e-9)


def test_products_of_sparse_codes_may_be_expanded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = (ArraySource(sparse_codes(200, 8, seed), True) for seed in (0, 1))
    whole = correlations(x, y)
    monkeypatch.setattr(correlation, "SPARSE_PRODUCTS", 10)
    np.testing.assert_allclose(correlations(x, y), whole, atol=1e-14)


@pytest.mark.parametrize("sparse", [False, True])
def test_moments_equal_numpys_and_a_constant_feature_has_no_spread(sparse: bool) -> None:
    x = sparse_codes(500, 6, seed=0)
    x[:, 1], x[:, 2], x[:, 3] = 0, 0.1, 1e8
    found = moments(ArraySource(x, sparse), rows_per_block=73)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(found.mean, exact.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(found.spread, np.sqrt(500) * exact.std(axis=0), rtol=1e-13, atol=1e-5)
    assert found.alive.tolist() == [True, False, False, False, True, True]
    assert found.rows == 500


def test_sources_without_a_correlation_are_refused() -> None:
    x = sparse_codes(50, 4, seed=0)
    x[7, 2] = np.nan
    with pytest.raises(InputError, match=r"^here holds NaN or infinity \(feature 2\)"):
        moments(ArraySource(x, name="here"), 8)
    with pytest.raises(InputError, match=r"^here has no feature that varies over its 50 rows"):
        moments(ArraySource(np.ones_like(x), name="here"), 8)


def test_slabs_fit_the_memory() -> None:
    assert slab_height(1000, 500, memory_gib=16 * 500 * 7.5 / 2**30) == 7
    assert slab_height(3, 500, memory_gib=1.0) == 3
    with pytest.raises(InputError, match=r"memory_gib 1e-06 holds no slab; 500 features need at least 7.5e-06"):
        slab_height(1000, 500, memory_gib=1e-6)


@pytest.mark.parametrize("sparse", [False, True])
def test_memory_grows_with_the_slab_and_not_with_the_rows(sparse: bool) -> None:
    def peak(rows: int, height: int) -> int:
        x, y = (ArraySource(sparse_codes(rows, 400, seed, density=0.03), sparse) for seed in (0, 1))
        of_x, of_y = moments(x, 100), moments(y, 100)
        tracemalloc.start()
        for _ in correlation_slabs(x, y, of_x, of_y, height, rows_per_block=100):
            pass
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    few, many, low = peak(200, 400), peak(1600, 400), peak(200, 100)
    assert many < 1.1 * few
    assert low < 0.6 * few
