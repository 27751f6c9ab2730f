from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saejax import artifacts
from saejax.errors import InputError
from saejax.sae.config import SAETrainConfig
from saejax.sae.initial import initial_sae
from saejax.sae.normalisation import Kind
from saejax.sae.params import SAE, SAEConfig, load, save, shapes

SHAPE = SAEConfig(d_model=8, d_sae=24, k=3)
KINDS = get_args(Kind)


def started(kind: Kind) -> SAE:
    sample = 50 + 0.01 * np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    return initial_sae(SHAPE, sample, jax.random.key(0), kind)


@pytest.fixture
def sae() -> SAE:
    return started("scalar")


def finished(sae: SAE, folder) -> None:
    run = artifacts.begin(folder, "sae", SAETrainConfig(folder, "resid_post.0", folder))
    run.finish(**save(sae, folder))


def test_decode_gives_activations_in_the_units_that_encode_takes(sae):
    """With one latent along the difference, an activation comes back whole, however the model scales it."""
    x = 50 + 0.01 * np.random.default_rng(1).normal(size=(1, 8)).astype(np.float32)
    centred = jnp.asarray(x[0]) * sae.normalisation.scale - sae.b_dec
    direction = centred / jnp.linalg.norm(centred)
    exact = SAE(
        W_enc=direction[:, None],
        b_enc=jnp.zeros(1),
        W_dec=direction[None],
        b_dec=sae.b_dec,
        normalisation=sae.normalisation,
        config=SAEConfig(8, 1, 1),
    )
    np.testing.assert_allclose(exact.decode(exact.encode(x)), x, rtol=1e-6)
    np.testing.assert_allclose(exact.encode(x)[0, 0], jnp.linalg.norm(centred), rtol=1e-4)


def test_sparse_and_dense_codes_agree(sae):
    x = 50 + 0.01 * np.random.default_rng(2).normal(size=(30, 8)).astype(np.float32)
    codes = np.asarray(sae.encode(x))
    values, indices = sae.encode_sparse(x)
    assert codes.shape == (30, 24)
    assert values.shape == indices.shape == (30, 3)
    np.testing.assert_array_equal(np.take_along_axis(codes, np.asarray(indices), axis=1), values)
    assert np.count_nonzero(codes) == np.count_nonzero(values)
    np.testing.assert_allclose(sae.decode_sparse(values, indices), sae.decode(codes), rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_a_pytree_with_the_shapes_it_promises(kind):
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), started(kind)) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), shapes(SHAPE, kind)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_sae_loads_to_the_bit(kind, tmp_path):
    sae = started(kind)
    finished(sae, tmp_path)
    again = load(str(tmp_path))
    assert jax.tree.structure(again) == jax.tree.structure(sae)
    for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(sae), strict=True):
        np.testing.assert_array_equal(ours, theirs, strict=True)


def with_normalisation(folder, kind: str | None) -> None:
    """Rewrite what the manifest says of the normalisation."""
    manifest = artifacts.read_manifest(folder)
    manifest["facts"].pop("normalisation")
    manifest["facts"].update({} if kind is None else {"normalisation": kind})
    artifacts.write_json(folder / "manifest.json", manifest)


def test_a_run_from_before_there_were_other_normalisations_has_a_scalar(sae, tmp_path):
    finished(sae, tmp_path)
    with_normalisation(tmp_path, None)
    assert load(tmp_path).normalisation.kind == "scalar"
    np.testing.assert_array_equal(load(tmp_path).normalisation.scale, sae.normalisation.scale)


@pytest.mark.parametrize(
    ("kind", "named", "message"),
    [
        ("scalar", "zca", r"holds W_dec .*, scale \[\], and normalisation zca .* needs .*basis \[8, 8\], mean .*;"),
        ("zca", "standardise", r"holds .*basis \[8, 8\], .*, and normalisation standardise of its manifest needs"),
        ("standardise", None, r"holds .*sd \[8\], and normalisation scalar of its manifest needs .*scale \[\]; train"),
        (
            "scalar",
            "batch_norm",
            "has normalisation batch_norm, not one of none, scalar, layer_norm, standardise, zca",
        ),
    ],
)
def test_arrays_of_another_normalisation_are_refused(kind, named, message, tmp_path):
    finished(started(kind), tmp_path)
    with_normalisation(tmp_path, named)
    with pytest.raises(InputError, match=message):
        load(tmp_path)


def test_layer_norm_decodes_in_the_place_of_given_rows():
    sae, x = started("layer_norm"), 50 + np.random.default_rng(3).normal(size=(30, 8))
    values, indices = sae.encode_sparse(x)
    z = np.asarray(sae.encode(x), np.float64) @ np.asarray(sae.W_dec) + np.asarray(sae.b_dec)
    expected = z * (x.std(axis=1, ddof=1, keepdims=True) + 1e-5) + x.mean(axis=1, keepdims=True)
    for found in (sae.decode_sparse(values, indices, like=x), sae.decode(sae.encode(x), like=x)):
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    for decode in (lambda: sae.decode(sae.encode(x)), lambda: sae.decode_sparse(values, indices)):
        with pytest.raises(InputError, match="give them as like=x"):
            decode()


def test_weights_of_another_run_are_refused(sae, tmp_path):
    finished(sae, tmp_path)
    save(jax.tree.map(lambda leaf: leaf + 1, sae), tmp_path)
    with pytest.raises(InputError, match="is not the file that its run wrote; train it again"):
        load(tmp_path)
    (tmp_path / "sae.safetensors").unlink()
    with pytest.raises(InputError, match=r"holds no sae\.safetensors"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((8, 4, 5), "k 5 is larger than d_sae 4; lower k or raise d_sae"),
        ((8, 4, 0), "k 0; give at least 1"),
        ((0, 4, 1), "d_model 0; give at least 1"),
    ],
)
def test_impossible_shapes_are_refused(shape, message):
    with pytest.raises(InputError) as refusal:
        SAEConfig(*shape)
    assert str(refusal.value) == message
