"""A folded SAE is the same function, and its rows point where each latent moves the reconstruction."""

import dataclasses
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saejax import artifacts
from saejax.errors import InputError
from saejax.sae import SAE, SAEConfig, feature_directions, fold, load
from saejax.sae.config import SAETrainConfig
from saejax.sae.initial import initial_sae
from saejax.sae.normalisation import Kind
from saejax.sae.params import save

SHAPE = SAEConfig(d_model=10, d_sae=30, k=4)
KINDS = get_args(Kind)
AFFINE = [kind for kind in KINDS if kind != "layer_norm"]


def activations(rows: int, seed: int = 0) -> np.ndarray:
    mixing = np.random.default_rng(7).normal(size=(10, 10)) * np.geomspace(0.1, 10, 10)
    return (4 + np.random.default_rng(seed).normal(size=(rows, 10)) @ mixing).astype(np.float32)


def trained(kind: Kind) -> SAE:
    """Return an SAE whose encoder is not its decoder, with biases that are not those of the start."""
    sae, noise = initial_sae(SHAPE, activations(300), jax.random.key(0), kind), np.random.default_rng(1)
    return dataclasses.replace(
        sae,
        W_enc=sae.W_enc + jnp.asarray(noise.normal(size=(10, 30)) / 5, jnp.float32),
        b_enc=jnp.asarray(noise.normal(size=30) / 3, jnp.float32),
        b_dec=sae.b_dec + jnp.asarray(noise.normal(size=10) / 3, jnp.float32),
    )


def in_float64(folded: SAE, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return codes and reconstructions of an SAE that has no normalisation."""
    W_enc, b_enc, W_dec, b_dec = (np.asarray(a, np.float64) for a in jax.tree.leaves(folded))
    z = (x - b_dec) @ W_enc + b_enc
    codes = np.where(z >= np.sort(z, axis=1)[:, [-SHAPE.k]], np.maximum(z, 0), 0)
    return codes, codes @ W_dec + b_dec


@pytest.mark.parametrize("kind", AFFINE)
def test_codes_and_reconstructions_stay(kind: Kind) -> None:
    sae, x = trained(kind), activations(80, seed=2)
    folded = fold(sae)
    assert folded.normalisation.kind == "none"
    assert len(jax.tree.leaves(folded)) == 4
    codes, rebuilt = in_float64(folded, x.astype(np.float64))
    for one in (sae, folded):
        np.testing.assert_allclose(one.encode(x), codes, atol=1e-4 * codes.max())
        np.testing.assert_allclose(one.decode(one.encode(x)), rebuilt, atol=1e-4 * np.abs(rebuilt).max())
    assert (codes > 0).sum() > 80


@pytest.mark.parametrize("kind", AFFINE)
def test_a_threshold_stays_with_the_codes(kind: Kind) -> None:
    """It is in the units of codes, which folding keeps; a threshold left where codes are rescaled is a peer's bug."""
    threshold = jnp.asarray(np.random.default_rng(5).uniform(0, 1, 30), jnp.float32)
    shape = dataclasses.replace(SHAPE, k=30, activation="jump_relu")
    sae, x = dataclasses.replace(trained(kind), config=shape, threshold=threshold), activations(80, seed=2)
    folded = fold(sae)
    codes = np.asarray(sae.encode(x))
    np.testing.assert_allclose(folded.encode(x), codes, atol=1e-4 * codes.max())
    np.testing.assert_allclose(folded.reconstruct(x), sae.reconstruct(x), atol=1e-4 * np.abs(x).max())
    assert ((codes == 0) == ~(codes > threshold)).all()
    assert 0.05 < (codes > 0).mean() < 0.95


@pytest.mark.parametrize("kind", AFFINE)
def test_folding_twice_is_folding_once(kind: Kind) -> None:
    once = fold(trained(kind))
    for ours, theirs in zip(jax.tree.leaves(fold(once)), jax.tree.leaves(once), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_layer_norm_is_refused() -> None:
    with pytest.raises(InputError, match="layer_norm divides each row by an SD of its own, .* train with another"):
        fold(trained("layer_norm"))


@pytest.mark.parametrize("kind", KINDS)
def test_directions_are_where_each_latent_moves_the_reconstruction(kind: Kind) -> None:
    sae, x = trained(kind), np.repeat(activations(1, seed=3), 30, axis=0)
    moved = np.float64(sae.decode(100 * jnp.eye(30), x)) - np.float64(sae.decode(jnp.zeros((30, 30)), x))
    found = np.asarray(feature_directions(sae), np.float64)
    np.testing.assert_allclose(found, moved / np.linalg.norm(moved, axis=1, keepdims=True), atol=1e-5)
    in_place = kind in ("none", "scalar", "layer_norm")
    assert np.allclose(found, sae.W_dec, atol=1e-6) == in_place


@pytest.mark.parametrize("kind", AFFINE)
def test_directions_stay_when_lengths_do_not(kind: Kind) -> None:
    sae = trained(kind)
    folded = fold(sae)
    np.testing.assert_allclose(feature_directions(folded), feature_directions(sae), atol=1e-6)
    norms = np.linalg.norm(folded.W_dec, axis=1)
    assert np.allclose(norms, 1) == (kind == "none")


def test_a_folded_sae_can_be_kept(tmp_path) -> None:
    folded = fold(trained("zca"))
    run = artifacts.begin(tmp_path, "sae", SAETrainConfig(tmp_path, "resid_post.0", tmp_path))
    run.finish(**save(folded, tmp_path))
    assert jax.tree.structure(load(tmp_path)) == jax.tree.structure(folded)
    x = activations(20, seed=4)
    np.testing.assert_array_equal(load(tmp_path).encode(x), folded.encode(x))
