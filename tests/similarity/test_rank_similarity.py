import numpy as np
import pytest

from saejax.errors import InputError
from saejax.similarity.rank_similarity import RANK_SIMILARITY, RankState, rank_similarity


def on_a_circle(*degrees: float) -> np.ndarray:
    """Rows at given angles, whose cosine distances grow with the angles between them."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


X = on_a_circle(0, 10, 21, 33, 46)
Y = on_a_circle(0, 21, 10, 33, 46)  # rows 1 and 2 have changed places


def test_a_worked_example() -> None:
    """Neighbours of each row in x, then in y, k = 2, and what the shared ones add.

    row 0: 1 2 | 2 1    both at ranks 1 and 2 crossed: 2 * 2 / (2 * 3) / (1 + 1/2)
    row 1: 0 2 | 2 3    2 at ranks 2 and 1: 2 / (2 * 3) / 1
    row 2: 1 3 | 0 1    1 at ranks 1 and 2: 2 / (2 * 3) / 1
    row 3: 2 4 | 1 4    4 at rank 2 in both: 2 / (1 * 4) / 1
    row 4: 3 2 | 3 1    3 at rank 1 in both: 2 / (1 * 2) / 1
    """
    expected = np.mean([2 / 3 / 1.5, 1 / 3, 1 / 3, 1 / 2, 1])
    measure = rank_similarity(k=2)
    assert measure.reference(X, Y) == pytest.approx(expected, abs=1e-15)
    assert measure.score_exact(measure.prepare(X, Y), np.arange(5)) == pytest.approx(expected, abs=1e-15)


def test_no_shared_neighbour_scores_zero() -> None:
    """The nearest of each row in x is the farthest but one in y."""
    y = on_a_circle(0, 100, 201, 2, 104)
    measure = rank_similarity(k=1)
    assert measure.reference(X, y) == 0
    assert measure.score_exact(measure.prepare(X, y), np.arange(5)) == 0


def test_is_one_for_a_rotated_copy() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 6))
    rotated = x @ np.linalg.qr(rng.normal(size=(6, 6)))[0]
    state = RANK_SIMILARITY.prepare(x, rotated)
    assert RANK_SIMILARITY.score_exact(state, np.arange(30)) == pytest.approx(1, abs=1e-15)


def test_order_counts() -> None:
    """The same neighbours in another order score less, unlike in k-NN Jaccard."""
    measure = rank_similarity(k=4)
    assert measure.reference(X, X) == 1
    assert measure.reference(X, Y) < 0.9


def test_one_more_shared_neighbour_may_score_less() -> None:
    """Because the harmonic number grows; the published definition, kept."""
    own = RankState(1 / np.cumsum(1 / np.arange(1, 11)))
    one, two = np.zeros((2, 1, 10), np.uint16)
    one[0, 0] = two[0, 0] = 1
    two[0, 9] = 7
    scores = [float(RANK_SIMILARITY.core(own, (ranks,), np.arange(1)).low) for ranks in (one, two)]
    assert scores == pytest.approx([1, (1 + 2 / (4 * 17)) / 1.5], abs=1e-6)


def test_refuses_in_its_own_name() -> None:
    with pytest.raises(InputError, match="^rank_similarity:k=5: 5 pairs have no 5 neighbours each"):
        rank_similarity(k=5).prepare(X, Y)
    with pytest.raises(InputError, match="^rank_similarity: k 0 must be"):
        rank_similarity(k=0)
