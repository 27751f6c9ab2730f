import dataclasses
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saejax.sae.execution import Execution
from saejax.sae.initial import initial_sae, normalised_variance
from saejax.sae.losses import reconstruction_loss
from saejax.sae.normalisation import Kind
from saejax.sae.params import SAE, SAEConfig
from saejax.sae.weights import Weights

HOW = Execution("float32", "jax")
SHAPE = SAEConfig(d_model=8, d_sae=24, k=4)


def away_from_start() -> tuple[SAE, np.ndarray]:
    """Return an SAE whose encoder is not its decoder, with biases, and a batch in scaled units."""
    rng = np.random.default_rng(0)
    sae = initial_sae(SHAPE, rng.normal(size=(100, 8)).astype(np.float32), jax.random.key(0))
    noise = rng.normal(size=(8, 24)).astype(np.float32) / 3
    sae = dataclasses.replace(sae, W_enc=sae.W_enc + noise, b_enc=sae.b_enc - 1)
    return sae, rng.normal(size=(50, 8)).astype(np.float32)


def loss_of(sae: SAE, x: np.ndarray) -> jax.Array:
    return reconstruction_loss(Weights.of(sae), jnp.asarray(x), SHAPE.k, HOW)[0]


def test_the_loss_is_the_squared_error_over_the_width():
    sae, x = away_from_start()
    x_hat = sae.decode(sae.encode(x / sae.normalisation.scale)) * sae.normalisation.scale
    expected = np.mean(np.sum(np.asarray(x - x_hat, np.float64) ** 2, axis=1)) / 8
    np.testing.assert_allclose(loss_of(sae, x), expected, rtol=1e-5)


@pytest.mark.parametrize(("variance", "k"), [(None, 4), (2.5, 4), (2.5, 24)])
def test_the_gradient_with_a_weight_of_l1_is_that_of_a_relu_sae(variance, k):
    """Of one that keeps the k largest, and where k is all latents, of the plain one."""
    sae, x = away_from_start()
    weights = Weights.of(sae)

    def dense(weights: Weights) -> jax.Array:
        codes = jax.nn.relu((x - weights.b_dec) @ weights.encoder.T + weights.b_enc)
        if k < 24:
            codes = jnp.where(codes >= jnp.sort(codes, axis=1)[:, -k, None], codes, 0)
        error = jnp.sum((x - codes @ weights.W_dec - weights.b_dec) ** 2, axis=1)
        return jnp.mean(error + 0.7 * jnp.sum(codes, axis=1)) / 8 / (variance or 1)

    given = None if variance is None else jnp.asarray(variance)
    plain, forward, found = reconstruction_loss(weights, jnp.asarray(x), k, HOW, given, 0.7)
    l1 = 0.7 * jnp.mean(jnp.sum(forward.values, axis=1)) / 8 / (variance or 1)
    np.testing.assert_allclose(plain + l1, dense(weights), rtol=1e-5)
    for name, expected in vars(jax.grad(dense)(weights)).items():
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(getattr(found, name), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("variance", [None, 2.5])
def test_the_gradient_is_that_of_the_dense_loss(variance):
    sae, x = away_from_start()
    weights = Weights.of(sae)

    def dense(weights: Weights) -> jax.Array:
        z = (x - weights.b_dec) @ weights.encoder.T + weights.b_enc
        values, indices = jax.lax.top_k(z, SHAPE.k)
        codes = jnp.zeros_like(z).at[jnp.arange(len(x))[:, None], indices].set(jax.nn.relu(values))
        return jnp.mean(jnp.sum((x - codes @ weights.W_dec - weights.b_dec) ** 2, axis=1)) / 8 / (variance or 1)

    given = None if variance is None else jnp.asarray(variance)
    _, forward, found = reconstruction_loss(weights, jnp.asarray(x), SHAPE.k, HOW, given)
    assert (forward.values == 0).any(), "relu never cut: nothing is proved about it"
    for name, expected in vars(jax.grad(dense)(weights)).items():
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(getattr(found, name), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_the_loss_of_the_mean_is_one_on_the_sample_that_fitted_the_normalisation(kind):
    sample = 7 + np.random.default_rng(3).normal(size=(300, 8)).astype(np.float32) * np.arange(1, 9, dtype=np.float32)
    start = initial_sae(SHAPE, sample, jax.random.key(0), kind)
    z = start.normalisation.apply(sample)
    silent = dataclasses.replace(start, b_enc=jnp.full(24, -1e6), b_dec=jnp.mean(z, axis=0))
    variance = normalised_variance(start.normalisation, sample)
    np.testing.assert_allclose(reconstruction_loss(Weights.of(silent), z, SHAPE.k, HOW, variance)[0], 1, rtol=1e-5)
    assert (variance is None) == (kind == "scalar")
