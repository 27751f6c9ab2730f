import itertools

import numpy as np
import pytest

from saejax.features.matching import Matches, Method, match

METHODS: list[Method] = ["many_to_one", "mutual_best", "one_to_one"]


def pairs_of(matches: Matches) -> set[tuple[int, int]]:
    return set(zip(matches.rows.tolist(), matches.columns.tolist(), strict=True))


def matrix(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (rows, columns))


def slabs(whole: np.ndarray, height: int) -> list[np.ndarray]:
    return [whole[start : start + height] for start in range(0, len(whole), height)]


@pytest.mark.parametrize("height", [1, 3, 20])
def test_many_to_one_gives_every_column_its_best_row(height: int) -> None:
    r = matrix(11, 7)
    matches = match(slabs(r, height), "many_to_one")
    assert pairs_of(matches) == {(max(range(11), key=lambda i: r[i, j]), j) for j in range(7)}
    np.testing.assert_array_equal(matches.correlation, r.max(axis=0))


@pytest.mark.parametrize("height", [1, 3, 20])
def test_mutual_best_keeps_pairs_that_are_each_others_best(height: int) -> None:
    r = matrix(30, 25)
    expected = {(i, j) for i, j in np.ndindex(*r.shape) if r[i, j] == r[i].max() == r[:, j].max()}
    assert 3 < len(expected) < 25
    assert pairs_of(match(slabs(r, height), "mutual_best")) == expected


@pytest.mark.parametrize("shape", [(6, 6), (4, 6), (6, 4)])
@pytest.mark.parametrize("seed", range(5))
def test_one_to_one_has_the_largest_total_of_all_assignments(shape: tuple[int, int], seed: int) -> None:
    r = matrix(*shape, seed)
    small = r if shape[0] <= shape[1] else r.T
    totals = [
        small[np.arange(len(small)), list(columns)].sum()
        for columns in itertools.permutations(range(small.shape[1]), len(small))
    ]
    matches = match([r], "one_to_one")
    assert len(matches.rows) == min(shape) == len(set(matches.rows)) == len(set(matches.columns))
    np.testing.assert_array_equal(matches.correlation, r[matches.rows, matches.columns])
    assert matches.correlation.sum() == pytest.approx(max(totals), abs=1e-12)


@pytest.mark.parametrize("height", [1, 2, 4])
def test_equals_go_to_the_lowest_index(height: int) -> None:
    r = np.array([[0.1, 0.2], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])
    assert pairs_of(match(slabs(r, height), "many_to_one")) == {(1, 0), (1, 1)}
    assert pairs_of(match(slabs(r, height), "mutual_best")) == {(1, 0)}


def test_one_to_one_refuses_a_matrix_in_parts() -> None:
    with pytest.raises(ValueError, match="too many values"):
        match(slabs(matrix(6, 6), 3), "one_to_one")
