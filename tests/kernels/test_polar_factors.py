import jax
import jax.numpy as jnp
import numpy as np
import pytest
from saejax_kernels import polar_factors
from saejax_kernels.polar_factors import CUSHION, MARGIN, polar_schedule

EPSILONS = {np.float32: float(np.finfo(np.float32).eps), np.float64: float(np.finfo(np.float64).eps)}


def orthonormal(rng: np.random.Generator, n: int, k: int) -> np.ndarray:
    return np.linalg.qr(rng.normal(size=(n, k)))[0]


@pytest.mark.parametrize("dtype", EPSILONS)
@pytest.mark.parametrize(("a", "b"), [(1, 1), (40, 40), (25, 60), (60, 25)])
@pytest.mark.parametrize("smallest", [1.0, 0.1, 1e-3])
def test_factor_of_a_decomposition(dtype: type, a: int, b: int, smallest: float) -> None:
    """Half of the singular values at the smallest, half at 1, all scaled down: the hardest case for its condition."""
    rng = np.random.default_rng(a + b)
    k = min(a, b)
    s = np.where(np.arange(k) < k // 2, smallest, 1)
    m = (0.3 * orthonormal(rng, a, k) * s @ orthonormal(rng, b, k).T).astype(dtype)
    u, _, vt = np.linalg.svd(m.astype(np.float64), full_matrices=False)
    with jax.enable_x64(True):
        q = np.asarray(polar_factors(jnp.asarray(m[None])))
    assert q.shape == (1, a, b)
    assert q.dtype == dtype
    allowed = 4 * EPSILONS[dtype] * np.sqrt(max(a, b)) / smallest
    if dtype is np.float64:
        allowed += 1e-15 / smallest  # the decomposition compared with is rounded too
    assert np.linalg.norm(q[0].astype(np.float64) - u @ vt, 2) < allowed


def test_values_that_the_precision_does_not_resolve_leave_the_others_alone() -> None:
    rng = np.random.default_rng(1)
    left, right = orthonormal(rng, 30, 30), orthonormal(rng, 30, 30)
    m = left * np.repeat([1.0, 1e-3, 1e-9, 0.0], [10, 10, 5, 5]) @ right.T
    q = np.asarray(polar_factors(m[None].astype(np.float32)))[0]
    inside = left.T @ q @ right
    np.testing.assert_allclose(inside[:20, :20], np.eye(20), atol=2e-4)
    assert np.linalg.norm(inside[20:, 20:], 2) < 0.1
    assert np.linalg.norm(q, 2) < 1 + 1e-6


def test_zeros_stay_zeros() -> None:
    rng = np.random.default_rng(2)
    m = orthonormal(rng, 40, 12).T @ orthonormal(rng, 40, 15)
    padded = np.stack([np.pad(m, ((0, 9), (0, 4))), np.zeros((21, 19))]).astype(np.float32)
    q = np.asarray(polar_factors(padded))
    np.testing.assert_allclose(q[0, :12, :15], polar_factors(m[None].astype(np.float32))[0], atol=2e-5)
    assert not q[0, 12:].any()
    assert not q[0, :, 15:].any()
    assert not q[1].any()


@pytest.mark.parametrize(("smallest", "error"), [(2e-4, 1e-7), (1e-5, 1e-7), (7e-15, 2e-16)])
def test_schedule_takes_every_singular_value_to_one(smallest: float, error: float) -> None:
    """In fewer steps than those of Newton and Schulz alone, and never far back once it has come near."""
    values = np.geomspace(smallest, 1, 10_001)
    schedule = polar_schedule(smallest, error)
    for a, b in schedule:
        before, values = values, a * values - b * values**3
        assert values.max() < 2 * MARGIN
        assert np.all(values >= np.minimum(before, CUSHION))
    np.testing.assert_allclose(values, 1, atol=error + 1e-15)
    assert len(schedule) < 0.6 * (np.log(1 / smallest) / np.log(1.5) + 4)


def test_range_of_the_schedule_costs_no_accuracy() -> None:
    """A well-conditioned factor is as exact as if the schedule were made for it."""
    rng = np.random.default_rng(3)
    k = 100
    left, right = orthonormal(rng, k, k), orthonormal(rng, k, k)
    m = (left * np.linspace(0.1, 1, k) @ right.T).astype(np.float32)
    q = np.asarray(polar_factors(m[None]))[0]
    assert np.linalg.norm(q - left @ right.T, 2) < 2e-6
