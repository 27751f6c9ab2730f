from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_sources import HOOK, made_sae, made_store, read_codes, reading_sae, some_special

from saejax.artifacts import read_manifest
from saejax.errors import InputError
from saejax.features import codes, encode
from saejax.features.encode import EncodeConfig
from saejax.features.sources import FeatureCodes
from saejax.sae.initial import initial_sae
from saejax.sae.normalisation import Kind, Normalisation
from saejax.sae.params import SAE, SAEConfig

ROWS, D, K = 230, 12, 4


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((ROWS, D)).astype(np.float32)


@pytest.fixture
def inputs(tmp_path: Path, x: np.ndarray) -> dict[str, Path]:
    made_store(tmp_path / "store", x, some_special(ROWS))
    made_sae(tmp_path / "sae", reading_sae(D, K))
    return {"store": tmp_path / "store", "sae": tmp_path / "sae"}


def dense(features: FeatureCodes) -> np.ndarray:
    return np.concatenate([block.toarray() for block in features.blocks(50)])


@pytest.mark.parametrize("block", [1, 32, 64, 1000])
@pytest.mark.parametrize("shard_rows", [64, 65536])
def test_codes_and_statistics_equal_brute_force(
    block: int, shard_rows: int, tmp_path: Path, inputs: dict, x: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (codes, encode):
        monkeypatch.setattr(module, "SHARD_ROWS", shard_rows)
    out = encode.encode(EncodeConfig(**inputs, out=tmp_path / "out", block=block, examples=5))
    kept = np.flatnonzero(~some_special(ROWS))
    expected = read_codes(x, K)[kept]
    features = FeatureCodes.open(out)
    np.testing.assert_array_equal(dense(features), expected)

    found, fires = features.statistics(), expected > 0
    np.testing.assert_array_equal(found["firing_count"], fires.sum(axis=0))
    np.testing.assert_allclose(found["firing_rate"], fires.mean(axis=0))
    np.testing.assert_allclose(found["mean"], expected.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found["mean_active"], expected.sum(axis=0) / fires.sum(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(found["max"], expected.max(axis=0))
    order = np.argsort(-expected, axis=0, kind="stable")[:5].T
    np.testing.assert_array_equal(found["top_rows"], kept[order])
    np.testing.assert_array_equal(found["top_values"], np.take_along_axis(expected.T, order, axis=1))
    facts = read_manifest(out)["facts"]
    assert facts["kept_rows"] == len(kept)
    assert facts["L0"] == pytest.approx(fires.sum(axis=1).mean())
    assert facts["never_fired"] == 0


def test_codes_of_a_trained_shape_equal_its_dense_codes(tmp_path: Path, inputs: dict, x: np.ndarray) -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    sae = SAE(
        W_enc=jax.random.normal(keys[0], (D, 40)), b_enc=jax.random.normal(keys[1], (40,)), b_dec=jnp.ones(D),
        W_dec=jax.random.normal(keys[2], (40, D)), normalisation=Normalisation("scalar", scale=jnp.asarray(0.5)),
        config=SAEConfig(D, 40, 6),
    )  # fmt: skip
    made_sae(tmp_path / "wide", sae)
    out = encode.encode(EncodeConfig(inputs["store"], tmp_path / "wide", tmp_path / "out", block=64))
    features = FeatureCodes.open(out)
    np.testing.assert_allclose(dense(features), sae.encode(x[~some_special(ROWS)]), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(features.decoder_rows(), sae.W_dec)


@pytest.mark.parametrize("kind", ["standardise", "zca"])
def test_rows_for_pairing_are_directions_in_the_space_of_the_model(
    kind: Kind, tmp_path: Path, inputs: dict, x: np.ndarray
) -> None:
    """They are where each latent moves the reconstruction, of unit norm: not the rows of the SAE's own space."""
    mixed = (x * np.geomspace(0.1, 10, D, dtype=np.float32)) @ np.linalg.qr(x[:D])[0]
    sae = initial_sae(SAEConfig(D, 40, 6), mixed, jax.random.key(0), kind)
    made_sae(tmp_path / "made", sae)
    features = FeatureCodes.open(encode.encode(EncodeConfig(inputs["store"], tmp_path / "made", tmp_path / "out")))
    moved = np.asarray(sae.decode(100 * jnp.eye(40)) - sae.decode(jnp.zeros((40, 40))))
    unit = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    np.testing.assert_allclose(features.decoder_rows(), unit, atol=1e-5)
    assert np.abs(unit - sae.W_dec).max() > 0.1


def test_a_plan_tells_rows_and_bytes_and_writes_nothing(tmp_path: Path, inputs: dict) -> None:
    planned = encode.plan(EncodeConfig(**inputs, out=tmp_path / "out", examples=5))
    assert not (tmp_path / "out").exists()
    assert set(planned) == {"rows", "disk", "minutes", "memory"}
    assert planned["rows"] == str(ROWS)
    out = encode.encode(EncodeConfig(**inputs, out=tmp_path / "out", examples=5))
    with np.load(out / "features.npz") as file:
        per_feature = sum(array.nbytes for array in file.values()) + np.load(out / "decoder.npy").nbytes
    assert planned["disk"] == f"{ROWS * K * 8 + per_feature:,} bytes at most"


def test_special_tokens_hold_no_code_and_change_nothing(tmp_path: Path, inputs: dict, x: np.ndarray) -> None:
    special = some_special(ROWS)
    huge = np.where(special[:, None], np.float32(1e30), x)
    made_store(tmp_path / "huge", huge, special)
    plain = FeatureCodes.open(encode.encode(EncodeConfig(**inputs, out=tmp_path / "out")))
    other = FeatureCodes.open(encode.encode(EncodeConfig(tmp_path / "huge", inputs["sae"], tmp_path / "out_huge")))
    for name, array in plain.statistics().items():
        np.testing.assert_array_equal(array, other.statistics()[name])
    np.testing.assert_array_equal(dense(plain), dense(other))
    values, indices = codes.Codes(tmp_path / "out_huge" / "codes").read(0, ROWS)
    assert (indices[special] == codes.NO_CODE).all()
    assert not values[special].any()


def test_every_block_has_the_one_compiled_shape(tmp_path: Path, inputs: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes, encode_sparse = set(), SAE.encode_sparse
    monkeypatch.setattr(SAE, "encode_sparse", lambda sae, x: shapes.add(x.shape) or encode_sparse(sae, x))
    encode.encode(EncodeConfig(**inputs, out=tmp_path / "out", block=100))
    assert shapes == {(100, D)}


def test_an_interrupted_pass_starts_again_and_a_complete_one_is_left_alone(
    tmp_path: Path, inputs: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (codes, encode):
        monkeypatch.setattr(module, "SHARD_ROWS", 64)
    config = EncodeConfig(**inputs, out=tmp_path / "out", block=64)
    with monkeypatch.context() as patch:
        patch.setattr(encode, "_codes_of", interrupting_after(3))
        with pytest.raises(KeyboardInterrupt):
            encode.encode(config)
    (config.out / "codes" / "indices" / "zarr.json").write_text("of a run killed long ago")
    with pytest.raises(InputError, match="unfinished"):
        FeatureCodes.open(config.out)
    encode.encode(config)
    undisturbed = encode.encode(EncodeConfig(**inputs, out=tmp_path / "other", block=64))
    for name, array in FeatureCodes.open(config.out).statistics().items():
        np.testing.assert_array_equal(array, FeatureCodes.open(undisturbed).statistics()[name])
    np.testing.assert_array_equal(dense(FeatureCodes.open(config.out)), dense(FeatureCodes.open(undisturbed)))

    monkeypatch.setattr(encode, "_codes_of", interrupting_after(0))
    assert encode.encode(config) == config.out
    with pytest.raises(InputError, match="block 64 there, 65 now"):
        encode.encode(EncodeConfig(**inputs, out=tmp_path / "out", block=65))


def interrupting_after(calls: int):
    done, codes_of = [0], encode._codes_of

    def interrupted(*arguments):
        if done[0] == calls:
            raise KeyboardInterrupt
        done[0] += 1
        return codes_of(*arguments)

    return interrupted


def test_an_sae_of_another_model_or_hook_is_refused_before_anything_is_written(tmp_path: Path, inputs: dict) -> None:
    made_sae(tmp_path / "foreign", reading_sae(D, K), hook="resid_post.3", model="m9")
    with pytest.raises(InputError) as refusal:
        encode.encode(EncodeConfig(inputs["store"], tmp_path / "foreign", tmp_path / "out"))
    for name in ("m0", "m9", HOOK, "resid_post.3", "foreign"):
        assert name in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_bad_input_is_refused(tmp_path: Path, inputs: dict, x: np.ndarray) -> None:
    with pytest.raises(InputError, match="block 0 must be at least 1"):
        EncodeConfig(**inputs, out=tmp_path / "out", block=0)
    with pytest.raises(InputError, match="examples 0 must be at least 1"):
        EncodeConfig(**inputs, out=tmp_path / "out", examples=0)
    made_store(tmp_path / "special", x, np.ones(ROWS, bool))
    with pytest.raises(InputError, match="no row but special tokens"):
        encode.encode(EncodeConfig(tmp_path / "special", inputs["sae"], tmp_path / "out"))
    broken = reading_sae(D, K)
    made_sae(tmp_path / "nan", SAE(**{**vars(broken), "b_dec": jnp.full(D, jnp.nan)}))
    with pytest.raises(InputError, match="NaN or infinite codes"):
        encode.encode(EncodeConfig(inputs["store"], tmp_path / "nan", tmp_path / "out"))
