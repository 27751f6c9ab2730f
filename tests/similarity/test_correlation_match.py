import itertools

import jax
import numpy as np
import pytest
import scipy.stats

from saejax.errors import InputError
from saejax.similarity.correlation_match import HARD_CORRELATION_MATCH, SOFT_CORRELATION_MATCH
from saejax.similarity.measure import Measure, State

BOTH = (SOFT_CORRELATION_MATCH, HARD_CORRELATION_MATCH)
both = pytest.mark.parametrize("measure", BOTH, ids=["soft", "hard"])


def exact(measure: Measure, x: np.ndarray, y: np.ndarray) -> float:
    return measure.score_exact(measure.prepare(x, y), np.arange(len(x), dtype=np.int32))


def single(state: State) -> State:
    return jax.tree.map(lambda leaf: leaf.astype(np.float32), state)


def correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.array([[scipy.stats.pearsonr(a, b)[0] for b in y.T] for a in x.T])


def best_of_all_assignments(table: np.ndarray) -> float:
    table = table if table.shape[0] <= table.shape[1] else table.T
    few, many = table.shape
    return max(table[range(few), chosen].mean() for chosen in itertools.permutations(range(many), few))


@pytest.mark.parametrize(("dx", "dy"), [(4, 4), (2, 6), (5, 3), (1, 3)])
def test_hard_is_the_best_of_all_assignments(dx: int, dy: int) -> None:
    rng = np.random.default_rng([dx, dy])
    x, y = rng.normal(size=(9, dx)), rng.normal(size=(9, dy))
    assert exact(HARD_CORRELATION_MATCH, x, y) == pytest.approx(best_of_all_assignments(correlations(x, y)), abs=1e-12)


def test_soft_is_the_mean_of_the_best_partners() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(3, 1, size=(12, 4)), rng.normal(size=(12, 7))
    table = correlations(x, y)
    best_x, best_y = [max(row) for row in table], [max(column) for column in table.T]
    expected = (sum(best_x) / 4 + sum(best_y) / 7) / 2
    assert exact(SOFT_CORRELATION_MATCH, x, y) == pytest.approx(expected, abs=1e-12)


@both
def test_renamed_rescaled_columns_score_one_but_rotated_ones_do_not(measure: Measure) -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(40, 6))
    renamed = x[:, rng.permutation(6)] * rng.uniform(0.1, 9, size=6) - 5
    assert exact(measure, x, renamed) == pytest.approx(1, abs=1e-12)
    assert exact(measure, x, x @ scipy.stats.ortho_group.rvs(6, random_state=0)) < 0.9


@both
@pytest.mark.parametrize(("dx", "dy"), [(3, 3), (2, 5), (5, 2)])
def test_columns_of_padding_are_no_partners_even_where_all_correlations_are_negative(
    measure: Measure, dx: int, dy: int
) -> None:
    rng = np.random.default_rng(3)
    common = rng.normal(size=(30, 1))
    x, y = common + 0.3 * rng.normal(size=(30, dx)), -common + 0.3 * rng.normal(size=(30, dy))
    assert correlations(x, y).max() < -0.5
    expected = measure.reference(x, y)
    state, perms = single(measure.prepare(x, y)), np.arange(30, dtype=np.int32)[None]
    assert expected < -0.5
    for score in (measure.score(state, perms[0]), measure.score_batch(state, perms)[0], exact(measure, x, y)):
        assert float(score) == pytest.approx(expected, abs=1e-6)


@both
def test_a_column_of_little_variance_counts_like_any_other(measure: Measure) -> None:
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(25, 4)), rng.normal(size=(25, 5))
    scale = np.array([1, 1e-20, 1e-170, 1e60])
    assert exact(measure, x * scale, y) == pytest.approx(exact(measure, x, y), abs=1e-12)


def test_assignments_of_many_columns_are_as_good_in_float32() -> None:
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(80, 40)), rng.normal(size=(80, 50))
    perms = np.stack([rng.permutation(80) for _ in range(6)]).astype(np.int32)
    expected = [HARD_CORRELATION_MATCH.reference(x, y[perm]) for perm in perms]
    state = single(HARD_CORRELATION_MATCH.prepare(x, y))
    mapped = jax.jit(jax.vmap(HARD_CORRELATION_MATCH.score, in_axes=(None, 0)))(state, perms)
    for scores in (mapped, HARD_CORRELATION_MATCH.score_batch(state, perms)):
        np.testing.assert_allclose(scores, expected, atol=HARD_CORRELATION_MATCH.tolerance / 2, rtol=0)


def test_both_read_one_product() -> None:
    assert SOFT_CORRELATION_MATCH.statistics == HARD_CORRELATION_MATCH.statistics


@both
def test_a_constant_column_is_refused_by_name(measure: Measure) -> None:
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(8, 4)), rng.normal(size=(8, 3))
    x[:, [1, 3]] = 0.5
    with pytest.raises(InputError) as error:
        measure.prepare(x, y)
    assert str(error.value) == (
        f"{measure.name}: column 1 of x is constant (0.5 in every row; 2 such column(s)), so it has no correlation "
        "with the others; drop such columns"
    )
