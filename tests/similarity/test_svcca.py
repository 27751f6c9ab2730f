from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from saejax_kernels import nuclear_norms

from saejax.errors import InputError
from saejax.similarity.bases import PADDING
from saejax.similarity.pair import Pair
from saejax.similarity.svcca import SVCCA, svcca

reference = SVCCA.reference


def decaying(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """Rows with unequal variances in random directions."""
    return rng.normal(size=(n, d)) * np.geomspace(1, 0.01, d) @ scipy.stats.ortho_group.rvs(d, random_state=rng)


def rotation(rng: np.random.Generator, d: int) -> np.ndarray:
    return scipy.stats.ortho_group.rvs(d, random_state=rng)


def test_number_of_directions_is_the_smallest_that_reaches_99_percent() -> None:
    """Columns with variances 90, 9, 0.9 and 0.1 parts in a hundred: two reach exactly 99 %, one does not."""
    n = 8
    basis = scipy.linalg.hadamard(n)[:, 1:5] / np.sqrt(n)
    for variances, directions in (([90, 9, 0.9, 0.1], 2), ([90, 8.9, 1, 0.1], 3), ([99.5, 0.3, 0.1, 0.1], 1)):
        pair = Pair.of(basis * np.sqrt(variances) + 5, np.random.default_rng(0).normal(size=(n, 3)))
        assert SVCCA.extent(pair) == (directions, 3)
        assert SVCCA.own(pair).wx.sum() == directions
        assert SVCCA.statistics[0].prepare(pair, (directions, 3)).ux.shape == (n, PADDING)


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


def test_saturated_pairings_all_score_one() -> None:
    """With as many directions as n - 1 on one side, every pairing contains the other side."""
    rng = np.random.default_rng(5)
    n = 6
    x, y = rng.normal(size=(n, 20)), rng.normal(size=(n, 3))
    state = SVCCA.prepare(x, y)
    perms = np.stack([rng.permutation(n) for _ in range(5)])
    np.testing.assert_allclose(SVCCA.score_batch(state, perms), 1, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(SVCCA.score, in_axes=(None, 0))(state, jnp.asarray(perms)), 1, atol=1e-6)


def test_subsamples_with_other_ranks_share_one_compilation() -> None:
    rng = np.random.default_rng(7)
    jitted: Any = jax.jit(SVCCA.score)
    ranks = set()
    for columns in (20, 24, 28):
        x, y = rng.normal(size=(60, columns)), rng.normal(size=(60, 25))
        ranks.add(SVCCA.extent(Pair.of(x, y)))
        jitted(SVCCA.prepare(x, y), jnp.arange(60))
    assert len(ranks) == 3
    assert jitted._cache_size() == 1


@pytest.mark.parametrize("components", [1, 2, 5])
def test_a_fixed_number_of_components_is_canonical_correlation_of_principal_scores(components: int) -> None:
    rng = np.random.default_rng(9)
    x, y = decaying(rng, 50, 9), decaying(rng, 50, 6)
    scores = []
    for matrix in (x, y):
        _, vectors = np.linalg.eigh(np.cov(matrix.T))
        scores.append(matrix @ vectors[:, ::-1][:, :components])
    joint = np.atleast_2d(np.corrcoef(np.hstack(scores).T))
    a, b, cross = joint[:components, :components], joint[components:, components:], joint[:components, components:]
    whitened = np.asarray(scipy.linalg.inv(scipy.linalg.sqrtm(a)) @ cross @ scipy.linalg.inv(scipy.linalg.sqrtm(b)))
    expected = np.linalg.svd(whitened, compute_uv=False).mean()
    measure = svcca(components=components)
    assert measure.name == f"svcca:components={components}"
    assert measure.reference(x, y) == pytest.approx(expected, abs=1e-10)
    assert float(measure.score_batch(measure.prepare(x, y), np.arange(50)[None])[0]) == pytest.approx(expected)


def test_k1_is_the_correlation_of_the_first_principal_components() -> None:
    rng = np.random.default_rng(10)
    x, y = decaying(rng, 50, 9), decaying(rng, 50, 6)
    first = [matrix @ np.linalg.eigh(np.cov(matrix.T))[1][:, -1] for matrix in (x, y)]
    expected = abs(np.corrcoef(first)[0, 1])
    measure = svcca(variant="k1")
    state = measure.prepare(x, y)
    assert float(measure.score(state, jnp.arange(50))) == pytest.approx(expected, abs=1e-6)
    assert float(measure.score_batch(state, np.arange(50)[None])[0]) == pytest.approx(expected, abs=1e-6)
    assert measure.reference(x, y) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"components": 0}, "svcca: components 0 must be at least 1"),
        ({"variant": "k2"}, "svcca: variant 'k2' is unknown; the one there is is k1"),
        ({"variant": "k1", "components": 3}, "svcca: components 3 and variant k1, one component, exclude each other"),
    ],
)
def test_rules_that_make_no_sense_are_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError) as error:
        svcca(**options)
    assert str(error.value) == message


