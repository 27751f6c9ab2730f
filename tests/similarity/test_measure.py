"""What every measure promises, held against every measure that is registered."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from saejax.errors import InputError
from saejax.similarity import MEASURES, Measure
from saejax.similarity.measure import State
from saejax.similarity.padding import lengths, padded
from saejax.similarity.pair import Pair

SHAPES = [(24, 3, 4), (40, 18, 12), (26, 40, 50)]
RNG = np.random.default_rng(0)

WIDE = SHAPES[-1]
REFUSED = {"pwcca": WIDE}  # several canonical correlations are 1 whatever the pairing, and their weights undetermined
CASES = [(name, shape) for name in MEASURES for shape in SHAPES if REFUSED.get(name) != shape]
every_case = pytest.mark.parametrize(("name", "shape"), CASES)
every_measure = pytest.mark.parametrize("name", list(MEASURES))


def matrices(n: int, dx: int, dy: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows with unequal variances, and a part that both sides share."""
    rng = np.random.default_rng([n, dx, dy])
    x, y = (rng.normal(size=(n, d)) * np.geomspace(1, 0.3, d) + 0.3 for d in (dx, dy))
    shared = min(dx, dy)
    y[:, :shared] += 0.5 * x[:, :shared]
    return x, y


def single(state: State) -> State:
    def leaf(value: np.ndarray) -> jax.Array:
        return jnp.asarray(value, jnp.float32 if value.dtype == np.float64 else value.dtype)

    return jax.tree.map(leaf, state)


def core_of(measure: Measure, state: State, score: float) -> float:
    """Return the core that has a score, by bisection: scores are monotone in the core."""
    low, high = -3.0, 3.0
    sign = 1 if measure.larger_is_more_similar else -1
    for _ in range(200):
        middle = (low + high) / 2
        higher = sign * (float(measure.scores(state.own, np.array(middle))) - score) >= 0
        low, high = (low, middle) if higher else (middle, high)
    return high


@every_case
def test_all_ways_agree_with_the_definition(name: str, shape: tuple[int, int, int]) -> None:
    measure, (x, y) = MEASURES[name], matrices(*shape)
    perms = np.stack([np.arange(len(x)), *(RNG.permutation(len(x)) for _ in range(5))]).astype(np.int32)
    expected = np.array([measure.reference(x, y[perm]) for perm in perms])
    state = measure.prepare(x, y)
    allowed = np.abs(
        measure.scores(state.own, np.array([core_of(measure, state, score) for score in expected]) - measure.tolerance)
        - expected
    )
    fast = single(state)
    mapped = jax.jit(jax.vmap(measure.score, in_axes=(None, 0)))(fast, perms)
    for scores in (mapped, measure.score_batch(fast, perms)):
        assert np.all(np.abs(np.asarray(scores) - expected) <= allowed + 1e-7 * np.abs(expected))


@every_case
def test_float64_scores_are_the_definition(name: str, shape: tuple[int, int, int]) -> None:
    measure, (x, y) = MEASURES[name], matrices(*shape)
    perm = RNG.permutation(len(x)).astype(np.int32)
    expected = measure.reference(x, y[perm])
    assert measure.score_exact(measure.prepare(x, y), perm) == pytest.approx(expected, abs=1e-9, rel=1e-9)


@every_case
def test_appended_zeros_change_nothing(name: str, shape: tuple[int, int, int]) -> None:
    """So pairs of different sizes can share a compiled program."""
    measure, (x, y) = MEASURES[name], matrices(*shape)
    state, n = measure.prepare(x, y), len(x)
    more = {"n": 5, "kx": 64, "ky": 32, "dx": 3, "dy": 7, "k": 2}
    wanted = {axis: length + more.get(axis, 0) for axis, length in lengths([state.own, *state.crossed]).items()}
    wider = State(padded(state.own, wanted), tuple(padded(each, wanted) for each in state.crossed))
    perm = RNG.permutation(n).astype(np.int32)
    with_rest = np.concatenate([perm, np.arange(n, n + more["n"], dtype=np.int32)])
    bare, wide = measure.score_exact(state, perm), jax.jit(measure.score)(single(wider), with_rest)
    assert float(wide) == pytest.approx(bare, abs=3 * measure.tolerance, rel=1e-5)


