import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from saejax.errors import InputError
from saejax.similarity.knn_jaccard import KNN_JACCARD, knn_jaccard
from saejax.similarity.neighbour_moments import jaccard_mean
from saejax.similarity.pair import Pair


def matrices(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, 6)), rng.normal(size=(n, 8))
    y[:, :6] += x
    return x, y


@pytest.mark.parametrize("k", [1, 10])
def test_is_the_jaccard_index_of_scikit_learns_graphs(k: int) -> None:
    x, y = matrices(40)
    graphs = [NearestNeighbors(n_neighbors=k, metric="cosine").fit(m).kneighbors_graph().toarray() > 0 for m in (x, y)]
    shared, either = (graphs[0] & graphs[1]).sum(axis=1), (graphs[0] | graphs[1]).sum(axis=1)
    assert knn_jaccard(k=k).reference(x, y) == pytest.approx(np.mean(shared / either), abs=1e-15)


def test_is_one_for_a_rotated_copy() -> None:
    x, _ = matrices(30)
    rotated = x @ np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    state = KNN_JACCARD.prepare(x, rotated)
    assert KNN_JACCARD.score_exact(state, np.arange(30)) == pytest.approx(1, abs=1e-15)


def test_all_rows_as_neighbours_score_one_whatever_the_pairing() -> None:
    x, y = matrices(11)
    measure = knn_jaccard(k=10)
    perms = np.argsort(np.random.default_rng(0).random((5, 11)), axis=1)
    np.testing.assert_allclose(measure.score_batch(measure.prepare(x, y), perms), 1, atol=1e-6)
    assert measure.constant(Pair.of(x, y))
    assert not knn_jaccard(k=9).constant(Pair.of(x, y))


def test_null_has_the_exact_mean_however_much_the_matrices_share() -> None:
    x, y = matrices(40)
    perms = np.argsort(np.random.default_rng(1).random((20_000, 40)), axis=1)
    draws = np.asarray(KNN_JACCARD.score_batch(KNN_JACCARD.prepare(x, y), perms))
    assert abs(draws.mean() - jaccard_mean(40, 10)) < 4 * draws.std() / np.sqrt(len(draws))
    assert KNN_JACCARD.reference(x, y) > draws.mean() + 5 * draws.std()


def test_refuses_in_its_own_name() -> None:
    x, y = matrices(30)
    x[7] = x[2]
    with pytest.raises(InputError, match="^knn_jaccard:k=3: rows 2 and 7 of x are equal"):
        knn_jaccard(k=3).prepare(x, y)
    with pytest.raises(InputError, match="^knn_jaccard: k 0 must be"):
        knn_jaccard(k=0)
