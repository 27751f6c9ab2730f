"""The TPU kernel, interpreted on the CPU against a stable sort, and lowered for a TPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from saejax_kernels import encode_top_k
from saejax_kernels.encode_top_k_tpu import ROWS, encode_top_k_tpu


def by_sorting(z: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(-z, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(z, order, axis=1), order


@pytest.mark.parametrize(
    ("rows", "d_sae", "k"),
    [(ROWS, 512, 8), (10, 37, 1), (10, 37, 37), (150, 1300, 20), (3, 600, 130)],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_entries_and_latents_are_those_of_a_stable_sort(rows: int, d_sae: int, k: int, dtype: str) -> None:
    """Of small integers every product is exact, and most of the k-th entries are tied."""
    rng = np.random.default_rng(rows + k)
    x, W = rng.integers(-2, 3, (rows, 6)), rng.integers(-1, 2, (d_sae, 6))
    b = rng.integers(-1, 2, d_sae)
    found = encode_top_k_tpu(
        jnp.asarray(x, dtype), jnp.asarray(W, dtype), jnp.asarray(b, jnp.float32), k, interpret=True
    )
    for ours, theirs in zip(found, by_sorting((x @ W.T + b).astype(np.float32), k), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("width", [24, 1500, 5000])
def test_it_agrees_with_the_reference_on_numbers_of_any_size(width: int) -> None:
    """Wide rows come in smaller tiles."""
    keys = jax.random.split(jax.random.key(0), 3)
    x, W = jax.random.normal(keys[0], (40, width)), jax.random.normal(keys[1], (1100, width)) / width**0.5
    b = jax.random.normal(keys[2], (1100,))
    values, latents = encode_top_k_tpu(x, W, b, 30, interpret=True)
    expected = encode_top_k(x, jnp.zeros(width), W, b, 30, "float32", "jax")
    np.testing.assert_allclose(values, expected[0], rtol=1e-4)
    np.testing.assert_array_equal(latents, expected[1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("rows", "d_sae", "k"), [(2048, 16_384, 32), (100, 1000, 200)])
def test_it_lowers_for_a_tpu(rows: int, d_sae: int, k: int, dtype: str) -> None:
    x, W = (jax.ShapeDtypeStruct((size, 512), jnp.dtype(dtype)) for size in (rows, d_sae))
    b = jax.ShapeDtypeStruct((d_sae,), jnp.float32)
    lowered = encode_top_k_tpu.trace(x, W, b, k).lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" in lowered
