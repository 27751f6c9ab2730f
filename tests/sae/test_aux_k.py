import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from saejax.sae.aux_k import BLOCK, add_aux_gradient, in_turn, only_largest
from saejax.sae.execution import Execution
from saejax.sae.losses import reconstruction_loss
from saejax.sae.weights import Weights

ROWS, D_MODEL, D_SAE, K, AUX_K, COEFFICIENT = 50, 8, 2 * BLOCK + 40, 4, 3, 0.5
HOW = Execution("float32", "jax")
add_aux = jax.jit(add_aux_gradient, static_argnames=("aux_k", "capacity", "coefficient", "how"))


@pytest.fixture
def weights() -> Weights:
    keys = jax.random.split(jax.random.key(0), 4)
    encoder, W_dec = (jax.random.normal(key, (D_SAE, D_MODEL)) / 3 for key in keys[:2])
    return Weights(encoder, jax.random.normal(keys[2], (D_SAE,)) / 3, W_dec, jax.random.normal(keys[3], (D_MODEL,)) / 3)


@pytest.fixture
def x() -> jax.Array:
    return jax.random.normal(jax.random.key(1), (ROWS, D_MODEL))


def dead_latents(count: int) -> jax.Array:
    order = np.random.default_rng(2).permutation(D_SAE)
    return jnp.asarray(np.isin(np.arange(D_SAE), order[:count]))


def plain_aux_loss(weights: Weights, considered: jax.Array, x: jax.Array) -> jax.Array:
    """AuxK as its paper states it, dense and automatically differentiated."""
    z = (x - lax.stop_gradient(weights.b_dec)) @ weights.encoder.T + weights.b_enc
    values, indices = lax.top_k(z, K)
    rows = jnp.arange(ROWS)[:, None]
    codes = jnp.zeros_like(z).at[rows, indices].set(jax.nn.relu(values))
    residual = lax.stop_gradient(x - codes @ weights.W_dec - weights.b_dec)
    values, indices = lax.top_k(jnp.where(considered, z, -jnp.inf), AUX_K)
    aux = jnp.zeros_like(z).at[rows, indices].set(jax.nn.relu(values))
    error = jnp.mean(jnp.sum((aux @ weights.W_dec - residual) ** 2, axis=1))
    return error / jnp.sum(jnp.var(residual, axis=0))


def with_aux(
    weights: Weights, dead: jax.Array, x: jax.Array, capacity: int = D_SAE, turn: int = 0
) -> tuple[jax.Array, Weights, Weights]:
    """Return the AuxK loss, the gradient with it and the gradient without."""
    _, forward, gradient = reconstruction_loss(weights, x, K, HOW)
    loss, both = add_aux(
        gradient, weights, dead, x, forward,
        turn=jnp.array(turn), aux_k=AUX_K, capacity=capacity, coefficient=COEFFICIENT, how=HOW,
    )  # fmt: skip
    return loss, both, gradient


@pytest.mark.parametrize("count", [1, AUX_K, AUX_K + 1, BLOCK, BLOCK + 1, 2 * BLOCK + 5, D_SAE])
def test_loss_and_gradient_are_those_of_the_plain_form(weights, x, count):
    dead = dead_latents(count)
    expected, slope = jax.value_and_grad(plain_aux_loss)(weights, dead, x)
    loss, both, alone = with_aux(weights, dead, x)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for name in ("encoder", "b_enc", "W_dec", "b_dec"):
        added = np.asarray(getattr(both, name)) - np.asarray(getattr(alone, name))
        np.testing.assert_allclose(added, COEFFICIENT * np.asarray(getattr(slope, name)), rtol=1e-3, atol=1e-5)


def test_the_gradient_reaches_the_encoder_of_dead_latents_and_nothing_else(weights, x):
    dead = dead_latents(5)
    which = np.asarray(dead)
    _, both, alone = with_aux(weights, dead, x)
    added = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), both, alone)
    assert (np.abs(added.encoder).max(axis=1)[which] > 0).all()
    assert (np.abs(added.W_dec).max(axis=1)[which] > 0).all()
    assert not added.encoder[~which].any()
    assert not added.b_enc[~which].any()
    assert not added.W_dec[~which].any()
    assert not added.b_dec.any()


def test_it_is_nothing_while_no_latent_is_dead(weights, x):
    loss, both, alone = with_aux(weights, dead_latents(0), x)
    assert loss == 0
    for ours, theirs in zip(jax.tree.leaves(both), jax.tree.leaves(alone), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_it_is_finite_where_nothing_is_left_over(weights, x):
    """A residual without variance (here a single row) gives no gradient rather than NaN."""
    gradient = jax.tree.map(jnp.zeros_like, weights)
    _, forward, _ = reconstruction_loss(weights, x[:1], K, HOW)
    loss, added = add_aux(
        gradient, weights, dead_latents(4), x[:1], forward,
        turn=jnp.array(0), aux_k=AUX_K, capacity=D_SAE, coefficient=COEFFICIENT, how=HOW,
    )  # fmt: skip
    assert loss == 0
    assert not any(leaf.any() for leaf in jax.tree.leaves(added))


def test_beyond_its_capacity_each_step_takes_the_latents_whose_turn_it_is(weights, x):
    dead, capacity = dead_latents(150), 60
    for turn in range(3):
        considered = in_turn(dead, jnp.array(turn), capacity, HOW)
        expected, slope = jax.value_and_grad(plain_aux_loss)(weights, considered, x)
        loss, both, alone = with_aux(weights, dead, x, capacity, turn)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        np.testing.assert_allclose(both.encoder - alone.encoder, COEFFICIENT * slope.encoder, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("count", "capacity"), [(0, 10), (7, 10), (10, 10), (11, 10), (95, 10), (D_SAE, 64), (5, 1)])
def test_every_dead_latent_has_its_turn(count, capacity):
    dead = np.asarray(dead_latents(count))
    rounds = -(-max(count, 1) // capacity)
    first = 1_000_003
    taken = np.array([in_turn(jnp.asarray(dead), jnp.array(first + turn), capacity, HOW) for turn in range(rounds)])
    assert (taken.sum(axis=1) == min(count, capacity)).all()
    assert not taken[:, ~dead].any()
    assert taken[:, dead].any(axis=0).all()


def test_turns_do_not_overflow():
    dead = jnp.ones(1 << 20, bool)
    for turn in (0, 2**20 - 1, 2**31 - 1):
        assert int(jnp.sum(in_turn(dead, jnp.array(turn, jnp.int32), 2048, HOW))) == 2048


@pytest.mark.parametrize("k", [1, 2, 17, 40])
def test_only_the_largest_stay(k):
    rng = np.random.default_rng(4)
    values = np.maximum(rng.normal(size=(30, 40)), 0) * 10.0 ** rng.integers(-30, 30, size=(30, 40))
    values = values.astype(np.float32)
    smallest = np.sort(values, axis=1)[:, -k, None]
    np.testing.assert_array_equal(only_largest(jnp.asarray(values), k, HOW), np.where(values >= smallest, values, 0))


def test_ties_with_the_last_of_the_largest_stay():
    values = jnp.array([[3.0, 2.0, 2.0, 1.0, 2.0]])
    np.testing.assert_array_equal(only_largest(values, 2, HOW), [[3.0, 2.0, 2.0, 0.0, 2.0]])
