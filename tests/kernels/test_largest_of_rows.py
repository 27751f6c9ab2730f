import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from saejax_kernels import largest_of_rows

ROWS = 6


def by_sorting(matrix: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    matrix = matrix + bias_of(matrix)
    order = np.argsort(-matrix, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(matrix, order, axis=1), order


def bias_of(matrix: np.ndarray) -> np.ndarray:
    return np.random.default_rng(1).integers(-1, 2, matrix.shape[1]).astype(np.float32)


def assert_largest(matrix: np.ndarray, k: int) -> None:
    found = jax.jit(largest_of_rows, static_argnums=2)(jnp.asarray(matrix), jnp.asarray(bias_of(matrix)), k)
    for ours, theirs in zip(found, by_sorting(matrix, k), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("columns", "k"), [(1, 1), (7, 7), (64, 1), (4096, 1), (4096, 3), (4096, 4096), (1000, 9), (4099, 5), (513, 500)]
)
def test_entries_and_columns_are_those_of_a_stable_sort(columns: int, k: int) -> None:
    assert_largest(np.random.default_rng(columns + k).normal(size=(ROWS, columns)).astype(np.float32), k)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.sampled_from([(64, 3), (300, 2), (257, 5), (1024, 4)]), st.integers(1, 6), st.integers(0, 2**31))
def test_of_equal_entries_the_first_columns_are_taken(size: tuple[int, int], values: int, seed: int) -> None:
    """Few different values: the k-th is nearly always tied, within groups and across them."""
    columns, k = size
    assert_largest(np.random.default_rng(seed).integers(0, values, (ROWS, columns)).astype(np.float32), k)


def test_columns_of_minus_infinity_come_last() -> None:
    matrix = np.full((ROWS, 1024), -np.inf, np.float32)
    matrix[:, 700:703] = -1
    assert_largest(matrix, 5)


def test_a_large_matrix_is_never_sorted_whole() -> None:
    """Both top_k see rows of a few thousand entries, not of 65,536."""
    given = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((4, 65_536), (65_536,))]
    traced = jax.make_jaxpr(lambda matrix, bias: largest_of_rows(matrix, bias, 64))(*given)
    sorted_ = [eqn.invars[0].aval.shape[1] for eqn in traced.jaxpr.eqns if eqn.primitive.name == "top_k"]
    assert len(sorted_) == 2
    assert max(sorted_) <= 4096


def test_an_approximate_search_finds_its_share() -> None:
    """All of it where the device gains nothing by less, as here; the entries are those of their columns."""
    matrix = np.random.default_rng(0).normal(size=(64, 4096)).astype(np.float32)
    values, columns = jax.jit(largest_of_rows, static_argnums=(2, 3))(matrix, bias_of(matrix), 16, 0.9)
    exact = by_sorting(matrix, 16)[1]
    assert np.mean([np.isin(*pair).mean() for pair in zip(exact, np.asarray(columns), strict=True)]) >= 0.9
    np.testing.assert_array_equal(values, np.take_along_axis(matrix + bias_of(matrix), np.asarray(columns), axis=1))
