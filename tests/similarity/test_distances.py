import itertools
import warnings
from fractions import Fraction
from typing import Literal

import numpy as np
import pytest
import scipy.stats
from scipy.spatial.distance import pdist

from saejax.similarity import distances
from saejax.similarity.distances import Inner, Rows

INNERS: tuple[Inner, ...] = ("correlation", "cosine", "euclidean")
every_inner = pytest.mark.parametrize("inner", INNERS)


def upper(matrix: np.ndarray, inner: Inner) -> np.ndarray:
    return np.concatenate(list(Rows.of(matrix, inner).upper()))


def in_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "BLOCK", 170)


def tie_pattern(values: np.ndarray) -> np.ndarray:
    return values[:, None] == values


def exact_orders(matrix: np.ndarray, inner: Inner) -> list[Fraction]:
    """Return numbers that grow with the distances of rows, without any rounding."""
    orders = []
    for rows in itertools.combinations(matrix.tolist(), 2):
        left, right = ([Fraction(value) for value in row] for row in rows)
        if inner == "euclidean":
            orders.append(sum((a - b) ** 2 for a, b in zip(left, right, strict=True)))
            continue
        if inner == "correlation":
            left, right = ([len(row) * value - sum(row) for value in row] for row in (left, right))
        product, *squares = (
            sum(a * b for a, b in zip(*pair, strict=True)) for pair in ((left, right), (left, left), (right, right))
        )
        orders.append(-product * abs(product) / (squares[0] * squares[1]))
    return orders


@every_inner
@pytest.mark.parametrize("small", [False, True])
def test_distances_are_those_of_scipy(inner: Inner, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(40, 7)) + 3
    if small:
        in_small_blocks(monkeypatch)
    pieces = list(Rows.of(matrix, inner).upper())
    assert (len(pieces) > 1) == small
    ours, theirs = np.concatenate(pieces), pdist(matrix, inner)
    if inner == "euclidean":
        theirs *= ours.max() / theirs.max()
    else:
        theirs[theirs > 1] = 1 / (2 - theirs[theirs > 1])
    np.testing.assert_allclose(ours, theirs, rtol=1e-10)


@every_inner
@pytest.mark.parametrize("small", [False, True])
def test_what_is_equal_in_exact_arithmetic_is_equal(inner: Inner, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of small whole numbers, whose distances are known as fractions or their roots."""
    rng = np.random.default_rng(1)
    matrix = rng.integers(0, 3, size=(60, 6))
    matrix = matrix[np.ptp(matrix, axis=1) > 0]
    if small:
        in_small_blocks(monkeypatch)
    exact = exact_orders(matrix, inner)
    levels = {value: rank for rank, value in enumerate(dict.fromkeys(exact))}
    expected = tie_pattern(np.array([levels[value] for value in exact]))
    found = upper(matrix.astype(float) * 0.1, inner)
    np.testing.assert_array_equal(tie_pattern(found), expected)


@pytest.mark.parametrize("inner", ["correlation", "cosine"])
@pytest.mark.parametrize("signs", [False, True])
@pytest.mark.parametrize("size", [1e4, 1e8])
def test_rows_along_one_direction_keep_their_order(inner: Inner, signs: bool, size: float) -> None:
    """One direction outweighs all others, so that cosines round to 1 and -1."""
    rng = np.random.default_rng(6)
    matrix = rng.normal(size=(14, 6))
    direction = np.array([1, -1, 0, 0, 0, 0]) * size
    matrix += direction * (rng.choice([-1, 1], size=14) if signs else np.ones(14))[:, None]
    exact = exact_orders(matrix, inner)
    np.testing.assert_array_equal(scipy.stats.rankdata(upper(matrix, inner)), scipy.stats.rankdata(exact))


def test_equal_rows_lie_at_distance_zero() -> None:
    rng = np.random.default_rng(2)
    matrix = np.repeat(rng.normal(size=(20, 9)), 2, axis=0)
    assert np.sum(upper(matrix, "euclidean") == 0) == 20
    matrix *= rng.uniform(0.1, 10, size=(40, 1))
    for inner in ("cosine", "correlation"):
        assert np.sum(upper(matrix, inner) == 0) == 20
        assert np.sum(np.isinf(upper(matrix * np.resize([1, -1], (40, 1)), inner))) == 20
        assert np.sum(upper(matrix + 1e6 * (inner == "correlation"), inner) == 0) == 20


@pytest.mark.parametrize("inner", ["correlation", "cosine"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_rows_of_one_direction_tie_however_long_they_are(inner: Inner, order: Literal["C", "F"], offset: float) -> None:
    rng = np.random.default_rng(7)
    matrix = np.outer(rng.uniform(0.5, 1.5, size=30), rng.normal(size=8192) + offset)
    assert not upper(np.asarray(matrix, order=order), inner).any()


def test_small_distances_beside_large_ones_keep_their_digits() -> None:
    """Products of rows lose them: two tight clusters, and rows with one far outlier."""
    rng = np.random.default_rng(3)
    clusters = rng.normal(size=(20, 5))
    clusters[:10] += 1e7
    outlier = rng.normal(size=(20, 5))
    outlier[0] = 1e12
    for matrix in (clusters, outlier):
        ours, theirs = upper(matrix, "euclidean"), pdist(matrix)
        np.testing.assert_allclose(ours, theirs * (ours.max() / theirs.max()), rtol=1e-9)


@every_inner
@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_size_of_the_numbers_does_not_matter(inner: Inner, size: float) -> None:
    matrix = np.random.default_rng(4).normal(size=(12, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = upper(matrix * size, inner)
    np.testing.assert_allclose(ours / ours.max(), upper(matrix, inner) / upper(matrix, inner).max(), rtol=1e-10)


@every_inner
def test_a_sample_keeps_its_distances(inner: Inner) -> None:
    matrix = np.random.default_rng(5).normal(size=(30, 6))
    matrix[5] *= 100
    rows = Rows.of(matrix, inner)
    sample = rows.sample(10)
    assert len(sample.points) == 10
    (whole,), (part,) = ([block for _, block in each.blocks()] for each in (rows, sample))
    above = np.triu_indices(10, 1)
    np.testing.assert_allclose(part[above], whole[::3, ::3][above], rtol=1e-10)
