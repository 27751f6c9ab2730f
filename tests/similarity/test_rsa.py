import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from scipy.spatial.distance import pdist

from saejax.errors import InputError
from saejax.similarity import ranks
from saejax.similarity.distances import Inner, Rows
from saejax.similarity.measure import Measure, State
from saejax.similarity.pair import Pair
from saejax.similarity.rsa import RSA, RSA_COSINE, RSA_EUCLIDEAN, rsa

INNERS: tuple[Inner, ...] = ("correlation", "cosine", "euclidean")
every_inner = pytest.mark.parametrize("inner", INNERS)
every_width = pytest.mark.parametrize("rank_bits", [16, 32])


def single(state: State) -> Any:
    """As the engine does: float64 to float32, all else as it is."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32 if leaf.dtype == np.float64 else None), state)


def exact_score(measure: Measure, state: State, perm: np.ndarray) -> float:
    compute = measure.statistics[0].compute_exact
    assert compute is not None
    value = compute(state.crossed[0], perm)
    with jax.enable_x64(True):
        return float(measure.core(state.own, (value,), perm).low)


def pairings(rng: np.random.Generator, n: int, count: int = 7) -> np.ndarray:
    return np.stack([np.arange(n), *(rng.permutation(n) for _ in range(count - 1))]).astype(np.int32)


def test_names_do_not_tell_how_ranks_are_kept() -> None:
    assert [measure.name for measure in (RSA, RSA_COSINE, RSA_EUCLIDEAN)] == ["rsa", "rsa_cosine", "rsa_euclidean"]
    assert rsa(inner="cosine", rank_bits=16).name == "rsa_cosine"
    assert rsa() is RSA


@pytest.mark.parametrize("rank_bits", [16, 32])
def test_scaled_rows_of_few_directions_tie(rank_bits: int) -> None:
    """With two columns every correlation is 1 or -1, whatever the rows' scales."""
    rng = np.random.default_rng(9)
    x, y = rng.normal(size=(30, 2)), rng.normal(size=(30, 2))
    above = np.triu_indices(30, 1)
    signs = [np.sign(side[:, 0] - side[:, 1]) for side in (x, y)]
    left, right = (-np.outer(sign, sign)[above] for sign in signs)
    found: Any = scipy.stats.spearmanr(left, right)
    for scaled in (x, x * rng.uniform(0.5, 2, size=(30, 1))):
        measure = rsa(rank_bits=rank_bits)
        assert measure.score_exact(measure.prepare(scaled, y), np.arange(30)) == pytest.approx(
            found.statistic, abs=1e-6
        )
        assert RSA.reference(scaled, y) == pytest.approx(found.statistic, abs=1e-12)


@every_inner
def test_is_spearmans_correlation_of_distances(inner: Inner) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(25, 8)), rng.normal(size=(25, 5))
    spearman: Any = scipy.stats.spearmanr(pdist(x, inner), pdist(y, inner))
    assert rsa(inner=inner).reference(x, y) == pytest.approx(spearman.statistic, abs=1e-12)


@every_inner
@pytest.mark.parametrize("size", [1e2, 1e4, 1e7])
def test_one_direction_that_outweighs_the_others_hides_no_order(inner: Inner, size: float) -> None:
    rng = np.random.default_rng(8)
    x, y = rng.normal(size=(60, 16)), rng.normal(size=(60, 5))
    x[:, 0] += size * rng.choice([-1, 1], size=60)
    measure = rsa(inner=inner)
    exact = measure.score_exact(measure.prepare(x, y), np.arange(60))
    assert exact == pytest.approx(measure.reference(x, y), abs=1e-7)


@every_inner
@every_width
@pytest.mark.parametrize("n", [4, 10, 77])
def test_scores_of_all_ways_agree_with_the_definition(inner: Inner, rank_bits: int, n: int) -> None:
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, 9)), rng.normal(size=(n, 6))
    x[-1], y[0] = x[0], y[1]
    measure = rsa(inner=inner, rank_bits=rank_bits)
    perms = pairings(rng, n)
    expected = [measure.reference(x, y[perm]) for perm in perms]
    state = measure.prepare(x, y)
    error = measure.score_error(state.own)
    assert error < (1e-4 if rank_bits == 16 else 1e-15)
    exact = [exact_score(measure, state, perm) for perm in perms]
    np.testing.assert_allclose(exact, expected, atol=error + 1e-13, rtol=0)
    fast = single(state)
    mapped = jax.jit(jax.vmap(measure.score, in_axes=(None, 0)))(fast, jnp.asarray(perms))
    for scores in (mapped, measure.score_batch(fast, perms)):
        np.testing.assert_allclose(scores, exact, atol=measure.tolerance / 2, rtol=0)


