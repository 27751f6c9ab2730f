"""Wachter's law against random subspaces, against known means and in its bookkeeping."""

import math

import numpy as np
import pytest

from saejax.errors import InputError
from saejax.similarity.wachter import (
    mean_absolute_correlation,
    mean_squared_correlation,
    wachter_mean_correlation,
    wachter_moment,
)


def random_basis(rng: np.random.Generator, n: int, k: int) -> np.ndarray:
    """Return an orthonormal basis of a random k-dimensional subspace of centred vectors."""
    return np.linalg.qr(np.hstack([np.ones((n, 1)), rng.normal(size=(n, k))]))[0][:, 1:]


@pytest.mark.parametrize(
    ("kx", "ky", "accuracy"),
    [
        (3, 3, 0.005),
        (5, 40, 0.003),
        (30, 60, 0.001),
        (100, 150, 0.001),
        (149, 150, 0.002),  # kx + ky = n - 1: the density reaches 1, without an atom
        (150, 150, 0.002),
        (200, 150, 0.002),
        (280, 50, 0.002),
        (250, 260, 0.001),
        (299, 10, 1e-12),
    ],
)
def test_predicts_the_mean_correlation_of_random_subspaces(kx: int, ky: int, accuracy: float) -> None:
    rng = np.random.default_rng([kx, ky])
    n, count = 300, 5 if max(kx, ky) > 50 else 100
    products = (random_basis(rng, n, kx).T @ random_basis(rng, n, ky) for _ in range(count))
    means = np.array([np.linalg.svd(product, compute_uv=False).mean() for product in products])
    error = float(means.std(ddof=1)) / math.sqrt(count)
    assert wachter_mean_correlation(kx, ky, n) == pytest.approx(means.mean(), abs=accuracy + 3 * error)


def test_predicts_the_null_mean_over_pairings_of_two_given_bases() -> None:
    """Heavy-tailed rows, paired at random: the law holds as long as no row dominates."""
    rng = np.random.default_rng(1)
    n, kx, ky = 300, 40, 70
    x, y = (rng.standard_t(5, size=(n, k)) for k in (kx, ky))
    bx, by = (np.linalg.qr(matrix - matrix.mean(axis=0))[0] for matrix in (x, y))
    products = [bx.T @ by[rng.permutation(n)] for _ in range(30)]
    mean = np.mean([np.linalg.svd(product, compute_uv=False).mean() for product in products])
    assert wachter_mean_correlation(kx, ky, n) == pytest.approx(mean, abs=0.003)


@pytest.mark.parametrize("n", [12, 101, 5000])
def test_bulk_and_atom_hold_all_correlations_and_the_exact_mean_square(n: int) -> None:
    last = n - 1
    half = last // 2
    for kx, ky in [(1, 1), (1, 5), (3, 3), (half, half), (half, last - half), (half + 1, half + 1), (5, last - 5),
                   (5, last - 4), (last - 1, last - 1), (last - 1, 1), (last, 4), (last, last)]:  # fmt: skip
        assert wachter_moment(kx, ky, n, power=0) == pytest.approx(1, abs=1e-9)
        assert wachter_moment(kx, ky, n, power=2) == pytest.approx(max(kx, ky) / last, abs=1e-9)
        mean = wachter_mean_correlation(kx, ky, n)
        assert mean == wachter_mean_correlation(ky, kx, n)
        assert max(kx, ky) / last - 1e-9 <= mean <= math.sqrt(max(kx, ky) / last) + 1e-9


def test_known_values() -> None:
    """Exactly 1 where one side spans everything; the numbers that SVCCA at the published sizes would have met."""
    assert wachter_mean_correlation(299, 10, 300) == 1
    assert wachter_mean_correlation(299, 299, 300) == 1
    for n, expected in ((1300, 0.724), (2500, 0.509), (5000, 0.356)):
        assert wachter_mean_correlation(500, 750, n) == pytest.approx(expected, abs=5e-4)
    small = 1 / 99_999  # c1 = c2 -> 0: a quarter circle, of mean 8 / (3 pi) sqrt(c)
    assert wachter_mean_correlation(1, 1, 100_000) == pytest.approx(8 / (3 * math.pi) * math.sqrt(small), rel=1e-4)


def test_one_component_on_both_sides() -> None:
    """E r^2 = 1 / (n - 1) over pairings of any two vectors; E |r| near its value for normal ones."""
    rng = np.random.default_rng(2)
    n, count = 40, 100_000
    x, y = rng.exponential(size=n), rng.normal(size=n)
    x, y = (z - z.mean() for z in (x, y))
    perms = np.argsort(rng.random((count, n)), axis=1)
    r = y[perms] @ x / (np.linalg.norm(x) * np.linalg.norm(y))
    assert np.mean(r**2) == pytest.approx(mean_squared_correlation(n), abs=4 * float(np.std(r**2)) / math.sqrt(count))
    assert np.mean(np.abs(r)) == pytest.approx(mean_absolute_correlation(n), rel=0.02)
    assert mean_absolute_correlation(4000) == pytest.approx(math.sqrt(2 / (math.pi * 3999)), rel=1e-3)


@pytest.mark.parametrize(("kx", "ky", "name"), [(0, 3, "kx 0"), (3, 10, "ky 10")])
def test_components_that_no_matrix_has_are_refused(kx: int, ky: int, name: str) -> None:
    with pytest.raises(InputError, match=f"{name} must be from 1 to n - 1 = 9"):
        wachter_mean_correlation(kx, ky, 10)
