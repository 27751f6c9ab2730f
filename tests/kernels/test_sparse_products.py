import jax
import jax.numpy as jnp
import numpy as np
import pytest
from saejax_kernels import outer_sum, products_at, sparse_decode, weighted_rows

ROWS, K, D_SAE, D_MODEL = 7, 10, 12, 5


@pytest.fixture
def operands() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(ROWS, K)).astype(np.float32)
    indices = np.argsort(rng.random((ROWS, D_SAE)), axis=1)[:, :K]
    table = rng.normal(size=(D_SAE, D_MODEL)).astype(np.float32)
    x = rng.normal(size=(ROWS, D_MODEL)).astype(np.float32)
    return values, indices, table, x


def dense(values: np.ndarray, indices: np.ndarray) -> np.ndarray:
    codes = np.zeros((len(values), D_SAE))
    np.put_along_axis(codes, indices, values.astype(np.float64), axis=1)
    return codes


def test_products_equal_those_of_the_dense_codes(operands):
    values, indices, table, x = operands
    codes = dense(values, indices)
    device = jax.tree.map(jnp.asarray, operands)
    np.testing.assert_allclose(weighted_rows(*device[:3], impl="jax"), codes @ table, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        products_at(device[3], device[1], device[2], impl="jax"),
        np.take_along_axis(x.astype(np.float64) @ table.T, indices, axis=1),
        rtol=1e-5,
        atol=1e-6,
    )
    np.testing.assert_allclose(
        outer_sum(device[0], device[1], device[3], D_SAE, impl="jax"), codes.T @ x, rtol=1e-5, atol=1e-6
    )


def test_decode_has_the_gradients_of_a_dense_decode(operands):
    values, indices, table, target = map(jnp.asarray, operands)
    rows = jnp.arange(ROWS)[:, None]

    def sparse_loss(values, table):
        return jnp.sum((sparse_decode(values, indices, table, "jax") - target) ** 3)

    def dense_loss(values, table):
        return jnp.sum((jnp.zeros((ROWS, D_SAE)).at[rows, indices].set(values) @ table - target) ** 3)

    found = jax.grad(sparse_loss, argnums=(0, 1))(values, table)
    expected = jax.grad(dense_loss, argnums=(0, 1))(values, table)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
