"""Moments of shared neighbours against all n! pairings."""

import itertools

import numpy as np
import pytest

from saejax.errors import InputError
from saejax.similarity.neighbour_moments import graph_moments, graph_sums, jaccard_mean


def neighbours(n: int, k: int, seed: int, hub: bool) -> np.ndarray:
    """Return random lists of k other rows; with a hub, row 0 is on every list but its own."""
    rng = np.random.default_rng([seed, n, k])
    lists = np.array([rng.permutation(np.delete(np.arange(n), i))[:k] for i in range(n)])
    if hub:
        missing = ~(lists == 0).any(axis=1)
        missing[0] = False
        lists[missing, 0] = 0
    return lists


def adjacency(lists: np.ndarray) -> np.ndarray:
    graph = np.zeros((len(lists), len(lists)), dtype=bool)
    np.put_along_axis(graph, lists, True, axis=1)
    return graph


def all_shared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return for every permutation p and every row i the number of j with a[i, j] and b[p_i, p_j]."""
    perms = np.array(list(itertools.permutations(range(len(a)))))
    return (a & b[perms[:, :, None], perms[:, None, :]]).sum(axis=2)


@pytest.mark.parametrize("n", [4, 5, 6, 7])
@pytest.mark.parametrize(("k", "other", "hub"), [(1, 1, False), (1, 2, True), (2, 3, False), (3, 3, True)])
def test_moments_of_shared_edges_are_those_of_all_pairings(n: int, k: int, other: int, hub: bool) -> None:
    a, b = neighbours(n, k, 0, hub), neighbours(n, other, 1, hub)
    shared = all_shared(adjacency(a), adjacency(b)).sum(axis=1)
    moments = graph_moments(graph_sums(a), graph_sums(b))
    np.testing.assert_allclose(moments[:2], (shared.mean(), shared.std()), rtol=1e-12, atol=1e-7)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_jaccard_mean_is_that_of_all_pairings(k: int) -> None:
    shared = all_shared(*(adjacency(neighbours(6, k, seed, hub=True)) for seed in (2, 3)))
    assert jaccard_mean(6, k) == pytest.approx(np.mean(shared / (2 * k - shared)), rel=1e-12)


def test_moments_of_nearest_neighbours_are_those_of_sampled_pairings() -> None:
    """10^5 pairings of 40 points on a line and in a plane, some crowded: within 4 standard errors."""
    rng = np.random.default_rng(4)
    n, k, count = 40, 5, 100_000
    lists = []
    for d in (1, 2):
        points = rng.normal(size=(n, d)) * rng.exponential(size=(n, 1))
        distances = np.linalg.norm(points[:, None] - points, axis=2)
        np.fill_diagonal(distances, np.inf)
        lists.append(np.argsort(distances, axis=1)[:, :k])
    b = adjacency(lists[1])
    totals, jaccards = np.empty(count), np.empty(count)
    for chunk in np.array_split(np.arange(count), 20):
        perms = np.argsort(rng.random((len(chunk), n)), axis=1)
        shared = b[perms[:, :, None], perms[:, lists[0]]].sum(axis=2)
        totals[chunk], jaccards[chunk] = shared.sum(axis=1), np.mean(shared / (2 * k - shared), axis=1)
    moments = graph_moments(*map(graph_sums, lists))
    z = (totals - moments.mean) / moments.sd
    assert np.mean(z) == pytest.approx(0, abs=4 / np.sqrt(count))
    assert np.mean(z**2) == pytest.approx(1, abs=4 * np.std(z**2) / np.sqrt(count))
    assert np.mean(jaccards) == pytest.approx(jaccard_mean(n, k), abs=4 * np.std(jaccards) / np.sqrt(count))


@pytest.mark.parametrize("row", [[2, 2], [1, 3], [0, 5], [-1, 0]])
def test_lists_that_are_no_neighbours_are_refused(row: list[int]) -> None:
    lists = neighbours(5, 2, 5, hub=False)
    lists[1] = row
    with pytest.raises(InputError, match=r"neighbours .* of row 1 must be different rows of the other 4"):
        graph_sums(lists)


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="n 3 must be at least 4 pairs"):
        graph_sums(np.array([[1], [2], [0]]))
    with pytest.raises(InputError, match="n 5 of one graph is not the 6 of the other"):
        graph_moments(*(graph_sums(neighbours(n, 2, 6, hub=False)) for n in (5, 6)))
    with pytest.raises(InputError, match="k 5 must be from 1 to n - 1 = 4 neighbours"):
        jaccard_mean(5, 5)
