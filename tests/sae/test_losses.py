import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from saejax.sae.initial import initial_sae
from saejax.sae.losses import add_aux_gradient, aux_loss, kth_largest, reconstruction_loss
from saejax.sae.params import SAE, SAEConfig

ROWS, AUX_K, COEFFICIENT = 50, 3, 0.5
SHAPE = SAEConfig(d_model=8, d_sae=24, k=4)
add_aux = jax.jit(add_aux_gradient, static_argnames=("aux_k", "coefficient"))


@pytest.fixture
def sae() -> SAE:
    """An SAE away from its start: encoder and decoder differ, biases are not zero."""
    rng = np.random.default_rng(0)
    start = initial_sae(SHAPE, rng.normal(size=(100, 8)).astype(np.float32), jax.random.key(0))
    noise = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.3, jnp.float32), start)
    return dataclasses.replace(jax.tree.map(jnp.add, start, noise), scale=start.scale)


@pytest.fixture
def x() -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=(ROWS, 8)), jnp.float32)


def dead_latents(count: int) -> jax.Array:
    order = np.random.default_rng(2).permutation(SHAPE.d_sae)
    return jnp.asarray(np.isin(np.arange(SHAPE.d_sae), order[:count]))


def plain_aux_loss(sae: SAE, dead: jax.Array, x: jax.Array) -> jax.Array:
    """AuxK as its paper states it, dense and automatically differentiated."""
    codes_of_all = (x - lax.stop_gradient(sae.b_dec)) @ sae.W_enc + sae.b_enc
    values, indices = lax.top_k(codes_of_all, SHAPE.k)
    rows = jnp.arange(ROWS)[:, None]
    codes = jnp.zeros_like(codes_of_all).at[rows, indices].set(jax.nn.relu(values))
    residual = lax.stop_gradient(x - codes @ sae.W_dec - sae.b_dec)
    values, indices = lax.top_k(jnp.where(dead, codes_of_all, -jnp.inf), AUX_K)
    aux = jnp.zeros_like(codes_of_all).at[rows, indices].set(jax.nn.relu(values))
    error = jnp.mean(jnp.sum((aux @ sae.W_dec - residual) ** 2, axis=1))
    return error / jnp.sum(jnp.var(residual, axis=0))


def with_aux(sae: SAE, dead: jax.Array, x: jax.Array) -> tuple[jax.Array, SAE, SAE]:
    """Return the AuxK loss, the gradient with it and the gradient without."""
    (_, (residual, *_)), gradient = jax.value_and_grad(reconstruction_loss, has_aux=True)(sae, x)
    loss, both = add_aux(gradient, sae, dead, x - sae.b_dec, residual, aux_k=AUX_K, coefficient=COEFFICIENT)
    return loss, both, gradient


def test_the_loss_is_the_squared_error_over_the_width(sae, x):
    x_hat = sae.decode(sae.encode(x / sae.scale)) * sae.scale
    expected = np.mean(np.sum(np.asarray(x - x_hat, np.float64) ** 2, axis=1)) / 8
    np.testing.assert_allclose(reconstruction_loss(sae, x)[0], expected, rtol=1e-5)


def test_the_loss_of_the_mean_is_one_on_the_sample_that_set_the_scale():
    sample = 7 + np.random.default_rng(3).normal(size=(300, 8)).astype(np.float32)
    start = initial_sae(SHAPE, sample, jax.random.key(0))
    silent = dataclasses.replace(start, b_enc=jnp.full(24, -1e6), b_dec=jnp.asarray(sample.mean(axis=0)) * start.scale)
    np.testing.assert_allclose(reconstruction_loss(silent, jnp.asarray(sample) * start.scale)[0], 1, rtol=1e-5)


@pytest.mark.parametrize("count", [1, AUX_K, AUX_K + 1, 2 * AUX_K, 13, 24])
def test_aux_loss_and_gradient_are_those_of_the_plain_form(sae, x, count):
    dead = dead_latents(count)
    expected, slope = jax.value_and_grad(plain_aux_loss)(sae, dead, x)
    loss, both, alone = with_aux(sae, dead, x)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec", "scale"):
        added = np.asarray(getattr(both, name)) - np.asarray(getattr(alone, name))
        np.testing.assert_allclose(added, COEFFICIENT * np.asarray(getattr(slope, name)), rtol=1e-3, atol=1e-5)


def test_aux_gradient_reaches_the_encoder_of_dead_latents_and_nothing_else(sae, x):
    dead = dead_latents(5)
    which = np.asarray(dead)
    _, both, alone = with_aux(sae, dead, x)
    added = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), both, alone)
    assert (np.abs(added.W_enc).max(axis=0)[which] > 0).all()
    assert (np.abs(added.W_dec).max(axis=1)[which] > 0).all()
    assert not added.W_enc[:, ~which].any()
    assert not added.b_enc[~which].any()
    assert not added.W_dec[~which].any()
    assert not added.b_dec.any()


def test_aux_is_nothing_while_no_latent_is_dead(sae, x):
    loss, both, alone = with_aux(sae, dead_latents(0), x)
    assert loss == 0
    for ours, theirs in zip(jax.tree.leaves(both), jax.tree.leaves(alone), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_aux_is_finite_where_nothing_is_left_over(sae, x):
    """A residual without variance (here a single row) gives no gradient rather than NaN."""
    dead = dead_latents(4)
    loss, slopes = jax.value_and_grad(aux_loss, argnums=(0, 1, 2))(
        sae.W_enc, sae.b_enc, sae.W_dec, dead, x[:1], x[:1], AUX_K
    )
    assert loss == 0
    assert not any(slope.any() for slope in slopes)


@pytest.mark.parametrize("k", [1, 2, 17, 40])
def test_kth_largest_is_exact(k):
    rng = np.random.default_rng(4)
    values = np.maximum(rng.normal(size=(30, 40)), 0) * 10.0 ** rng.integers(-30, 30, size=(30, 40))
    values = values.astype(np.float32)
    np.testing.assert_array_equal(kth_largest(jnp.asarray(values), k), np.sort(values, axis=1)[:, -k])
