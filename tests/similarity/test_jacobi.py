import jax
import numpy as np
import pytest

from saejax.similarity.jacobi import left_singular_vectors


@pytest.mark.parametrize(("k", "m"), [(1, 1), (1, 4), (2, 2), (3, 7), (7, 3), (16, 16), (31, 40)])
def test_rotated_rows_are_orthogonal_and_as_long_as_the_singular_values(k: int, m: int) -> None:
    rng = np.random.default_rng(k)
    matrices = rng.normal(size=(3, k, m)) / np.sqrt(4 * max(k, m))
    vectors = np.asarray(jax.jit(jax.vmap(left_singular_vectors))(matrices.astype(np.float32)), np.float64)
    rows = vectors @ matrices
    products = rows @ rows.swapaxes(1, 2)
    lengths = np.sqrt(np.diagonal(products, axis1=1, axis2=2))
    values = np.linalg.svd(matrices, compute_uv=False)
    np.testing.assert_allclose(np.sort(lengths)[:, ::-1][:, : min(k, m)], values, atol=1e-6)
    np.testing.assert_allclose(products, np.eye(k) * products, atol=1e-6)
    np.testing.assert_allclose(vectors @ vectors.swapaxes(1, 2), np.broadcast_to(np.eye(k), (3, k, k)), atol=1e-6)


def test_rows_of_padding_turn_with_no_other() -> None:
    """Also where the matrix has null directions of its own, which a decomposition may mix with the padding."""
    rng = np.random.default_rng(1)
    matrix = np.zeros((8, 6), np.float32)
    matrix[:5, :4] = 0.3 * rng.normal(size=(5, 2)) @ rng.normal(size=(2, 4))
    vectors = np.asarray(left_singular_vectors(jax.numpy.asarray(matrix)))
    np.testing.assert_array_equal(vectors[5:], np.eye(8)[5:])
    np.testing.assert_array_equal(vectors[:5, 5:], 0)


def test_orthogonal_rows_stay_as_they_are() -> None:
    matrix = np.diag(np.array([0.5, 0.5, 0.25, 0.0], np.float32))
    np.testing.assert_array_equal(left_singular_vectors(jax.numpy.asarray(matrix)), np.eye(4))


def test_float64_is_exact_to_float64() -> None:
    matrix = np.random.default_rng(2).normal(size=(9, 12)) / 8
    with jax.enable_x64(True):
        vectors = np.asarray(left_singular_vectors(jax.numpy.asarray(matrix)))
    products = vectors @ matrix @ matrix.T @ vectors.T
    np.testing.assert_allclose(products, np.eye(9) * products, atol=1e-14)