def test_more_components_than_directions_are_refused() -> None:
    rng = np.random.default_rng(11)
    with pytest.raises(InputError) as error:
        svcca(components=6).prepare(rng.normal(size=(6, 8)), rng.normal(size=(6, 6)))
    assert str(error.value) == "svcca: components 6 is above the 5 directions of x (6 rows, 8 columns); lower it"


def test_null_mean_follows_wachters_law() -> None:
    """Mean canonical correlation of random pairings, from the limit law of their squares."""
    rng = np.random.default_rng(8)
    n, kx, ky = 400, 30, 60
    bases = [rng.normal(size=(n, k)) for k in (kx, ky)]
    bases = [np.linalg.qr(basis - basis.mean(axis=0))[0].astype(np.float32) for basis in bases]
    perms = [rng.permutation(n) for _ in range(200)]
    norms = nuclear_norms(np.stack([bases[0].T @ bases[1][perm] for perm in perms]), impl="lapack")
    c1, c2 = kx / (n - 1), ky / (n - 1)
    low, high = ((np.sqrt(c1 * (1 - c2)) - sign * np.sqrt(c2 * (1 - c1))) ** 2 for sign in (1, -1))
    angle = (np.arange(20_000) + 0.5) * np.pi / 20_000  # substitution that removes the roots at both ends
    value = (low + high) / 2 - (high - low) / 2 * np.cos(angle)
    density = ((high - low) / 2 * np.sin(angle)) ** 2 / (2 * np.pi * c1 * value * (1 - value)) * np.pi / 20_000
    assert density.sum() == pytest.approx(1, abs=1e-6)
    wachter = np.sum(np.sqrt(value) * density)
    assert np.mean(norms) / kx == pytest.approx(wachter, abs=0.003)


def test_directions_that_only_other_measures_read_do_not_count() -> None:
    """Beside a measure of all directions the product is wider than the weights."""
    rng = np.random.default_rng(12)
    pair = Pair.of(*(rng.normal(size=(70, 50)) * np.geomspace(1, 1e-3, 50) for _ in "xy"))
    own, perm = SVCCA.own(pair), rng.permutation(70).astype(np.int32)
    wide = SVCCA.statistics[0].prepare(pair, None)
    assert wide.ux.shape[1] > len(own.wx)
    product = wide.ux.T @ wide.uy[perm]
    expected = reference(pair.x.values, pair.y.values[perm])
    assert SVCCA.core_exact is not None
    assert SVCCA.core_batch is not None
    assert float(SVCCA.core(own, (jnp.asarray(product),), perm).low) == pytest.approx(expected, abs=1e-6)
    assert SVCCA.core_batch(own, (product[None],), perm[None])[0] == pytest.approx(expected, abs=1e-9)
    assert SVCCA.core_exact(own, (product,), perm) == pytest.approx(expected, abs=1e-9)
