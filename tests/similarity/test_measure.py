import numpy as np
import pytest

from saejax.errors import InputError
from saejax.similarity import MEASURES
from saejax.similarity.measure import as_pair

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
        (X[:2], Y[:2], "x and y have 2 rows; give at least 3 pairs"),
        (X[0], Y, "x has shape (4,); give a matrix, one row per feature"),
        (X, Y[:, :0], "y has shape (8, 0); give a matrix, one row per feature"),
        (X.astype(complex), Y, "x has dtype complex128; give real numbers"),
        (X, np.full((8, 3), "one"), "y has dtype <U3; give real numbers"),
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
    ],
)
def test_what_cannot_be_compared_is_named(x: np.ndarray, y: np.ndarray, message: str) -> None:
    with pytest.raises(InputError) as error:
        as_pair(x, y)
    assert str(error.value) == message


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int8, np.float16])
def test_any_real_dtype_is_read_as_float64(dtype: type) -> None:
    x, y = as_pair((X * 10).astype(dtype), Y)
    assert x.dtype == y.dtype == np.float64
    np.testing.assert_array_equal(x, (X * 10).astype(dtype))


@pytest.mark.parametrize("name", list(MEASURES))
def test_every_measure_refuses_a_constant_matrix(name: str) -> None:
    for call in (MEASURES[name].check, MEASURES[name].prepare, MEASURES[name].reference):
        with pytest.raises(InputError, match="y is constant"):
            call(X, np.full((8, 3), 0.1))