@every_inner
def test_whole_numbers_tie_as_in_exact_arithmetic(inner: Inner) -> None:
    """Rows of -1, 0 and 1, three nonzero, row means 0 or not: distances take few values, each of them very often."""
    rng = np.random.default_rng(1)
    rows = np.array([row for row in itertools.product([-1, 0, 1], repeat=5) if np.abs(row).sum() == 3])
    x, y = (rows[rng.choice(len(rows), size=40, replace=False)] for _ in range(2))
    if inner == "correlation":
        x, y = (np.concatenate([each, -each], axis=1) for each in (x, y))
    # Norms are all alike, and row means 0 where they count, so every distance falls with the inner product.
    orders = [scipy.stats.rankdata(-(each @ each.T)[np.triu_indices(40, 1)]) for each in (x, y)]
    assert len(np.unique(orders[0])) < 10
    expected = np.corrcoef(orders)[0, 1]
    for rank_bits in (16, 32):
        measure = rsa(inner=inner, rank_bits=rank_bits)
        state = measure.prepare(x * 0.3, y * 0.7)
        assert exact_score(measure, state, np.arange(40)) == pytest.approx(expected, abs=1e-12)
    assert measure.reference(x * 0.3, y * 0.7) == pytest.approx(expected, abs=1e-12)


@every_inner
def test_only_correlation_changes_under_rotation(inner: Inner) -> None:
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(20, 6)), rng.normal(size=(20, 7))
    measure = rsa(inner=inner)
    moved = abs(measure.reference(x @ scipy.stats.ortho_group.rvs(6, random_state=rng), y) - measure.reference(x, y))
    assert ("rotation" in measure.invariances) == (inner != "correlation") == (moved < 1e-12)
    assert moved < 1e-12 or moved > 1e-3


@pytest.mark.parametrize("hubs", [False, True])
def test_quantised_scores_stay_within_their_stated_error(hubs: bool) -> None:
    rng = np.random.default_rng(3)
    n = 260
    x, y = (rng.normal(size=(n, 6)) for _ in range(2))
    y += x
    if hubs:
        x = x[rng.integers(0, 60, size=n)]
    exact, quantised = (rsa(inner="euclidean", rank_bits=rank_bits) for rank_bits in (32, 16))
    states = exact.prepare(x, y), quantised.prepare(x, y)
    error = quantised.score_error(states[1].own)
    assert exact.score_error(states[0].own) == 0
    assert 1e-6 < error < 6e-5
    assert error == sum(ranks.quantised_ranks(Rows.of(each, "euclidean")).angle for each in (x, y))
    perms = pairings(rng, n, 200)
    scores = [measure.score_batch(state, perms) for measure, state in zip((exact, quantised), states, strict=True)]
    apart = np.abs(np.subtract(*[np.asarray(each, np.float64) for each in scores]))
    assert 0 < apart.max() <= error


def test_quantised_score_is_pearsons_correlation_of_the_numbers_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """With few levels, and so many ties that their mean is not 0."""
    monkeypatch.setattr(ranks, "LARGEST_LEVEL", 2)
    rng = np.random.default_rng(7)
    x, y = (rng.normal(size=(30, 3))[rng.integers(0, 12, size=30)] for _ in range(2))
    measure = rsa(inner="euclidean", rank_bits=16)
    state = measure.prepare(x, y)
    above = np.triu_indices(30, 1)
    a, b = (matrix[above].astype(float) for matrix in state.crossed[0])
    assert min(abs(a.sum()), abs(b.sum())) > 0
    assert exact_score(measure, state, np.arange(30)) == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-14)


