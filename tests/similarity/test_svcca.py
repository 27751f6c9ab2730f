from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from saejax_kernels import nuclear_norms

from saejax.similarity.svcca import PADDING, SVCCA, SVCCAState, prepare, reference, score, score_batch


def decaying(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """Rows with unequal variances in random directions."""
    return rng.normal(size=(n, d)) * np.geomspace(1, 0.01, d) @ scipy.stats.ortho_group.rvs(d, random_state=rng)


def rotation(rng: np.random.Generator, d: int) -> np.ndarray:
    return scipy.stats.ortho_group.rvs(d, random_state=rng)


def single(state: SVCCAState) -> SVCCAState:
    return SVCCAState(*(jnp.asarray(leaf, jnp.float32 if leaf.ndim else jnp.int32) for leaf in state))


def test_number_of_directions_is_the_smallest_that_reaches_99_percent() -> None:
    """Columns with variances 90, 9, 0.9 and 0.1 parts in a hundred: two reach exactly 99 %, one does not."""
    n = 8
    basis = scipy.linalg.hadamard(n)[:, 1:5] / np.sqrt(n)
    for variances, directions in (([90, 9, 0.9, 0.1], 2), ([90, 8.9, 1, 0.1], 3), ([99.5, 0.3, 0.1, 0.1], 1)):
        state = prepare(basis * np.sqrt(variances) + 5, np.random.default_rng(0).normal(size=(n, 3)))
        assert state.kx == directions
        assert state.ux.shape == (n, PADDING)
        assert not state.ux[:, directions:].any()


def test_is_the_mean_canonical_correlation() -> None:
    """Where no variance is cut: against the generalised eigenvalue problem of canonical correlation."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(60, 4)), rng.normal(size=(60, 6))
    y[:, :2] += x[:, :2]
    covariance = np.cov(np.hstack([x, y]).T)
    within: Any = scipy.linalg.block_diag(covariance[:4, :4], covariance[4:, 4:])
    largest = scipy.linalg.eigh(covariance - within, within, eigvals_only=True)[-4:]
    assert reference(x, y) == pytest.approx(largest.mean(), abs=1e-12)


def test_invariant_to_rotation_scale_and_shift() -> None:
    rng = np.random.default_rng(2)
    x, y = decaying(rng, 50, 12), decaying(rng, 50, 9)
    moved = 7 * x @ rotation(rng, 12) + rng.normal(size=12)
    assert reference(moved, 0.01 * y @ rotation(rng, 9) - 3) == pytest.approx(reference(x, y), abs=1e-12)
    sheared = x @ np.diag(np.geomspace(1, 1000, 12))
    assert abs(reference(sheared, y) - reference(x, y)) > 1e-3


def test_a_rotated_copy_scores_one() -> None:
    rng = np.random.default_rng(3)
    x = decaying(rng, 40, 10)
    assert reference(x, x @ rotation(rng, 10)) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("n", "dx", "dy"), [(20, 3, 4), (90, 40, 30), (30, 40, 50), (12, 1, 1)])
def test_scores_of_all_ways_agree_with_the_definition(n: int, dx: int, dy: int) -> None:
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, dx)), rng.normal(size=(n, dy))
    perms = np.stack([rng.permutation(n) for _ in range(7)]).astype(np.int32)
    expected = [reference(x, y[perm]) for perm in perms]
    state = single(prepare(x, y))
    looped = [score(state, perm) for perm in perms]
    mapped = jax.vmap(score, in_axes=(None, 0))(state, jnp.asarray(perms))
    np.testing.assert_allclose(mapped, looped, atol=2e-7)
    for scores in (looped, mapped, score_batch(state, perms)):
        np.testing.assert_allclose(scores, expected, atol=SVCCA.tolerance / 2, rtol=0)


def test_saturated_pairings_all_score_one() -> None:
    """With as many directions as n - 1 on one side, every pairing contains the other side."""
    rng = np.random.default_rng(5)
    n = 6
    x, y = rng.normal(size=(n, 20)), rng.normal(size=(n, 3))
    state = single(prepare(x, y))
    assert state.kx == n - 1
    perms = np.stack([rng.permutation(n) for _ in range(5)])
    np.testing.assert_allclose(score_batch(state, perms), 1, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(score, in_axes=(None, 0))(state, jnp.asarray(perms)), 1, atol=1e-6)


def test_padding_changes_nothing() -> None:
    rng = np.random.default_rng(6)
    n = 70
    state = single(prepare(rng.normal(size=(n, 20)), rng.normal(size=(n, 33))))
    bare = state._replace(ux=state.ux[:, : int(state.kx)], uy=state.uy[:, : int(state.ky)])
    perms = np.stack([rng.permutation(n) for _ in range(3)])
    np.testing.assert_allclose(score_batch(state, perms), score_batch(bare, perms), atol=1e-7)


def test_subsamples_with_other_ranks_share_one_compilation() -> None:
    rng = np.random.default_rng(7)
    jitted: Any = jax.jit(score)
    ranks = set()
    for columns in (20, 24, 28):
        state = single(prepare(rng.normal(size=(60, columns)), rng.normal(size=(60, 25))))
        ranks.add(int(state.kx))
        jitted(state, jnp.arange(60))
    assert len(ranks) == 3
    assert jitted._cache_size() == 1


def test_null_mean_follows_wachters_law() -> None:
    """Mean canonical correlation of random pairings, from the limit law of their squares."""
    rng = np.random.default_rng(8)
    n, kx, ky = 400, 30, 60
    bases = [rng.normal(size=(n, k)) for k in (kx, ky)]
    bases = [np.linalg.qr(basis - basis.mean(axis=0))[0].astype(np.float32) for basis in bases]
    perms = [rng.permutation(n) for _ in range(200)]
    norms = nuclear_norms(np.stack([bases[0].T @ bases[1][perm] for perm in perms]), impl="numba")
    c1, c2 = kx / (n - 1), ky / (n - 1)
    low, high = ((np.sqrt(c1 * (1 - c2)) - sign * np.sqrt(c2 * (1 - c1))) ** 2 for sign in (1, -1))
    angle = (np.arange(20_000) + 0.5) * np.pi / 20_000  # substitution that removes the roots at both ends
    value = (low + high) / 2 - (high - low) / 2 * np.cos(angle)
    density = ((high - low) / 2 * np.sin(angle)) ** 2 / (2 * np.pi * c1 * value * (1 - value)) * np.pi / 20_000
    assert density.sum() == pytest.approx(1, abs=1e-6)
    wachter = np.sum(np.sqrt(value) * density)
    assert np.mean(norms) / kx == pytest.approx(wachter, abs=0.003)
