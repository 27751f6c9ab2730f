import tracemalloc

import numpy as np
import pytest
import scipy.stats
from scipy.spatial.distance import pdist, squareform

from saejax.similarity import distances, ranks
from saejax.similarity.distances import Rows
from saejax.similarity.ranks import LARGEST_EXACT, Ranks, exact_ranks, quantised_ranks

RNG = np.random.default_rng(0)
GENERIC = RNG.normal(size=(300, 12))
HUBS = np.repeat(RNG.normal(size=(40, 12)), RNG.integers(1, 16, size=40), axis=0)
OUTLIER = np.concatenate([GENERIC[:200], 1e8 * GENERIC[200:201]])
NEAR_COPIES = np.concatenate([GENERIC[:150], GENERIC[:150] * (1 + 1e-9 * RNG.normal(size=(150, 12)))])
WHOLE = RNG.integers(0, 3, size=(150, 6)).astype(float)
# With the angle that each is allowed: of few pairs, two that share a cell weigh more.
MATRICES = {
    "generic": (GENERIC, 4e-5),
    "hubs": (HUBS, 4e-5),
    "outlier": (OUTLIER, 2e-3),
    "near copies": (NEAR_COPIES, 2e-4),
    "whole": (WHOLE, 4e-5),
}
every_matrix = pytest.mark.parametrize(("matrix", "most"), MATRICES.values(), ids=list(MATRICES))


def over_pairs(found: Ranks) -> np.ndarray:
    return squareform(found.matrix.astype(float), checks=False)


def doubled_midranks(matrix: np.ndarray) -> np.ndarray:
    """Twice the centred ranks of distances, by scipy."""
    found = 2 * scipy.stats.rankdata(np.round(pdist(matrix) / pdist(matrix).max(), 14))
    return found - found.mean()


def angle(a: np.ndarray, b: np.ndarray) -> float:
    a, b = ((each - each.mean()) / np.linalg.norm(each - each.mean()) for each in (a, b))
    return 2 * np.arcsin(np.linalg.norm(a - b) / 2)


@pytest.mark.parametrize("matrix", [GENERIC, HUBS, WHOLE], ids=["generic", "hubs", "whole"])
def test_exact_ranks_are_twice_the_centred_midranks(matrix: np.ndarray) -> None:
    found = exact_ranks(Rows.of(matrix, "euclidean"))
    expected = doubled_midranks(matrix)
    np.testing.assert_array_equal(over_pairs(found), expected)
    np.testing.assert_array_equal(found.matrix, found.matrix.T)
    assert not found.matrix.diagonal().any()
    assert (found.matrix.dtype, found.total, found.angle) == (np.float32, 0, 0)
    assert found.norm == pytest.approx(np.linalg.norm(expected), rel=1e-14)


def test_float32_holds_every_rank_up_to_the_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    assert LARGEST_EXACT * (LARGEST_EXACT - 1) // 2 < 2**24
    assert ranks.MOST_ROWS * (ranks.MOST_ROWS - 1) // 2 < 2**31 < (ranks.MOST_ROWS + 1) * ranks.MOST_ROWS // 2
    single = exact_ranks(Rows.of(GENERIC, "euclidean"))
    monkeypatch.setattr(ranks, "LARGEST_EXACT", 299)
    whole = exact_ranks(Rows.of(GENERIC, "euclidean"))
    assert whole.matrix.dtype == np.int32
    np.testing.assert_array_equal(whole.matrix, single.matrix)


@every_matrix
def test_the_bound_on_the_angle_holds_and_is_near_it(matrix: np.ndarray, most: float) -> None:
    """The exact ranks lie within the stated angle of the quantised, which is at most twice the true one."""
    rows = Rows.of(matrix, "euclidean")
    exact, found = exact_ranks(rows), quantised_ranks(rows)
    assert found.matrix.dtype == np.int16
    levels = over_pairs(found)
    assert found.total == levels.sum()
    assert found.norm == pytest.approx(np.linalg.norm(levels - levels.mean()), rel=1e-12)
    true = angle(levels, over_pairs(exact))
    assert true <= found.angle + 1e-12
    assert found.angle <= max(2 * true, 1e-12)
    assert found.angle < most


def test_few_pairs_keep_their_ranks() -> None:
    rows = Rows.of(GENERIC[:30], "euclidean")
    found = quantised_ranks(rows)
    np.testing.assert_array_equal(found.matrix, exact_ranks(rows).matrix)
    assert found.angle == 0


def test_distances_of_zero_tie_in_spite_of_rounding() -> None:
    """Correlation distances of equal rows are 0 or a few 1e-16."""
    rows = Rows.of(HUBS * RNG.uniform(0.5, 2, size=(len(HUBS), 1)), "correlation")
    products = rows.reduced @ rows.reduced.T
    apart = np.abs(1 - products[np.triu_indices(len(HUBS), 1)])
    zero = apart < 1e-12
    assert len(np.unique(apart[zero])) > 1
    found = quantised_ranks(rows)
    for ranks_found in (found, exact_ranks(rows)):
        assert len(np.unique(over_pairs(ranks_found)[zero])) == 1
    assert found.angle < 8e-5


def test_coarse_cells_widen_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Rows.of(GENERIC, "euclidean")
    fine = quantised_ranks(rows).angle
    monkeypatch.setattr(ranks, "CELLS", 2**9)
    coarse = quantised_ranks(rows)
    assert coarse.angle > 20 * fine
    assert angle(over_pairs(coarse), over_pairs(exact_ranks(rows))) <= coarse.angle + 1e-12


@pytest.mark.parametrize("make", [exact_ranks, quantised_ranks])
def test_blocks_change_nothing(make, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Rows.of(GENERIC, "euclidean")
    at_once = make(rows)
    monkeypatch.setattr(distances, "BLOCK", 10_000)
    in_blocks = make(rows)
    np.testing.assert_array_equal(in_blocks.matrix, at_once.matrix)
    assert in_blocks[1:] == at_once[1:]


def test_memory_of_ranking_in_16_bits_does_not_grow_with_the_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "BLOCK", 2**16)
    monkeypatch.setattr(ranks, "CELLS", 2**12)
    monkeypatch.setattr(ranks, "SAMPLE", 100)
    n = 1200
    rows = Rows.of(np.random.default_rng(1).normal(size=(n, 3)), "euclidean")
    tracemalloc.start()
    quantised_ranks(rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * n**2 + 8 * 8 * 2**16  # below the 4 n^2 bytes of all distances in float64, and far below sorting