def test_size_follows_from_the_number_of_rows() -> None:
    rng = np.random.default_rng(4)
    for n, itemsize in ((4096, 4), (4097, 2)):
        pair = Pair.of(rng.normal(size=(n, 2)), rng.normal(size=(n, 2)))
        assert RSA.statistics[0].size(pair) == 2 * itemsize * n**2
        assert rsa(rank_bits=16).statistics[0].size(pair) == 4 * n**2
        assert rsa(rank_bits=32).statistics[0].size(pair) == 8 * n**2


@every_inner
@every_width
def test_moments_are_those_of_all_pairings(inner: Inner, rank_bits: int) -> None:
    rng = np.random.default_rng(5)
    x, y = (rng.normal(size=(5, 4)) + np.exp(rng.normal(size=(5, 1))) * rng.normal(size=4) for _ in range(2))
    measure = rsa(inner=inner, rank_bits=rank_bits)
    state = measure.prepare(x, y)
    scores = [exact_score(measure, state, np.array(perm)) for perm in itertools.permutations(range(5))]
    moments = measure.moments(Pair.of(x, y), "uniform")
    assert moments is not None
    assert np.mean(scores) == pytest.approx(moments.mean, abs=1e-14)
    assert np.std(scores) == pytest.approx(moments.sd, rel=1e-12)
    assert measure.moments(Pair.of(x, y), "stratified") is None


RNG = np.random.default_rng(6)
X, Y = RNG.normal(size=(6, 4)), RNG.normal(size=(6, 5))


def with_rows(value: float) -> np.ndarray:
    matrix = Y.copy()
    matrix[[2, 4]] = value
    return matrix


@pytest.mark.parametrize(
    ("inner", "x", "y", "message"),
    [
        (
            "correlation", X, with_rows(0.1),
            "rsa: row 2 of y is constant (0.1 in every column; 2 such row(s)), so it has no correlation with the "
            "others; leave that pair out",
        ),
        (
            "cosine", X, with_rows(0),
            "rsa_cosine: row 2 of y is zero (2 such row(s)), so it has no direction; leave that pair out",
        ),
        (
            "correlation", X[:, :1], Y,
            "rsa: x has 1 column, and the correlation of two rows needs at least 2; give more columns, or ask for "
            "rsa_euclidean",
        ),
        (
            "correlation", np.sort(X[:, :2], axis=1), Y,
            "rsa: all 15 correlation distances in x are equal, so they have no order; give rows of more columns or "
            "leave rsa out of measures",
        ),
        (
            "cosine", X, Y[:, :1] ** 2 * Y[0],
            "rsa_cosine: all 15 cosine distances in y are equal, so they have no order; give rows of more columns or "
            "leave rsa_cosine out of measures",
        ),
        (
            "euclidean", X, 3 * np.eye(6) + 0.1,
            "rsa_euclidean: all 15 euclidean distances in y are equal, so they have no order; give rows of more "
            "columns or leave rsa_euclidean out of measures",
        ),
    ],
)  # fmt: skip
def test_what_has_no_order_is_refused(inner: Inner, x: np.ndarray, y: np.ndarray, message: str) -> None:
    for rank_bits in (None, 16):
        with pytest.raises(InputError) as error:
            rsa(inner=inner, rank_bits=rank_bits).check(Pair.of(x, y))
        assert str(error.value) == message


@every_inner
@pytest.mark.parametrize("rank_bits", [16, 32])
def test_two_different_distances_suffice(inner: Inner, rank_bits: int) -> None:
    """All rows at one place but one, on one side."""
    x = np.repeat(X[:1], 8, axis=0)
    x[3] = X[1]
    measure = rsa(inner=inner, rank_bits=rank_bits)
    state = measure.prepare(x, x * 2)
    assert exact_score(measure, state, np.arange(8)) == pytest.approx(1, abs=1e-12)


def test_more_rows_than_32_bits_can_rank_are_refused() -> None:
    n = 65_537
    pair = Pair.of(np.arange(2.0 * n).reshape(n, 2), np.arange(n, dtype=float)[:, None])
    with pytest.raises(InputError, match="65537 rows have more pairs than rank_bits 32 can rank; use rank_bits 16"):
        rsa(inner="euclidean", rank_bits=32).check(pair)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner": "manhattan"}, "inner 'manhattan' is unknown; choose among correlation, cosine, euclidean"),
        ({"rank_bits": 8}, "rank_bits 8 must be 16 or 32"),
    ],
)
def test_unknown_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"rsa: {message}"):
        rsa(**options)
