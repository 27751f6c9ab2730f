import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial.distance
from sklearn.metrics.pairwise import cosine_distances
from sklearn.neighbors import NearestNeighbors

from saejax.errors import InputError
from saejax.similarity.measure import Measure, State
from saejax.similarity.second_order_cosine import SECOND_ORDER_COSINE, second_order_cosine


def matrices(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, 6)), rng.normal(size=(n, 8))
    y[:, :6] += x
    return x, y


def single(state: State) -> State:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32 if leaf.dtype == float else leaf.dtype), state)


def by_scikit_learn(x: np.ndarray, y: np.ndarray, k: int) -> float:
    near = [NearestNeighbors(n_neighbors=k, metric="cosine").fit(m).kneighbors(return_distance=False) for m in (x, y)]
    dx, dy = cosine_distances(x), cosine_distances(y)
    unions = [np.union1d(a, b) for a, b in zip(*near, strict=True)]
    return float(np.mean([1 - scipy.spatial.distance.cosine(dx[i, u], dy[i, u]) for i, u in enumerate(unions)]))


@pytest.mark.parametrize("k", [1, 4, 10, 39])
def test_every_member_of_the_union_counts_once(k: int) -> None:
    """From disjoint neighbourhoods at k = 1 to equal ones at k = n - 1, paired and re-paired."""
    x, y = matrices(40)
    measure = second_order_cosine(k=k)
    state = measure.prepare(x, y)
    for seed in range(4):
        perm = np.random.default_rng(seed).permutation(40) if seed else np.arange(40)
        expected = by_scikit_learn(x, y[perm], k)
        assert measure.score_exact(state, perm) == pytest.approx(expected, abs=1e-14)
        assert measure.reference(x, y[perm]) == pytest.approx(expected, abs=1e-14)


def test_is_one_for_a_rotated_copy() -> None:
    x, _ = matrices(30)
    rotated = x @ np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    state = SECOND_ORDER_COSINE.prepare(x, rotated)
    assert SECOND_ORDER_COSINE.score_exact(state, np.arange(30)) == pytest.approx(1, abs=1e-14)


def worst_error(measure: Measure, x: np.ndarray, y: np.ndarray) -> float:
    state, n = measure.prepare(x, y), len(x)
    perms = np.stack([np.arange(n), *(np.random.default_rng(seed).permutation(n) for seed in range(3))])
    exact = [measure.score_exact(state, perm) for perm in perms]
    return float(np.abs(np.asarray(measure.score_batch(single(state), perms)) - exact).max())


@pytest.mark.parametrize(("k", "spread"), [(10, 1.0), (150, 1.0), (10, 1e-4)])
def test_float32_cores_stay_within_tolerance_however_close_the_rows(k: int, spread: float) -> None:
    """Distances from 1 down to 1e-9, of which 1 - cosine in float32 would leave nothing."""
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=12) + spread * rng.normal(size=(200, 12)), rng.normal(size=(200, 9))
    assert worst_error(second_order_cosine(k=k), x, y) < SECOND_ORDER_COSINE.tolerance / 4


def test_squares_of_small_distances_do_not_vanish() -> None:
    """Distances of 1e-10 on both sides: float32 holds their squares, not the product of those."""
    rng = np.random.default_rng(6)
    x, y = (rng.normal(size=6) + 1e-5 * rng.normal(size=(20, 6)) for _ in range(2))
    assert worst_error(second_order_cosine(k=3), x, y) < SECOND_ORDER_COSINE.tolerance / 4


def test_refuses_in_its_own_name() -> None:
    x, y = matrices(30)
    y[7] = 2 * y[2]
    with pytest.raises(InputError, match="^second_order_cosine:k=3: rows 2 and 7 of y point the same way"):
        second_order_cosine(k=3).prepare(x, y)
    with pytest.raises(InputError, match="^second_order_cosine: k 300 must be"):
        second_order_cosine(k=300)
