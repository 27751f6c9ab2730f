from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saejax.errors import InputError
from saejax.sae.initial import geometric_median, initial_sae, normalised_variance
from saejax.sae.normalisation import Kind, Normalisation
from saejax.sae.params import SAEConfig

SHAPE = SAEConfig(d_model=6, d_sae=40, k=2)


def test_the_geometric_median_has_no_pull_in_any_direction():
    """At the minimum of the summed distance the unit vectors to all points cancel."""
    x = np.random.default_rng(0).exponential(size=(500, 6)).astype(np.float32)
    towards = x - np.asarray(geometric_median(jnp.asarray(x)), np.float64)
    pull = np.mean(towards / np.linalg.norm(towards, axis=1, keepdims=True), axis=0)
    from_mean = x - x.mean(axis=0)
    pull_of_mean = np.mean(from_mean / np.linalg.norm(from_mean, axis=1, keepdims=True), axis=0)
    assert np.linalg.norm(pull) < 1e-4 < 0.02 < np.linalg.norm(pull_of_mean)


def test_the_geometric_median_ignores_a_few_huge_rows():
    x = np.random.default_rng(1).normal(size=(500, 6)).astype(np.float32)
    with_outliers = x.copy()
    with_outliers[:10] = 1e5
    moved = np.linalg.norm(geometric_median(jnp.asarray(with_outliers)) - geometric_median(jnp.asarray(x)))
    assert moved < 0.2 < 1000 < np.linalg.norm(with_outliers.mean(axis=0) - x.mean(axis=0))


@pytest.mark.parametrize(("offset", "spread"), [(0, 1), (1000, 1), (5, 1e-4)])
def test_scaling_brings_the_centred_rms_norm_to_the_root_of_the_width(offset, spread):
    x = (offset + spread * np.random.default_rng(2).normal(size=(400, 6))).astype(np.float32)
    sae = initial_sae(SHAPE, x, jax.random.key(0))
    scaled = np.float64(x) * float(sae.normalisation.scale)
    norms = np.sum((scaled - scaled.mean(axis=0)) ** 2, axis=1)
    np.testing.assert_allclose(np.sqrt(norms.mean()), np.sqrt(6), rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(sae.W_dec, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(sae.W_enc, sae.W_dec.T)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_b_dec_begins_at_the_median_of_normalised_activations(kind):
    x = np.random.default_rng(3).exponential(size=(400, 6)).astype(np.float32) * np.arange(1, 7, dtype=np.float32)
    sae = initial_sae(SHAPE, x, jax.random.key(0), kind)
    towards = np.asarray(sae.normalisation.apply(x), np.float64) - np.asarray(sae.b_dec)
    pull = np.mean(towards / np.linalg.norm(towards, axis=1, keepdims=True), axis=0)
    assert np.linalg.norm(pull) < 1e-4


def test_what_layer_norm_leaves_nothing_of_is_refused():
    x = np.outer(np.arange(1, 31), np.arange(6)).astype(np.float32)
    with pytest.raises(InputError, match="all 30 sampled activations are equal after layer_norm; name another"):
        normalised_variance(Normalisation.fit("layer_norm", x), x)


def test_samples_without_variance_or_with_nan_are_refused():
    with pytest.raises(InputError, match="all 30 sampled activations are equal; name a hook"):
        initial_sae(SHAPE, np.ones((30, 6), np.float32), jax.random.key(0))
    with pytest.raises(InputError, match="hold NaN or infinity"):
        initial_sae(SHAPE, np.full((30, 6), np.nan, np.float32), jax.random.key(0))
