import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from saejax.sae.initial import initial_sae
from saejax.sae.losses import reconstruction_loss
from saejax.sae.params import SAE, SAEConfig
from saejax.sae.weights import Weights

SHAPE = SAEConfig(d_model=8, d_sae=24, k=4)


def loss_of(sae: SAE, x: np.ndarray) -> jax.Array:
    return reconstruction_loss(Weights.of(sae), jnp.asarray(x), SHAPE.k, "float32", "jax")[0]


def test_the_loss_is_the_squared_error_over_the_width():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 8)).astype(np.float32)
    sae = initial_sae(SHAPE, rng.normal(size=(100, 8)).astype(np.float32), jax.random.key(0))
    sae = dataclasses.replace(sae, W_enc=sae.W_enc * 1.3, b_enc=sae.b_enc + 0.2)
    x_hat = sae.decode(sae.encode(x / sae.scale)) * sae.scale
    expected = np.mean(np.sum(np.asarray(x - x_hat, np.float64) ** 2, axis=1)) / 8
    np.testing.assert_allclose(loss_of(sae, x), expected, rtol=1e-5)


def test_the_loss_of_the_mean_is_one_on_the_sample_that_set_the_scale():
    sample = 7 + np.random.default_rng(3).normal(size=(300, 8)).astype(np.float32)
    start = initial_sae(SHAPE, sample, jax.random.key(0))
    silent = dataclasses.replace(start, b_enc=jnp.full(24, -1e6), b_dec=jnp.asarray(sample.mean(axis=0)) * start.scale)
    np.testing.assert_allclose(loss_of(silent, sample * np.float32(start.scale)), 1, rtol=1e-5)
