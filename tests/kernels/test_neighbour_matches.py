from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from saejax_kernels import neighbour_matches

IMPLS: list[Literal["jax", "numba"]] = ["jax", "numba"]


def graph(rng: np.random.Generator, n: int, k: int) -> np.ndarray:
    """Draw k others for each row, numbered from 1."""
    others = np.stack([rng.permutation(n - 1)[:k] for _ in range(n)])
    return (others + (others >= np.arange(n)[:, None]) + 1).astype(np.int32)


def by_search(nx: np.ndarray, ny: np.ndarray, perm: np.ndarray) -> list[list[int]]:
    lists = [[partner - 1 for partner in row] for row in ny.tolist()]
    return [
        [lists[perm[i]].index(perm[j - 1]) + 1 if perm[j - 1] in lists[perm[i]] else 0 for j in row]
        for i, row in enumerate(nx.tolist())
    ]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("n", "k", "count"), [(4, 3, 1), (5, 1, 7), (23, 6, 9), (40, 39, 2)])
def test_ranks_are_those_found_by_searching_the_lists(
    impl: Literal["jax", "numba"], n: int, k: int, count: int
) -> None:
    rng = np.random.default_rng(n)
    nx, ny = graph(rng, n, k), graph(rng, n, k)
    perms = np.stack([rng.permutation(n) for _ in range(count)])
    ranks = neighbour_matches(nx, ny, perms, impl=impl)
    assert ranks.dtype == np.uint16
    np.testing.assert_array_equal(ranks, [by_search(nx, ny, perm) for perm in perms])


@pytest.mark.parametrize("impl", IMPLS)
def test_a_graph_re_paired_with_its_own_relabelling_shares_every_neighbour_at_its_rank(
    impl: Literal["jax", "numba"],
) -> None:
    rng = np.random.default_rng(1)
    n, k = 30, 5
    nx, perm = graph(rng, n, k), rng.permutation(n)
    ny = np.empty_like(nx)
    ny[perm] = perm[nx - 1] + 1
    ranks = neighbour_matches(nx, ny, perm[None], impl=impl)[0]
    np.testing.assert_array_equal(ranks, np.tile(np.arange(1, k + 1), (n, 1)))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("rows", "columns"), [(0, 2), (3, 0), (3, 2)])
def test_nobody_is_shared_with_anybody(impl: Literal["jax", "numba"], rows: int, columns: int) -> None:
    """Appended rows and columns of zeros change no rank and have none."""
    rng = np.random.default_rng(2)
    n, k = 12, 4
    nx, ny = graph(rng, n, k), graph(rng, n, k)
    perms = np.stack([rng.permutation(n) for _ in range(20)])
    ranks = neighbour_matches(nx, ny, perms, impl=impl)
    wide_x, wide_y = (np.pad(lists, ((0, rows), (0, columns))) for lists in (nx, ny))
    longer = np.hstack([perms, np.tile(np.arange(n, n + rows), (len(perms), 1))])
    padded = neighbour_matches(wide_x, wide_y, longer, impl=impl)
    np.testing.assert_array_equal(padded, np.pad(ranks, ((0, 0), (0, rows), (0, columns))))


def test_jax_reference_traces_under_jit_and_vmap() -> None:
    rng = np.random.default_rng(3)
    n, k = 17, 5
    nx = np.stack([graph(rng, n, k) for _ in range(3)])
    perms = np.stack([rng.permutation(n) for _ in range(4)]).astype(np.uint32)
    each = jax.jit(jax.vmap(lambda one: neighbour_matches(one, nx[0], perms, impl="jax")))(jnp.asarray(nx))
    for one, ranks in zip(nx, each, strict=True):
        np.testing.assert_array_equal(ranks, neighbour_matches(one, nx[0], perms, impl="numba"))


def test_jax_never_holds_all_comparisons() -> None:
    n, k = 2000, 20
    lists, perms = jnp.zeros((n, k), jnp.int32), jnp.zeros((2, n), jnp.int32)
    compiled = jax.jit(lambda nx, ny, p: neighbour_matches(nx, ny, p, impl="jax")).lower(lists, lists, perms).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    assert analysis.temp_size_in_bytes <= 8 * perms.size * k + 4 * perms.size
