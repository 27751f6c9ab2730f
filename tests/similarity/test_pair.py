from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas
import pytest
import scipy.sparse

from saejax.errors import InputError
from saejax.similarity.pair import Pair

RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 4))
Y = RNG.normal(size=(8, 5))


def with_value(value: float, *places: tuple[int, int]) -> np.ndarray:
    matrix = Y.copy()
    for place in places:
        matrix[place] = value
    return matrix


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X, Y[:7], "x has 8 rows and y 7; row i of x is paired with row i of y, give as many of each"),
        (X[:3], Y[:3], "x and y have 3 rows; give at least 4 pairs"),
        (X[0], Y, "x has shape (4,); give a matrix, one row per feature"),
        (X, Y[:, :0], "y has shape (8, 0); give a matrix, one row per feature"),
        (X.astype(complex), Y, "x has dtype complex128; give real numbers"),
        (X, np.full((8, 3), "one"), "y has dtype <U3; give real numbers"),
        (X, np.full((8, 3), "1.5"), "y has dtype <U3; give real numbers"),
        (
            X,
            np.zeros((8, 3), "V8"),
            "y has dtype |V8, of which float64 is not made (setting an array element with a sequence.)",
        ),
        (X, np.full((8, 3), "2026-01-01", "datetime64[D]"), "y has dtype datetime64[D]; give real numbers"),
        (
            X,
            pandas.DataFrame(Y).astype("Float64").mask(np.arange(40).reshape(8, 5) % 20 == 12),
            "y holds 2 value(s) that are no numbers, the first <NA> at row 2, column 2 (counted from 0); give real "
            "numbers",
        ),
        (X, np.ma.masked_less(Y, np.sort(Y.ravel())[2]), "y masks 2 value(s); leave those rows out of x and y"),
        (X, scipy.sparse.eye(8), "y is a dia_matrix, which is no array of numpy; convert it to a dense one"),
        (X, np.repeat(Y[:1], 8, axis=0), "y is constant (all 8 rows are equal); give rows that differ"),
        (
            X,
            with_value(np.nan, (5, 2), (6, 0)),
            "y holds 2 value(s) that are not finite, the first nan at row 5, column 2 (counted from 0); leave those "
            "rows out of x and y",
        ),
        (
            X,
            with_value(-np.inf, (0, 3)),
            "y holds 1 value(s) that are not finite, the first -inf at row 0, column 3 (counted from 0); leave those "
            "rows out of x and y",
        ),
        (
            X,
            with_value(np.inf, (1, 1)).astype(np.float16),
            "y holds 1 value(s) that are not finite, the first inf at row 1, column 1 (counted from 0); float16 ends "
            "at 65,504: give float32",
        ),
        (
            X,
            1e80 * Y,
            f"y has a largest entry of {1e80 * np.abs(Y).max():.3g}, whose powers float64 cannot hold; scale it",
        ),
        (
            1e-90 * X,
            Y,
            f"x has a largest entry of {1e-90 * np.abs(X).max():.3g}, whose powers float64 cannot hold; scale it",
        ),
    ],
)
def test_what_cannot_be_compared_is_named(x: Any, y: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        Pair.of(x, y)
    assert str(error.value) == message


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int8, np.float16, jnp.bfloat16, object])
def test_any_real_dtype_is_read_as_float64(dtype: Any) -> None:
    pair = Pair.of((X * 10).astype(dtype), Y)
    assert pair.x.values.dtype == pair.y.values.dtype == np.float64
    np.testing.assert_array_equal(pair.x.values, (X * 10).astype(dtype))


@pytest.mark.parametrize(("shape", "rank"), [((8, 4), 4), ((8, 20), 7), ((8, 7), 7), ((8, 8), 7), ((40, 1), 1)])
def test_rank_is_that_of_the_centred_matrix(shape: tuple[int, int], rank: int) -> None:
    matrix = np.random.default_rng(1).normal(size=shape) + 100
    side = Pair.of(matrix, matrix).x
    assert side.rank == rank
    np.testing.assert_allclose(side.left.T @ side.left, np.eye(rank), atol=1e-12)
    np.testing.assert_allclose(side.left * side.singular @ side.right, side.centred, atol=1e-10)
    assert side.norm == pytest.approx(np.linalg.norm(side.centred))


@pytest.mark.parametrize("offset", [0, 1e6])
def test_copied_columns_and_rows_add_no_direction(offset: float) -> None:
    rng = np.random.default_rng(2)
    matrix = rng.normal(size=(30, 4))[rng.integers(0, 6, 30)] + offset
    assert Pair.of(matrix[:, [0, 1, 2, 3, 3, 0]], matrix).x.rank == 4
