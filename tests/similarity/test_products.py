import jax
import numpy as np

from saejax.similarity.measure import exact_statistic
from saejax.similarity.pair import Pair
from saejax.similarity.products import PADDING, multiply, product


def test_is_the_product_of_the_factors_with_rows_re_paired() -> None:
    rng = np.random.default_rng(0)
    pair = Pair.of(rng.normal(size=(20, 5)), rng.normal(size=(20, 40)))
    statistic = product("product of the matrices", lambda pair: (pair.x.values, pair.y.values), lambda pair: 0)
    state = statistic.prepare(pair, None)
    perms = np.stack([rng.permutation(20) for _ in range(3)])
    expected = np.stack([pair.x.values.T @ pair.y.values[perm] for perm in perms])
    assert statistic.compute_batch is not None
    batch = np.asarray(statistic.compute_batch(state, perms))
    assert batch.shape == (3, PADDING, 2 * PADDING)
    np.testing.assert_allclose(batch[:, :5, :40], expected, atol=1e-5)
    assert not batch[:, 5:].any()
    assert not batch[:, :, 40:].any()
    with jax.enable_x64(True):
        np.testing.assert_allclose(multiply(state, perms[0])[:5, :40], expected[0], atol=1e-13)
    np.testing.assert_allclose(exact_statistic(statistic, state, perms[1])[:5, :40], expected[1], atol=1e-13)


def test_size_is_known_before_the_state_is_made() -> None:
    rng = np.random.default_rng(1)
    pair = Pair.of(rng.normal(size=(20, 5)), rng.normal(size=(20, 33)))
    statistic = product("product of the matrices", lambda pair: (pair.x.values, pair.y.values), lambda pair: 0)
    state = statistic.prepare(pair, None)
    assert 1.5 * sum(leaf.nbytes for leaf in state) <= statistic.size(pair)
