import math
import tracemalloc

import numpy as np
import pytest
import scipy.stats

from saejax.activations.outliers import outlier_dimensions
from saejax.activations.statistics import RowStatistics, RunningStatistics

ROWS, WIDTH = 500, 12
RNG = np.random.default_rng(0)
SKEWED = RNG.exponential(size=(ROWS, WIDTH)) @ RNG.normal(size=(WIDTH, WIDTH))
FAR = (SKEWED + 1000 * SKEWED.std(axis=0) * RNG.choice([-1, 1], WIDTH)).astype(np.float32)


def measured(x: np.ndarray, block: int = 128) -> RowStatistics:
    running = RunningStatistics(x.shape[1], len(x))
    for start in range(0, len(x), block):
        running.add(x[start : start + block].astype(np.float32))
        running.add(np.empty((0, x.shape[1]), np.float32))
    return running.result()


def with_covariance(eigenvalues: np.ndarray, rows: int) -> np.ndarray:
    """Return rows of which the covariance has these eigenvalues, in random directions, far from the origin."""
    rng = np.random.default_rng(1)
    draws = rng.normal(size=(rows, len(eigenvalues)))
    left, _, right = np.linalg.svd(draws - draws.mean(axis=0), full_matrices=False)
    return math.sqrt(rows) * left * np.sqrt(eigenvalues) @ right + 5


@pytest.mark.parametrize("block", [1, 7, 128, ROWS])
def test_blocks_of_any_size_agree_with_two_passes_far_from_the_origin(block: int) -> None:
    found, exact = measured(FAR, block), FAR.astype(np.float64)
    centred = exact - exact.mean(axis=0)
    assert np.abs(exact.mean(axis=0) / exact.std(axis=0)).min() > 990
    np.testing.assert_allclose(found.mean, exact.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.variance, exact.var(axis=0), rtol=1e-9)
    np.testing.assert_allclose(found.kurtosis, scipy.stats.kurtosis(centred, axis=0), rtol=1e-8)
    np.testing.assert_allclose(found.spectrum, np.linalg.svd(centred, compute_uv=False) ** 2 / ROWS, rtol=1e-8)
    np.testing.assert_allclose(found.norms, np.sort(np.linalg.norm(exact, axis=1)), rtol=1e-6)
    assert found.rms == pytest.approx(math.sqrt(np.mean(exact**2)), rel=1e-12)
    assert found.mean_share == pytest.approx(np.sum(exact.mean(axis=0) ** 2) / np.sum(exact**2) * ROWS, rel=1e-12)


def test_mean_cosine_is_that_of_all_pairs_of_rows_that_have_a_direction() -> None:
    x = (SKEWED[:90] + 0.5).astype(np.float32)
    x[[3, 50]] = 0
    rows = np.delete(x, [3, 50], axis=0).astype(np.float64)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    i, j = np.triu_indices(len(unit), 1)
    found = measured(x, 40)
    np.testing.assert_allclose(found.cosine, np.mean(unit[i] * unit[j], axis=0), rtol=1e-10, atol=1e-14)
    assert found.mean_cosine == pytest.approx(np.mean(np.sum(unit[i] * unit[j], axis=1)), rel=1e-10)


def test_a_planted_spectrum_is_recovered() -> None:
    eigenvalues = 100.0 * np.arange(1, 31) ** -1.5
    found = measured(with_covariance(eigenvalues, 400))
    np.testing.assert_allclose(found.spectrum, eigenvalues, rtol=1e-5)
    assert found.participation_ratio == pytest.approx(eigenvalues.sum() ** 2 / np.sum(eigenvalues**2), rel=1e-5)
    held = np.cumsum(eigenvalues) / eigenvalues.sum()
    for share in (0.5, 0.9, 0.99):
        count = found.components(share)
        assert count is not None
        assert held[count - 2] < share <= held[count - 1]


def test_few_rows_bring_the_participation_ratio_down_as_is_said() -> None:
    rows = np.random.default_rng(2).normal(size=(200, 50))
    assert measured(rows).participation_ratio == pytest.approx(1 / (1 / 50 + 1 / 200), rel=0.03)


def test_fewer_rows_than_dimensions_leave_no_eigenvalue_below_zero() -> None:
    found = measured(SKEWED[:5])
    assert found.spectrum.min() == 0
    assert found.spectrum[4] < 1e-12 * found.spectrum[0]


def test_a_histogram_holds_every_norm_above_zero() -> None:
    x = np.where(np.arange(ROWS)[:, None] % 10 == 0, 0, SKEWED)
    counts, edges = measured(x).norm_histogram()
    norms = np.linalg.norm(x.astype(np.float32), axis=1)
    assert counts.sum() == ROWS - ROWS // 10
    assert edges[[0, -1]] == pytest.approx([norms[norms > 0].min(), norms.max()], rel=1e-6)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [0.0, 0.1])
@pytest.mark.parametrize("rows", [1, 300])
def test_rows_that_are_all_the_same(value: float, rows: int) -> None:
    found = measured(np.full((rows, WIDTH), value), 64)
    assert found.rms == pytest.approx(value)
    assert not found.variance.any()
    assert not found.spectrum.any()
    assert np.isnan(found.kurtosis).all()
    assert math.isnan(found.participation_ratio)
    assert found.components(0.9) is None
    assert math.isnan(found.mean_share) == (value == 0)
    assert found.mean_cosine == pytest.approx(1 if value and rows > 1 else math.nan, nan_ok=True)
    assert not len(outlier_dimensions(found).dimension)


def test_no_row_is_a_defect() -> None:
    with pytest.raises(ValueError, match="no row"):
        RunningStatistics(3, 0).result()


def test_planted_outlier_dimensions_are_named_with_the_furthest_first() -> None:
    x = np.random.default_rng(3).normal(size=(2000, 64))
    x[:, 40] -= 9
    x[:, 17] *= 30
    x[:, 5] *= 0.01
    found = outlier_dimensions(measured(x))
    assert found.dimension.tolist() == [17, 40]
    assert found.sd_z[0] > 7
    assert found.mean_z[1] < -7
    assert np.argmax(measured(x).cosine) == 40


def test_outliers_do_not_depend_on_the_unit_or_on_what_is_added_to_all() -> None:
    x = np.random.default_rng(4).standard_t(3, size=(300, 400)) * np.random.default_rng(5).exponential(size=400)
    found, scaled = outlier_dimensions(measured(x)), outlier_dimensions(measured(-7 * x + 2))
    assert len(found.dimension) > 3
    np.testing.assert_array_equal(found.dimension, scaled.dimension)
    np.testing.assert_allclose(found.mean_z, -scaled.mean_z, rtol=1e-3)


def test_of_ten_dimensions_none_can_be_an_outlier_and_of_eleven_one_can() -> None:
    x = np.random.default_rng(6).normal(size=(50, 11))
    x[:, 4] += 1e6
    assert outlier_dimensions(measured(x[:, :10])).dimension.tolist() == []
    assert outlier_dimensions(measured(x)).dimension.tolist() == [4]


def test_a_block_takes_no_second_matrix_of_its_width_squared() -> None:
    width = 1024
    running = RunningStatistics(width, 64)
    x = np.random.default_rng(7).normal(size=(32, width)).astype(np.float32)
    running.add(x)
    tracemalloc.start()
    running.add(x)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 3 * 32 * width * 8 < peak < width * width * 8 / 4
