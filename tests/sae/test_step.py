import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import planted
import pytest
from jax import lax

from saejax.sae import step
from saejax.sae.initial import initial_sae
from saejax.sae.params import SAEConfig
from saejax.sae.step import Recipe, TrainState, initial_state, tangent, train_step

SHAPE = SAEConfig(d_model=16, d_sae=48, k=4)
RECIPE = Recipe(
    steps=100,
    learning_rate=3e-3,
    warmup_steps=10,
    decay_steps=20,
    aux_k=8,
    aux_coefficient=1 / 32,
    dead_window=300,
)


@pytest.fixture
def batches() -> list[np.ndarray]:
    x = planted.activations(2000, planted.atoms(16, 32), active=3)
    return list(x.reshape(20, 100, 16))


def started(batches: list[np.ndarray]) -> TrainState:
    key = jax.random.key(0)
    return initial_state(initial_sae(SHAPE, np.concatenate(batches), key), RECIPE, key)


def with_silenced(state: TrainState, latents: int) -> TrainState:
    """Put the pre-activations of some latents so low that they never fire."""
    b_enc = state.sae.b_enc.at[:latents].set(-1e3)
    return dataclasses.replace(state, sae=dataclasses.replace(state.sae, b_enc=b_enc))


def test_a_step_is_adam_on_the_plain_loss_with_rows_kept_at_unit_norm(batches):
    state = started(batches)
    sae, x = jax.tree.map(jnp.array, state.sae), batches[0]

    def plain(weights):
        scaled = x * sae.scale
        z = (scaled - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
        values, indices = lax.top_k(z, SHAPE.k)
        codes = jnp.zeros_like(z).at[jnp.arange(100)[:, None], indices].set(jax.nn.relu(values))
        error = scaled - codes @ weights["W_dec"] - weights["b_dec"]
        return jnp.mean(error**2)

    weights = {name: getattr(sae, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    loss, slope = jax.value_and_grad(plain)(weights)
    slope["W_dec"] = tangent(slope["W_dec"], weights["W_dec"])
    adam = optax.adam(RECIPE.learning_rate / RECIPE.warmup_steps)
    updates, _ = adam.update(slope, adam.init(weights), weights)
    expected = jax.tree.map(jnp.add, weights, updates)
    expected["W_dec"] /= jnp.linalg.norm(expected["W_dec"], axis=1, keepdims=True)

    after, metrics = train_step(state, x, RECIPE)
    np.testing.assert_allclose(metrics["fvu"], loss, rtol=1e-5)
    for name, value in expected.items():
        moved = np.abs(np.asarray(value) - np.asarray(weights[name])).max()
        assert moved > 1e-5
        np.testing.assert_allclose(getattr(after.sae, name), value, atol=1e-2 * moved)


def test_rows_stay_at_unit_norm_and_the_scale_never_moves(batches):
    state = started(batches)
    scale = np.asarray(state.sae.scale).copy()
    for x in batches:
        state, _ = train_step(state, x, RECIPE)
    np.testing.assert_allclose(np.linalg.norm(state.sae.W_dec, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(state.sae.scale, scale)


def test_the_key_stays_with_the_caller(batches):
    key = jax.random.key(0)
    train_step(initial_state(initial_sae(SHAPE, batches[0], key), RECIPE, key), batches[0], RECIPE)
    assert jax.random.key_data(key).tolist() == [0, 0]


def test_a_tangent_has_no_component_along_its_row():
    rng = np.random.default_rng(0)
    rows = planted.atoms(16, 48).astype(np.float32)
    gradient = rng.normal(size=(48, 16)).astype(np.float32)
    found = np.asarray(tangent(jnp.asarray(gradient), jnp.asarray(rows)))
    np.testing.assert_allclose(np.sum(found * rows, axis=1), 0, atol=1e-6)
    outer = np.einsum("ld,le->lde", rows, rows)
    np.testing.assert_allclose(found, gradient - np.einsum("lde,le->ld", outer, gradient), rtol=1e-4, atol=1e-5)


def test_a_latent_that_is_listed_with_value_zero_has_not_fired(batches):
    """With every pre-activation below zero the top k are still listed, and nobody fires."""
    after, metrics = train_step(with_silenced(started(batches), 48), batches[0], RECIPE)
    assert metrics["l0"] == 0
    np.testing.assert_array_equal(after.silent, 100)


def test_counters_say_how_long_each_latent_has_been_silent(batches):
    state = with_silenced(started(batches), 5)
    expected = np.zeros(48, np.int64)
    died = 0
    for x in batches:
        codes = np.asarray(state.sae.encode(x))
        dead = int(np.sum(expected >= RECIPE.dead_window))
        expected = np.where((codes > 0).any(axis=0), 0, np.minimum(expected + 100, RECIPE.dead_window))
        state, metrics = train_step(state, x, RECIPE)
        assert metrics["dead"] == dead
        assert (metrics["aux"] > 0) == (dead > 0)
        died = max(died, dead)
        np.testing.assert_array_equal(state.silent, expected)
    assert died > 0


def test_the_learning_rate_rises_stays_and_falls_to_zero():
    rates = np.array([RECIPE.rate(jnp.asarray(step)) for step in range(101)]) / RECIPE.learning_rate
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10, rtol=1e-6)
    np.testing.assert_allclose(rates[10:81], 1, rtol=1e-6)
    np.testing.assert_allclose(rates[80:], np.arange(20, -1, -1) / 20, rtol=1e-6, atol=1e-7)


def test_steps_are_traced_once_and_never_ask_the_host(batches, monkeypatch):
    traces = mock.Mock(wraps=step.reconstruction_loss)
    monkeypatch.setattr(step, "reconstruction_loss", traces)
    fresh = dataclasses.replace(RECIPE, steps=101)
    state = with_silenced(started(batches), 5)
    on_device = [jax.device_put(x) for x in batches]
    state, _ = train_step(state, on_device[0], fresh)
    traced = traces.call_count
    with jax.transfer_guard("disallow"):
        for x in on_device[1:]:
            state, _ = train_step(state, x, fresh)
    assert int(np.sum(state.silent >= RECIPE.dead_window)) >= 5, "AuxK was never needed: nothing is proved"
    assert traced == traces.call_count == 1


def test_planted_atoms_are_recovered():
    """64 atoms in 32 dimensions, 4 at a time: nearly every atom becomes a decoder row."""
    dictionary = planted.atoms(32, 64)
    x = planted.activations(1000 * 512, dictionary, active=4)
    recipe = Recipe(1000, 3e-3, 50, 200, 16, 1 / 32, 20_000)
    key = jax.random.key(0)
    state = initial_state(initial_sae(SAEConfig(32, 64, 4), x[:8192], key), recipe, key)
    for batch in x.reshape(1000, 512, 32):
        state, metrics = train_step(state, batch, recipe)
    similarity = np.abs(dictionary @ np.asarray(state.sae.W_dec).T).max(axis=1)
    assert similarity.mean() > 0.9
    assert np.mean(similarity > 0.95) > 0.8
    assert metrics["fvu"] < 0.1
