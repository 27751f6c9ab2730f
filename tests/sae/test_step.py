import dataclasses
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import planted
import pytest
from jax import lax

from saejax.sae import step
from saejax.sae.fold import feature_directions
from saejax.sae.initial import initial_sae, normalised_variance
from saejax.sae.params import SAEConfig, shapes
from saejax.sae.state import ADAM, Recipe, TrainState, initial_state, workspace
from saejax.sae.step import found_share, row_products, train_step, updated
from saejax.sae.weights import Weights

SHAPE = SAEConfig(d_model=16, d_sae=48, k=4)
RECIPE = Recipe(
    steps=100,
    learning_rate=3e-3,
    warmup_steps=10,
    decay_steps=20,
    aux_k=8,
    aux_capacity=16,
    aux_coefficient=1 / 32,
    dead_window=300,
    precision="float32",
    impl="jax",
)


@pytest.fixture
def batches() -> list[np.ndarray]:
    x = planted.activations(2000, planted.atoms(16, 32), active=3)
    return list(x.reshape(20, 100, 16))


def started(batches: list[np.ndarray]) -> TrainState:
    key = jax.random.key(0)
    return initial_state(initial_sae(SHAPE, np.concatenate(batches), key), RECIPE, key)


def steps(state: TrainState, batches: list, recipe: Recipe = RECIPE) -> tuple[TrainState, dict]:
    """Take a step on each batch; return the state and the metrics of the last."""
    space, metrics = workspace(state, len(batches[0]), "jax"), {}
    for x in batches:
        state, space, metrics = train_step(state, space, x, recipe)
    return state, metrics


def with_silenced(state: TrainState, latents: int) -> TrainState:
    """Put the pre-activations of some latents so low that they never fire."""
    b_enc = state.weights.b_enc.at[:latents].set(-1e3)
    return dataclasses.replace(state, weights=dataclasses.replace(state.weights, b_enc=b_enc))


