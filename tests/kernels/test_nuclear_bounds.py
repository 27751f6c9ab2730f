import importlib
import inspect
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from saejax_kernels import nuclear_bounds
from saejax_kernels.nuclear_bounds import rounding_allowance
from saejax_kernels.polar_factors import polar_schedule

polar_factors = importlib.import_module("saejax_kernels.polar_factors")  # the name is that of a function too
EPSILON = float(np.finfo(np.float32).eps)
SPECTRA = {
    "ones": np.ones,
    "zeros": np.zeros,
    "one": lambda k: np.eye(k)[0],
    "half of them zero": lambda k: np.repeat([1.0, 0.0], [(k + 1) // 2, k // 2]),
    "graded to 1e-12": lambda k: np.geomspace(1, 1e-12, k),
    "graded to 1e-3": lambda k: np.geomspace(1, 1e-3, k),
    "one large, others hardly resolved": lambda k: np.where(np.arange(k) == 0, 1, 2e-4),
    "one large, others not resolved": lambda k: np.where(np.arange(k) == 0, 1, 3e-5),
    "one large, others at the rounding": lambda k: np.where(np.arange(k) == 0, 1, 3e-7),
    "tiny": lambda k: np.full(k, 1e-9),
    "too tiny for their squares": lambda k: np.full(k, 1e-25),
    "like 1 / i": lambda k: 1 / np.arange(1.0, k + 1),
    "even": lambda k: np.linspace(1, 0, k),
}


def orthonormal(rng: np.random.Generator, n: int, k: int) -> np.ndarray:
    return np.linalg.qr(rng.normal(size=(n, k)))[0]


def pairings(seed: int, n: int, a: int, b: int, count: int) -> np.ndarray:
    """Products of two orthonormal bases under random pairings of their rows."""
    rng = np.random.default_rng(seed)
    left, right = orthonormal(rng, n, a), orthonormal(rng, n, b)
    return np.stack([left.T @ right[rng.permutation(n)] for _ in range(count)])


def exact(m: np.ndarray) -> np.ndarray:
    return np.linalg.svd(m.astype(np.float64), compute_uv=False).sum(axis=-1)


def bounds(m: np.ndarray, smallest: float = 2e-4) -> tuple[np.ndarray, np.ndarray]:
    low, high = nuclear_bounds(m.astype(np.float32), smallest=smallest)
    return np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)


def assert_between(m: np.ndarray, smallest: float = 2e-4) -> np.ndarray:
    """Check both bounds against the decomposition in float64 of the rounded matrices; return the widths."""
    low, high = bounds(m, smallest)
    norm = exact(m.astype(np.float32))
    assert np.all(low <= norm)
    assert np.all(norm <= high)
    return (high - low) / np.where(norm > 0, norm, 1)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize(("a", "b"), [(1, 1), (1, 9), (7, 7), (40, 40), (24, 70), (70, 24)])
def test_norm_lies_between_the_bounds(name: str, a: int, b: int) -> None:
    """Both sides rotated, one, or none, which round differently; scaled and unscaled."""
    rng = np.random.default_rng(a + b)
    k = min(a, b)
    s = SPECTRA[name](k)
    left, right = orthonormal(rng, a, k), orthonormal(rng, b, k)
    m = np.stack(
        [left * s @ right.T, np.eye(a, k) * s @ right.T, left * s @ np.eye(k, b), np.eye(a, k) * s @ np.eye(k, b)]
    )
    widths = np.concatenate([assert_between(scale * m, smallest) for scale in (1, 0.01) for smallest in (2e-4, 1e-5)])
    if not ("resolved" in name or "1e-12" in name or "rounding" in name or "squares" in name):
        assert widths.max() < 2e-5


@pytest.mark.parametrize(("n", "a", "b", "width"), [(40, 12, 12, 3e-6), (100, 30, 40, 3e-6), (300, 120, 120, 1e-5)])
def test_interval_of_random_pairings_is_narrow(n: int, a: int, b: int, width: float) -> None:
    assert np.median(assert_between(pairings(n, n, a, b, 30))) < width


def test_interval_of_normalised_products_is_narrow() -> None:
    """Singular values of the order of 1 / k, as in Procrustes, equal variances or not."""
    rng = np.random.default_rng(6)
    for variances, smallest in ((np.ones(60), 2e-4), (1 / np.arange(1, 61), 1e-5)):
        x, y = (rng.normal(size=(200, 60)) * np.sqrt(variances) for _ in range(2))
        x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
        m = np.stack([x.T @ y[rng.permutation(200)] for _ in range(20)])
        assert np.median(assert_between(m, smallest)) < 1e-5


@pytest.mark.parametrize(("a", "b"), [(2, 1000), (2, 3000), (5, 5), (50, 300)])
def test_equal_entries_whose_roundings_add_up(a: int, b: int) -> None:
    rng = np.random.default_rng(a)
    scales = rng.uniform(0.1, 1, size=(12, 1, 1)) / np.sqrt(a * b)
    assert_between(scales * np.ones((a, b)))
    assert_between(scales * rng.uniform(-1, 1, size=(12, a, 1)) * np.ones((a, b)))


def one_after_another(x: jax.Array, y: jax.Array) -> jax.Array:
    """Multiply with sums over one term after another, as some libraries for GPUs do."""

    def add(total: jax.Array, term: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + term[0][:, :, None] * term[1][:, None, :], None

    start = jnp.zeros((len(x), x.shape[1], y.shape[2]), x.dtype)
    return jax.lax.scan(add, start, (jnp.moveaxis(x, 2, 0), jnp.moveaxis(y, 1, 0)))[0]


@pytest.mark.parametrize(("a", "b"), [(1, 1000), (3, 2304), (60, 400)])
def test_order_of_the_sums_does_not_matter(a: int, b: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal entries in so many columns: how far roundings pile up depends on the number."""
    columns = np.arange(b - 60, b + 1)
    m = np.stack([0.7 / np.sqrt(a * k) * (np.arange(b) < k) * np.ones((a, 1)) for k in columns]).astype(np.float32)
    monkeypatch.setattr(polar_factors, "product", one_after_another)
    low, high = jax.jit(inspect.unwrap(nuclear_bounds))(m)
    slack = rounding_allowance(b, EPSILON)
    assert np.all(np.asarray(low, np.float64) <= exact(m) * (1 - 0.7 * slack))
    assert np.all(exact(m) <= np.asarray(high, np.float64))


def test_many_small_matrices() -> None:
    rng = np.random.default_rng(7)
    for a, b in ((1, 1), (2, 2), (3, 5), (6, 6)):
        m = rng.normal(size=(3000, a, b))
        m /= np.linalg.norm(m, axis=(1, 2), keepdims=True)
        assert_between(m)
        assert_between(m * (rng.random(m.shape) < 0.4))


def test_padding_with_zeros_changes_the_allowance_only() -> None:
    """With values that are not resolved, so that the upper bound is made of both its terms."""
    m = np.concatenate([pairings(8, 60, 20, 31, 5), np.geomspace(1, 1e-6, 20)[:, None] * np.eye(20, 31)[None]])
    padded = np.pad(m, ((0, 0), (0, 80), (0, 90)))
    assert_between(padded)
    for one, other, sign in zip(bounds(m), bounds(padded), (-1, 1), strict=True):
        plain = one / (1 + sign * rounding_allowance(31, EPSILON))
        np.testing.assert_allclose(other / (1 + sign * rounding_allowance(121, EPSILON)), plain, rtol=1e-6)


def test_finer_schedule_narrows_the_interval_of_graded_spectra() -> None:
    m = np.diag(np.geomspace(1, 1e-6, 50))[None]
    assert len(polar_schedule(2e-4, EPSILON)) == 13
    assert assert_between(m, 1e-5)[0] < 0.1 * assert_between(m, 2e-4)[0]
    assert len(polar_schedule(1e-5, EPSILON)) == 17


def test_float64_is_exact() -> None:
    m = pairings(9, 60, 25, 30, 4)
    norm = exact(m)
    with jax.enable_x64(True):
        low, high = map(np.asarray, nuclear_bounds(m))
    assert np.all(low <= norm)
    assert np.all(norm <= high)
    assert np.all(high - low < 2e-14 * norm)


def test_traces_to_products_in_full_precision_without_any_library_call() -> None:
    m = jnp.asarray(pairings(10, 50, 20, 24, 3), dtype=jnp.float32)
    mapped = jax.jit(jax.vmap(lambda one: nuclear_bounds(one[None])))
    program = mapped.lower(m).as_text()
    assert "custom_call" not in program
    assert program.count("stablehlo.dot_general") == program.count("precision = [HIGHEST, HIGHEST]") > 0
    for batch, one in zip(nuclear_bounds(m), mapped(m), strict=True):
        np.testing.assert_allclose(one[:, 0], batch, rtol=1e-6)


EIGHT_DEVICES = """
import sys
import jax, numpy as np
from jax.sharding import Mesh, PartitionSpec
from saejax_kernels import nuclear_bounds
m = np.load(sys.argv[1])
batch = PartitionSpec("devices")
spread = jax.shard_map(nuclear_bounds, mesh=Mesh(jax.devices(), ("devices",)), in_specs=batch, out_specs=(batch, batch))
low, high = jax.jit(spread)(m)
assert len({shard.device for shard in low.addressable_shards}) == 8
np.save(sys.argv[2], np.stack([low, high]))
"""


def test_spreads_over_devices(tmp_path: os.PathLike) -> None:
    m = pairings(11, 50, 20, 24, 32).astype(np.float32)
    given, made = os.path.join(tmp_path, "m.npy"), os.path.join(tmp_path, "bounds.npy")
    np.save(given, m)
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", EIGHT_DEVICES, given, made], check=True, env=environment, timeout=120)
    np.testing.assert_allclose(np.load(made), np.stack(nuclear_bounds(m)), rtol=1e-6)