def transformations(d: int, n: int) -> dict[str, Any]:
    """Return a map of matrices by the name of the invariance that it tests."""
    rng = np.random.default_rng(7)
    rotation = scipy.stats.ortho_group.rvs(d, random_state=rng)
    linear = rotation * np.geomspace(0.3, 2, d) @ scipy.stats.ortho_group.rvs(d, random_state=rng)
    scale, order = np.geomspace(0.5, 2, d), rng.permutation(d)
    row_shift, row_scale, shift = rng.normal(size=(n, 1)), rng.uniform(0.5, 2, size=(n, 1)), rng.normal(size=d)
    return {
        "rotation": lambda m: m @ rotation,
        "scale": lambda m: 2.7 * m,
        "shift": lambda m: m + shift,
        "linear map": lambda m: m @ linear,
        "column scale": lambda m: m * scale,
        "column permutation": lambda m: m[:, order],
        "row shift": lambda m: m + row_shift,
        "row scale": lambda m: m * row_scale,
    }


@every_measure
@pytest.mark.parametrize("side", [0, 1])
def test_invariances_are_the_ones_it_names(name: str, side: int) -> None:
    """Columns of unequal variance, some of them below one part in a hundred."""
    measure = MEASURES[name]
    pair = [matrix * np.geomspace(1, 0.03, matrix.shape[1]) for matrix in matrices(40, 6, 5)]
    before = measure.reference(*pair)
    found = []
    for invariance, moved in transformations(pair[side].shape[1], 40).items():
        changed = list(pair)
        changed[side] = moved(changed[side])
        if measure.reference(*changed) == pytest.approx(before, abs=1e-9):
            found.append(invariance)
    assert sorted(found) == sorted(measure.invariances_of("xy"[side]))


@every_measure
def test_a_noisy_copy_scores_as_more_similar_than_its_repairings(name: str) -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(60, 8))
    measure, y = MEASURES[name], x + 0.2 * rng.normal(size=x.shape)
    state = single(measure.prepare(x, y))
    perms = np.stack([np.arange(60), *(rng.permutation(60) for _ in range(20))]).astype(np.int32)
    paired, *random = np.asarray(measure.score_batch(state, perms))
    best = max(random) if measure.larger_is_more_similar else min(random)
    assert (paired > best) == measure.larger_is_more_similar
    assert paired != best


@every_measure
def test_constant_matrices_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="y is constant"):
        MEASURES[name].prepare(*(RNG.normal(size=(8, 4)), np.full((8, 3), 0.1)))


# What is made of a matrix that matches it perfectly, though it is another one.
PERFECT = {
    "procrustes_size_and_shape": lambda x: 3 * x,
    "gulp": lambda x: x[:, :4] * 2,
    "eigenspace_overlap": lambda x: x[:, :4] * 2,
}


@every_measure
def test_nothing_scores_better_than_a_perfect_match(name: str) -> None:
    measure, x = MEASURES[name], RNG.normal(size=(60, 6))
    y = PERFECT.get(name, lambda x: 2 * x)(x)
    pair = Pair.of(x, y)
    state = measure.prepare(x, y)
    assert measure.score_exact(state, np.arange(60)) == pytest.approx(measure.best(pair), abs=3e-7)
    sign = 1 if measure.larger_is_more_similar else -1
    for _ in range(20):
        assert sign * (measure.score_exact(state, RNG.permutation(60)) - measure.best(pair)) < 1e-9


@every_measure
def test_size_is_known_before_the_state_is_made(name: str) -> None:
    pair = Pair.of(*matrices(70, 9, 7))
    measure = MEASURES[name]
    for statistic in measure.statistics:
        leaves = jax.tree.leaves(statistic.prepare(pair, measure.extent(pair)))
        doubles = sum(leaf.nbytes for leaf in leaves if leaf.dtype == np.float64)
        assert sum(leaf.nbytes for leaf in leaves) + doubles / 2 <= statistic.size(pair)
        assert statistic.scratch(statistic.prepare(pair, None)) > 0
    assert sum(statistic.making(pair) for statistic in measure.statistics) > 0
