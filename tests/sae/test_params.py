import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saejax import artifacts
from saejax.errors import InputError
from saejax.sae.config import SAETrainConfig
from saejax.sae.initial import initial_sae
from saejax.sae.params import ARRAYS, SAE, SAEConfig, load, save, shapes

SHAPE = SAEConfig(d_model=8, d_sae=24, k=3)


@pytest.fixture
def sae() -> SAE:
    sample = 50 + 0.01 * np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    return initial_sae(SHAPE, sample, jax.random.key(0))


def finished(sae: SAE, folder) -> None:
    run = artifacts.begin(folder, "sae", SAETrainConfig(folder, "resid_post.0", folder))
    run.finish(**save(sae, folder))


def test_decode_gives_activations_in_the_units_that_encode_takes(sae):
    """With one latent along the difference, an activation comes back whole, however the model scales it."""
    x = 50 + 0.01 * np.random.default_rng(1).normal(size=(1, 8)).astype(np.float32)
    centred = jnp.asarray(x[0]) * sae.scale - sae.b_dec
    direction = centred / jnp.linalg.norm(centred)
    exact = SAE(
        W_enc=direction[:, None],
        b_enc=jnp.zeros(1),
        W_dec=direction[None],
        b_dec=sae.b_dec,
        scale=sae.scale,
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


def test_it_is_a_pytree_with_the_shapes_it_promises(sae):
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), sae) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), shapes(SHAPE)
    )


def test_a_saved_sae_loads_to_the_bit(sae, tmp_path):
    finished(sae, tmp_path)
    again = load(str(tmp_path))
    assert again.config == SHAPE
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(again, name), getattr(sae, name), strict=True)


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
