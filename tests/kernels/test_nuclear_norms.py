from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from saejax_kernels import nuclear_norms

IMPLS: list[Literal["jax", "lapack"]] = ["jax", "lapack"]


def orthonormal(rng: np.random.Generator, n: int, k: int) -> np.ndarray:
    return np.linalg.qr(rng.normal(size=(n, k)))[0]


def exact(m: np.ndarray) -> np.ndarray:
    return np.linalg.svd(m.astype(np.float64), compute_uv=False).sum(axis=-1)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("n", "a", "b"), [(9, 1, 1), (9, 2, 2), (12, 3, 7), (12, 7, 3), (30, 20, 25), (200, 60, 60)])
def test_products_of_bases(impl: Literal["jax", "lapack"], n: int, a: int, b: int) -> None:
    rng = np.random.default_rng(n + a)
    m = np.stack([orthonormal(rng, n, a).T @ orthonormal(rng, n, b) for _ in range(6)]).astype(np.float32)
    np.testing.assert_allclose(nuclear_norms(m, impl=impl), exact(m), atol=2e-7 * min(a, b))


@pytest.mark.parametrize("impl", IMPLS)
def test_spectra_at_the_edge(impl: Literal["jax", "lapack"]) -> None:
    """All ones, all zeros, exact zeros beside ones, values far below the precision, and all of it rotated."""
    rng = np.random.default_rng(0)
    k = 48
    spectra = np.stack([
        np.ones(k), np.zeros(k), np.repeat([1.0, 0.0], k // 2), np.geomspace(1e-12, 1, k),
        np.repeat([1.0, 1e-5], k // 2), np.full(k, 1e-9),
    ])  # fmt: skip
    left, right = orthonormal(rng, k, k), orthonormal(rng, k, k)
    for m in (np.stack([np.diag(s) for s in spectra]), np.einsum("ab,sb,bc->sac", left, spectra, right)):
        np.testing.assert_allclose(nuclear_norms(m.astype(np.float32), impl=impl), spectra.sum(1), atol=5e-7 * k)


@pytest.mark.parametrize("impl", IMPLS)
def test_padding_with_zeros_is_inert(impl: Literal["jax", "lapack"]) -> None:
    rng = np.random.default_rng(3)
    m = np.stack([orthonormal(rng, 50, 20).T @ orthonormal(rng, 50, 31) for _ in range(4)]).astype(np.float32)
    padded = np.pad(m, ((0, 0), (0, 12), (0, 1)))
    np.testing.assert_allclose(nuclear_norms(padded, impl=impl), nuclear_norms(m, impl=impl), atol=2e-6)


def test_lapack_is_exact_to_float64_where_float32_eigenvalues_would_not_be() -> None:
    rng = np.random.default_rng(4)
    k = 40
    m = orthonormal(rng, k, k) * np.repeat([1.0, 0.0], k // 2) @ orthonormal(rng, k, k).T
    assert abs(nuclear_norms(m[None], impl="lapack")[0] - k / 2) < 1e-6
    in_float32 = np.linalg.eigvalsh((m @ m.T).astype(np.float32))
    assert abs(np.sqrt(np.maximum(in_float32, 0)).sum() - k / 2) > 1e-4


def test_jax_is_exact_in_float64() -> None:
    rng = np.random.default_rng(5)
    m = np.stack([orthonormal(rng, 60, 25).T @ orthonormal(rng, 60, 30) for _ in range(3)])
    with jax.enable_x64(True):
        np.testing.assert_allclose(nuclear_norms(jnp.asarray(m), impl="jax"), exact(m), rtol=1e-13)
