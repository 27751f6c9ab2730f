from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from saejax_kernels import encode_top_k, product

ROWS, D_MODEL = 9, 6


def operands(d_sae: int) -> Any:
    """Return x, centre, W, b."""
    keys = jax.random.split(jax.random.key(d_sae), 4)
    shapes = [(ROWS, D_MODEL), (D_MODEL,), (d_sae, D_MODEL), (d_sae,)]
    return tuple(jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))


@pytest.mark.parametrize(("d_sae", "k"), [(20, 1), (20, 4), (20, 20), (301, 3), (1, 1)])
def test_values_and_gradients_are_those_of_dense_codes(d_sae: int, k: int) -> None:
    rows = jnp.arange(ROWS)[:, None]
    probe = jax.random.normal(jax.random.key(1), (ROWS, d_sae))

    def scattered(values: jax.Array, indices: jax.Array) -> jax.Array:
        return jnp.sum(jnp.zeros((ROWS, d_sae)).at[rows, indices].set(values) * probe)

    def sparse(x: jax.Array, centre: jax.Array, W: jax.Array, b: jax.Array) -> jax.Array:
        return scattered(*encode_top_k(x, centre, W, b, k, "float32", "jax"))

    def dense(x: jax.Array, centre: jax.Array, W: jax.Array, b: jax.Array) -> jax.Array:
        return scattered(*jax.lax.top_k((x - centre) @ W.T + b, k))

    found, expected = (jax.value_and_grad(f, argnums=(0, 1, 2, 3))(*operands(d_sae)) for f in (sparse, dense))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.abs(theirs).max() > 0
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_gradients_take_no_array_of_rows_times_latents_beyond_the_product() -> None:
    rows, d_sae = 32, 1 << 12
    shapes = [(rows, D_MODEL), (D_MODEL,), (d_sae, D_MODEL), (d_sae,)]

    def loss(x: jax.Array, centre: jax.Array, W: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.sum(encode_top_k(x, centre, W, b, 2, "float32", "jax")[0] ** 2)

    given = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3))).lower(*given).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    one = 4 * rows * d_sae
    assert one <= memory.temp_size_in_bytes < 2 * one


def test_bfloat16_rounds_the_inputs_of_the_product_alone() -> None:
    x, centre, W, b = operands(50)
    rounded = [np.asarray(each.astype(jnp.bfloat16), np.float64) for each in (x - centre, W)]
    expected = rounded[0] @ rounded[1].T
    found = product(x - centre, W, "bfloat16")
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    values, indices = encode_top_k(x, centre, W, b, 3, "bfloat16", "jax")
    all_of = expected + np.asarray(b)
    np.testing.assert_allclose(values, np.take_along_axis(all_of, np.asarray(indices), axis=1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(values, -np.sort(-all_of, axis=1)[:, :3], rtol=1e-5, atol=1e-5)


def test_a_stack_of_encoders_runs_under_vmap() -> None:
    x, centre, W, b = operands(64)
    stacked = jnp.stack([W, -W])
    values, indices = jax.vmap(lambda W: encode_top_k(x, centre, W, b, 4, "float32", "jax"))(stacked)
    for member in range(2):
        alone = encode_top_k(x, centre, stacked[member], b, 4, "float32", "jax")
        np.testing.assert_allclose(values[member], alone[0], rtol=1e-6)
        np.testing.assert_array_equal(indices[member], alone[1])
