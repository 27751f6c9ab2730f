import gc

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from saejax.errors import InputError
from saejax.similarity import neighbours
from saejax.similarity.neighbour_moments import graph_moments, graph_sums
from saejax.similarity.neighbours import matches, measure_name, nearest, refuse_ambiguous
from saejax.similarity.pair import Pair, Side


def matrices(n: int = 30) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    return rng.normal(size=(n, 5)), rng.normal(size=(n, 4))


def refusal(x: np.ndarray, y: np.ndarray, k: int = 10) -> str:
    with pytest.raises(InputError) as error:
        refuse_ambiguous("knn_jaccard", k, Pair.of(x, y))
    return str(error.value)


@pytest.mark.parametrize("block", [1, 7 * 8 * 50, 2**20])
@pytest.mark.parametrize("k", [1, 10, 48])
def test_nearest_are_those_of_scikit_learn(monkeypatch: pytest.MonkeyPatch, block: int, k: int) -> None:
    """One row at a time, in blocks with a remainder, and all at once."""
    monkeypatch.setattr(neighbours, "BLOCK_BYTES", block)
    x, _ = matrices(50)
    found = nearest(Side(x), k)
    distances, rows = NearestNeighbors(n_neighbors=k + 2, metric="cosine").fit(x).kneighbors(x)
    np.testing.assert_array_equal(rows[:, 0], np.arange(50))
    np.testing.assert_array_equal(found.rows, rows[:, 1:])
    np.testing.assert_allclose(found.distances, distances[:, 1:], atol=1e-15)


def test_a_row_is_no_neighbour_of_its_own_though_another_has_its_direction() -> None:
    x, _ = matrices(12)
    x[7] = 3 * x[2]
    rows = nearest(Side(x), 4).rows
    assert rows[2, 0] == 7
    assert rows[7, 0] == 2
    assert not np.any(rows == np.arange(12)[:, None])


def test_where_all_others_are_neighbours_there_is_none_beyond() -> None:
    x, _ = matrices(6)
    assert nearest(Side(x), 4).rows.shape == (6, 5)
    rows = nearest(Side(x), 5).rows
    np.testing.assert_array_equal(np.sort(rows, axis=1), [[j for j in range(6) if j != i] for i in range(6)])


def test_rows_of_any_length_have_neighbours() -> None:
    x, _ = matrices(20)
    lengths = np.logspace(-300, 300, 20)[:, None]
    np.testing.assert_array_equal(nearest(Side(x * lengths), 5).rows, nearest(Side(x), 5).rows)


def test_neighbours_are_found_once_and_forgotten_with_their_matrix() -> None:
    side = Side(matrices()[0])
    assert nearest(side, 3) is nearest(side, 3)
    assert nearest(side, 4) is not nearest(side, 3)
    before = len(neighbours._KEPT)
    del side
    gc.collect()
    assert len(neighbours._KEPT) < before


def test_statistics_of_one_k_are_one() -> None:
    """So that measures asked for together share it."""
    assert matches(10) is matches(10)
    assert matches(10) != matches(5)


def test_shared_neighbours_have_the_moments_of_directed_graphs() -> None:
    x, y = matrices(40)
    y[:, :3] += x[:, :3]
    pair, k, count = Pair.of(x, y), 6, 20_000
    perms = np.argsort(np.random.default_rng(0).random((count, pair.n)), axis=1)
    batch = matches(k).compute_batch
    assert batch is not None
    shared = np.sum(batch(matches(k).prepare(pair, None), perms) > 0, axis=(1, 2))
    a, b = (graph_sums(nearest(side, k).rows[:, :k]) for _, side in pair.sides)
    exact = graph_moments(a, b)
    assert exact.sd is not None
    assert abs(shared.mean() - exact.mean) < 4 * exact.sd / np.sqrt(count)
    assert shared.std() == pytest.approx(exact.sd, rel=0.03)


def test_equal_rows_are_refused_by_number() -> None:
    x, y = matrices()
    x[17] = x[3]
    assert refusal(x, y) == (
        "knn_jaccard: rows 3 and 17 of x are equal (2 rows have such a twin), so their neighbours' order is "
        "arbitrary; keep one of them"
    )


@pytest.mark.parametrize("scale", [2.0, 1 / 3, 7e-9])
def test_rows_of_one_direction_are_refused_by_number(scale: float) -> None:
    x, y = matrices()
    y[[4, 9]] = scale * y[20], y[20] / scale
    assert refusal(x, y) == (
        "knn_jaccard: rows 4 and 9 of y point the same way (3 rows have such a twin), so their neighbours' order is "
        "arbitrary; keep one of them"
    )


def test_opposite_rows_are_no_twins() -> None:
    x, y = matrices()
    x[17] = -x[3]
    refuse_ambiguous("knn_jaccard", 10, Pair.of(x, y))


def test_orthonormal_rows_are_refused() -> None:
    """Ties broken by row number would give them the same neighbours on both sides: a score of 1 from nothing."""
    x, _ = matrices()
    assert refusal(x, np.eye(30)) == (
        "knn_jaccard: rows 1 and 2 of y are equally far from row 0 as far as float64 tells (cosine distance 1; 300 "
        "such tie(s)), so its 10 nearest are arbitrary; leave knn_jaccard out"
    )


def test_a_tie_with_the_first_row_left_out_is_refused_and_one_beyond_is_not() -> None:
    angles = np.array([0, 0.1, -0.2, 0.3, -0.3, 2.5])
    x = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    y = matrices(6)[1]
    assert "rows 3 and 4 of x are equally far from row 0 as far as" in refusal(x, y, 3)
    x[5] = np.cos(0.3004), np.sin(0.3004)
    assert "from row 0 " in refusal(x, y, 4)
    x[3:] = [[np.cos(angle), np.sin(angle)] for angle in (1.001, 1.5, -1.5)]
    refuse_ambiguous("knn_jaccard", 2, Pair.of(x, y))


def test_a_row_of_zeros_is_refused_by_number() -> None:
    x, y = matrices()
    y[[5, 6]] = 0
    assert refusal(x, y) == (
        "knn_jaccard: row 5 of y is zero (2 such row(s)), so it has no direction; leave that pair out"
    )


def test_fewer_rows_than_neighbours_are_refused() -> None:
    x, y = matrices(10)
    assert refusal(x, y) == "knn_jaccard: 10 pairs have no 10 neighbours each; give at least 11 or lower k"
    refuse_ambiguous("knn_jaccard", 9, Pair.of(x, y))


@pytest.mark.parametrize("k", [0, -1, 256])
def test_a_number_of_neighbours_out_of_range_is_refused(k: int) -> None:
    with pytest.raises(InputError, match=f"^rank_similarity: k {k} must be from 1 to 255 neighbours$"):
        measure_name("rank_similarity", k)


def test_the_usual_number_of_neighbours_is_not_named() -> None:
    assert measure_name("knn_jaccard", 10) == "knn_jaccard"
    assert measure_name("knn_jaccard", 5) == "knn_jaccard:k=5"