def test_a_step_is_adam_on_the_plain_loss_with_rows_kept_at_unit_norm(batches):
    state = started(batches)
    sae, x = jax.tree.map(jnp.array, state.sae), batches[0]

    def plain(weights):
        scaled = x * sae.normalisation.scale
        z = (scaled - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
        values, indices = lax.top_k(z, SHAPE.k)
        codes = jnp.zeros_like(z).at[jnp.arange(100)[:, None], indices].set(jax.nn.relu(values))
        error = scaled - codes @ weights["W_dec"] - weights["b_dec"]
        return jnp.mean(error**2)

    weights = {name: getattr(sae, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    loss, slope = jax.value_and_grad(plain)(weights)
    along = jnp.sum(slope["W_dec"] * weights["W_dec"], axis=1, keepdims=True)
    slope["W_dec"] -= along * weights["W_dec"]
    adam = optax.adam(RECIPE.learning_rate / RECIPE.warmup_steps)
    updates, _ = adam.update(slope, adam.init(weights), weights)
    expected = jax.tree.map(jnp.add, weights, updates)
    expected["W_dec"] /= jnp.linalg.norm(expected["W_dec"], axis=1, keepdims=True)

    after, metrics = steps(state, [x])
    np.testing.assert_allclose(metrics["fvu"], loss, rtol=1e-5)
    for name, value in expected.items():
        moved = np.abs(np.asarray(value) - np.asarray(weights[name])).max()
        assert moved > 1e-5
        np.testing.assert_allclose(getattr(after.sae, name), value, atol=1e-2 * moved)


def test_without_a_weight_of_aux_k_a_step_is_that_of_an_sae_none_of_whose_latents_is_dead(batches):
    ends = []
    for coefficient, dead in ((0.0, True), (RECIPE.aux_coefficient, False), (RECIPE.aux_coefficient, True)):
        silent = jnp.where(dead & (jnp.arange(SHAPE.d_sae) % 2 == 0), RECIPE.dead_window, 0).astype(jnp.int32)
        state = dataclasses.replace(started(batches), silent=silent)
        after, metrics = steps(state, batches[:1], dataclasses.replace(RECIPE, aux_coefficient=coefficient))
        assert (metrics["dead"] > 0) == dead
        assert (metrics["aux"] > 0) == (dead and coefficient > 0)
        ends.append(np.asarray(after.weights.encoder))
    np.testing.assert_array_equal(ends[0], ends[1])
    assert not np.array_equal(ends[0], ends[2])


def test_where_no_row_reaches_k_a_larger_k_changes_nothing(batches):
    """So an SAE with a weight of L1 and room enough is the ReLU SAE, whose k is all latents."""
    recipe, ends, capped = dataclasses.replace(RECIPE, l1_coefficient=1.0), [], []
    for k in (20, SHAPE.d_sae):
        shape, key, metrics = dataclasses.replace(SHAPE, k=k), jax.random.key(0), {}
        sae = initial_sae(shape, np.concatenate(batches), key)
        state = initial_state(dataclasses.replace(sae, b_enc=sae.b_enc - 1.5), recipe, key)
        for x in batches:
            state, metrics = steps(state, [x], recipe)
            capped.append(float(metrics["capped"]))
        assert 2 < metrics["l0"] < 20
        ends.append(state.weights)
    assert not any(capped)
    for name, value in vars(ends[1]).items():
        np.testing.assert_allclose(getattr(ends[0], name), value, rtol=1e-4, atol=1e-6)


def test_the_log_says_how_many_rows_reach_k_where_l1_is_weighed(batches):
    state = started(batches)
    codes = np.sort(np.asarray(state.sae.encode(batches[0])), axis=1)[:, -SHAPE.k :]
    _, metrics = steps(state, batches[:1], dataclasses.replace(RECIPE, l1_coefficient=1.0))
    np.testing.assert_allclose(metrics["capped"], np.mean(codes[:, 0] > 0), rtol=1e-6)
    np.testing.assert_allclose(metrics["l1"], codes.sum(axis=1).mean(), rtol=1e-5)
    assert "capped" not in steps(started(batches), batches[:1])[1]


def test_rows_stay_at_unit_norm_and_the_scale_never_moves(batches):
    state = started(batches)
    scale = np.asarray(state.sae.normalisation.scale).copy()
    state, _ = steps(state, batches)
    np.testing.assert_allclose(np.linalg.norm(state.sae.W_dec, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(state.sae.normalisation.scale, scale)


def test_the_key_stays_with_the_caller(batches):
    key = jax.random.key(0)
    steps(initial_state(initial_sae(SHAPE, batches[0], key), RECIPE, key), batches[:1])
    assert jax.random.key_data(key).tolist() == [0, 0]


@pytest.mark.parametrize("rows", [1, 7, 48, 64])
def test_row_products_are_those_of_the_rows(rows):
    a, b = np.random.default_rng(rows).normal(size=(2, rows, 16)).astype(np.float32)
    found = row_products(jnp.asarray(a), jnp.asarray(b))
    np.testing.assert_allclose(found, np.sum(a * b, axis=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("latents", [1, 7, 48, 64])
def test_weights_move_as_adam_says_and_decoder_rows_on_their_sphere(latents):
    """Two steps in float64, Kingma and Ba's formula: the second has moments; dictionaries of any size have parts."""
    random = np.random.default_rng(latents)

    def made() -> Any:
        rows, width = (latents, 16), (16,)
        return Weights(*(jnp.asarray(random.normal(size=size), jnp.float32) for size in (rows, rows[:1], rows, width)))

    weights, gradients, rate = made(), [made(), made()], 0.1
    weights = dataclasses.replace(weights, W_dec=weights.W_dec / jnp.linalg.norm(weights.W_dec, axis=1, keepdims=True))
    expected = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(weights)]
    first, second = [np.zeros_like(leaf) for leaf in expected], [np.zeros_like(leaf) for leaf in expected]
    moments = ADAM.init(weights)
    for count, gradient in enumerate(gradients, 1):
        weights, moments = updated(weights, gradient, moments, jnp.array(rate))
        for place, leaf in enumerate(jax.tree.leaves(gradient)):
            g, w = np.asarray(leaf, np.float64), expected[place]
            if place == 2:
                g = g - np.sum(g * w, axis=1, keepdims=True) * w
            first[place] = 0.9 * first[place] + 0.1 * g
            second[place] = 0.999 * second[place] + 0.001 * g**2
            corrected = first[place] / (1 - 0.9**count), second[place] / (1 - 0.999**count)
            w = w - rate * corrected[0] / (np.sqrt(corrected[1]) + 1e-8)
            expected[place] = w / np.linalg.norm(w, axis=1, keepdims=True) if place == 2 else w
    for ours, theirs in zip(jax.tree.leaves(weights), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=1e-5)


def test_a_gradient_along_decoder_rows_moves_nothing(batches):
    weights = started(batches).weights
    along = dataclasses.replace(jax.tree.map(jnp.zeros_like, weights), W_dec=3 * weights.W_dec)
    after, moments = updated(weights, along, ADAM.init(weights), jnp.array(0.1))
    np.testing.assert_allclose(moments.mu.W_dec, 0, atol=1e-6)
    across = np.einsum("ld,ld->l", after.W_dec, weights.W_dec)
    np.testing.assert_allclose(np.linalg.norm(after.W_dec, axis=1), 1, rtol=1e-6)
    assert across.min() > 0.9


def test_a_latent_that_is_listed_with_value_zero_has_not_fired(batches):
    """With every pre-activation below zero the top k are still listed, and nobody fires."""
    after, metrics = steps(with_silenced(started(batches), 48), batches[:1])
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
        state, metrics = steps(state, [x])
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
    state, space, _ = train_step(state, workspace(state, 100, "jax"), on_device[0], fresh)
    traced = traces.call_count
    with jax.transfer_guard("disallow"):
        for x in on_device[1:]:
            state, space, _ = train_step(state, space, x, fresh)
    assert int(np.sum(state.silent >= RECIPE.dead_window)) >= 5, "AuxK was never needed: nothing is proved"
    assert traced == traces.call_count == 1


def test_a_step_makes_no_array_of_the_size_of_its_largest_beyond_state_and_workspace():
    """Nor one like W_dec: parts of it are, and AuxK's; the product and the gradient lie in the workspace."""
    shape, rows = SAEConfig(d_model=256, d_sae=1 << 14, k=8), 256
    recipe = dataclasses.replace(RECIPE, aux_capacity=256)
    start = jax.eval_shape(lambda sae, key: initial_state(sae, recipe, key), shapes(shape), jax.random.key(0))
    space = jax.eval_shape(lambda state: workspace(state, rows, "jax"), start)
    x = jax.ShapeDtypeStruct((rows, shape.d_model), jnp.float32)
    memory: Any = train_step.lower(start, space, x, recipe).compile().memory_analysis()
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((start, space)))
    assert memory.alias_size_in_bytes >= 0.99 * held
    assert memory.temp_size_in_bytes < 4 * shape.d_sae * min(shape.d_model, rows) / 3


def test_bfloat16_rounds_products_alone(batches):
    """The loss moves by the rounding of inputs, parameters and moments stay float32, and training gets as far."""
    half = dataclasses.replace(RECIPE, precision="bfloat16")
    _, at_first = steps(started(batches), batches[:1])
    rounded, also = steps(started(batches), batches[:1], half)
    assert at_first["fvu"] != also["fvu"]
    np.testing.assert_allclose(also["fvu"], at_first["fvu"], rtol=2e-2)
    assert {leaf.dtype for leaf in jax.tree.leaves((rounded.weights, rounded.optimiser.mu))} == {jnp.dtype("float32")}
    ends = [float(steps(started(batches), batches, recipe)[1]["fvu"]) for recipe in (RECIPE, half)]
    np.testing.assert_allclose(ends[1], ends[0], rtol=5e-2)


def test_the_step_of_a_tpu_holds_no_product_and_lowers_for_one(batches):
    recipe = dataclasses.replace(RECIPE, impl="tpu")
    start = jax.eval_shape(lambda: started(batches))
    space = jax.eval_shape(lambda state: workspace(state, 100, "tpu"), start)
    x = jax.ShapeDtypeStruct((100, 16), jnp.float32)
    lowered = train_step.trace(start, space, x, recipe).lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" in lowered
    assert space.product is None


def test_the_step_of_a_tpu_is_that_of_any_device(batches, monkeypatch):
    """Its kernels are interpreted; some latents are dead, so that AuxK multiplies for itself."""
    interpreted = mock.Mock(side_effect=lambda *given, tpu: tpu(*given, interpret=True))
    monkeypatch.setattr(lax, "platform_dependent", interpreted)
    state = with_silenced(started(batches), 5)
    state = dataclasses.replace(state, silent=state.silent.at[:5].set(RECIPE.dead_window))
    ends = {}
    for impl in ("jax", "tpu"):
        recipe = dataclasses.replace(RECIPE, impl=impl, steps=102)
        copied = jax.tree.map(jnp.array, state)
        ends[impl] = train_step(copied, workspace(copied, 100, impl), batches[0], recipe)
    assert interpreted.call_count == 5  # of the encoder, the decode, and three of the gradient
    assert ends["jax"][2]["aux"] > 0
    for ours, theirs in zip(jax.tree.leaves(ends["tpu"][0]), jax.tree.leaves(ends["jax"][0]), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("kind", "recovered"), [("standardise", True), ("zca", True), ("scalar", False)])
def test_atoms_in_dimensions_of_very_unequal_scale_are_recovered_where_those_are_made_equal(kind, recovered):
    """Compared after the same stretching is taken off; by a scalar the largest dimensions alone are explained."""
    dictionary, stretch = planted.atoms(16, 32), 2.0 ** np.random.default_rng(5).integers(-6, 7, 16)
    x = (planted.activations(400 * 256, dictionary, active=2) * stretch).astype(np.float32)
    recipe = dataclasses.replace(
        RECIPE, steps=400, learning_rate=1e-2, warmup_steps=20, decay_steps=80, aux_capacity=32, dead_window=20_000
    )
    key = jax.random.key(0)
    sae = initial_sae(SAEConfig(16, 32, 2), x[:4096], key, kind)
    state = initial_state(sae, recipe, key, normalised_variance(sae.normalisation, x[:4096]))
    state, _ = steps(state, list(x.reshape(400, 256, 16)), recipe)
    found = np.asarray(feature_directions(state.sae)) / stretch
    similarity = np.abs(dictionary @ (found / np.linalg.norm(found, axis=1, keepdims=True)).T).max(axis=1)
    assert (similarity.mean() > 0.9) == recovered
    assert (similarity.mean() < 0.6) == (not recovered)


def test_a_step_on_standardised_activations_is_a_step_on_what_they_were_stretched_from(batches):
    """To the bit, as the factors are powers of two."""
    stretch = 2.0 ** np.random.default_rng(5).integers(-6, 7, 16).astype(np.float32)
    ends = []
    for factors in (np.ones(16, np.float32), stretch):
        x, key = [batch * factors for batch in batches], jax.random.key(0)
        sae = initial_sae(SHAPE, np.concatenate(x), key, "standardise")
        variance = normalised_variance(sae.normalisation, np.concatenate(x))
        ends.append(steps(initial_state(sae, RECIPE, key, variance), x)[0].weights)
    for ours, theirs in zip(jax.tree.leaves(ends[0]), jax.tree.leaves(ends[1]), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_planted_atoms_are_recovered():
    """64 atoms in 32 dimensions, 4 at a time: nearly every atom becomes a decoder row."""
    dictionary = planted.atoms(32, 64)
    x = planted.activations(1000 * 512, dictionary, active=4)
    recipe = dataclasses.replace(
        RECIPE, steps=1000, warmup_steps=50, decay_steps=200, aux_k=16, aux_capacity=64, dead_window=20_000
    )
    key = jax.random.key(0)
    state = initial_state(initial_sae(SAEConfig(32, 64, 4), x[:8192], key), recipe, key)
    state, metrics = steps(state, list(x.reshape(1000, 512, 32)), recipe)
    similarity = np.abs(dictionary @ np.asarray(state.sae.W_dec).T).max(axis=1)
    assert similarity.mean() > 0.9
    assert np.mean(similarity > 0.95) > 0.8
    assert metrics["fvu"] < 0.1


def test_the_recall_is_the_share_of_the_largest_latents_that_are_found(batches, monkeypatch):
    """Of a search that looks at half of the latents, as no device here misses any by itself."""
    state, x = started(batches), batches[0]

    def half(z, k, recall_target):
        return lax.top_k(z[:, : SHAPE.d_sae // 2], k)

    monkeypatch.setattr(lax, "approx_max_k", half)
    found = found_share(state, x, dataclasses.replace(RECIPE, recall=0.5))
    scaled = np.asarray(state.normalisation.apply(x), np.float64)
    z = (scaled - np.asarray(state.weights.b_dec)) @ np.asarray(state.weights.encoder, np.float64).T
    largest = np.argsort(-(z + np.asarray(state.weights.b_enc)), axis=1)[:, : SHAPE.k]
    assert 0.2 < float(found) < 0.8
    assert float(found) == pytest.approx(np.mean(largest < SHAPE.d_sae // 2), abs=1e-6)
