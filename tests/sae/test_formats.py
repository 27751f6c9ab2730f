"""SAEs of other libraries are, as runs of ours, what those libraries say of them."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import planted
import pytest
from safetensors.numpy import load_file, save_file

from saejax import artifacts, cli
from saejax.activations.filters import RowFilter
from saejax.activations.store import Store
from saejax.errors import InputError
from saejax.features.encode import EncodeConfig, encode
from saejax.features.sources import FeatureCodes
from saejax.sae.config import SAETrainConfig
from saejax.sae.fold import fold
from saejax.sae.formats import ImportSAEConfig, import_sae, run
from saejax.sae.formats.run import read
from saejax.sae.params import SAE, load
from saejax.sae.train import train

FOREIGN = Path(__file__).parent / "foreign"
NAMES = {
    "sparsify": "topk", "sparsify_expansion": "topk", "sae_lens_standard": "relu", "sae_lens_bias_left": "relu",
    "sae_lens_topk": "topk", "sae_lens_topk_by_norm": "topk", "sae_lens_jumprelu": "jump_relu",
    "sae_lens_gated": "jump_relu", "sae_lens_batchtopk": "jump_relu", "gemma_scope_2b": "jump_relu",
    "gemma_scope_3": "jump_relu",
}  # fmt: skip
LATENTS, ROOM = 24, 23
THRESHOLD = 0.3


@pytest.mark.parametrize(("name", "activation"), NAMES.items())
def test_codes_and_reconstructions_are_those_of_the_library(name: str, activation: str) -> None:
    """As foreign/make.py had them from the library itself; its SAEs have random biases and decoder norms."""
    *_, foreign = read(FOREIGN / name)
    sae = foreign.sae(most=ROOM)
    with np.load(FOREIGN / name / "golden.npz") as golden:
        assert 0 < (golden["codes"] > 0).mean() < 0.7
        assert (golden["codes"] > 0).sum(axis=1).max() < ROOM
        np.testing.assert_allclose(sae.encode(golden["x"]), golden["codes"], atol=1e-5)
        np.testing.assert_allclose(sae.decode(golden["codes"]), golden["x_hat"], atol=1e-5)
        values, indices = map(np.asarray, sae.encode_sparse(golden["x"]))
        np.testing.assert_allclose(sae.decode_sparse(values, indices), golden["x_hat"], atol=1e-5)
        np.testing.assert_allclose(sae.reconstruct(golden["x"]), golden["x_hat"], atol=1e-5)
    assert (np.diff(values, axis=1) <= 0).all()
    assert sae.config.d_sae == LATENTS
    kept = {"topk": 3, "relu": ROOM, "jump_relu": ROOM}
    assert (sae.config.k, sae.config.activation) == (kept[activation], activation)


def rewritten(name: str, out: Path, **changes: Any) -> Path:
    """Copy an SAE with other settings; None takes one out."""
    shutil.copytree(FOREIGN / name, out)
    settings = json.loads((out / "cfg.json").read_text()) | changes
    (out / "cfg.json").write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))
    return out


def same(one: SAE, other: SAE) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("W_enc", "b_enc", "W_dec"))


def test_settings_of_early_versions_mean_the_same(tmp_path: Path) -> None:
    early = rewritten("sparsify", tmp_path / "a", activation=None, transcode=None, skip_connection=None, signed=False)
    assert same(read(early)[-1].sae(1), read(FOREIGN / "sparsify")[-1].sae(1))
    early = rewritten(
        "sae_lens_topk", tmp_path / "b", architecture=None, k=None, apply_b_dec_to_input=None,
        normalize_activations=True, activation_fn_str="topk", activation_fn_kwargs={"k": 3},
        hook_point="blocks.5.hook_resid_pre",
    )  # fmt: skip
    assert same(read(early)[-1].sae(1), read(FOREIGN / "sae_lens_topk")[-1].sae(1))
    assert read(early)[-1].k == 3
    early = rewritten("sae_lens_standard", tmp_path / "c", architecture=None)
    file = early / "sae_weights.safetensors"
    save_file({**load_file(file), "scaling_factor": np.ones(LATENTS, np.float32)}, file)
    assert same(read(early)[-1].sae(1), read(FOREIGN / "sae_lens_standard")[-1].sae(1))


def test_the_settings_say_what_is_not_read(tmp_path: Path) -> None:
    for number, (name, changes, message) in enumerate([
        ("sparsify", {"transcode": True, "activation": "groupmax"},
         "activation groupmax is not topk; transcode true is not a plain autoencoder; name a TopK autoencoder"),
        ("sparsify", {"signed": True}, "signed true has negative codes"),
        ("sparsify", {"d_in": None, "k": None}, r"cfg\.json says no d_in; .*cfg\.json says no k"),
        ("sparsify", {"num_latents": 32}, r"holds encoder\.weight of shape \[24, 8\], not \[32, 8\]; .*W_dec of shape"),
        ("sae_lens_standard", {"architecture": "temporal"}, "temporal is not one of standard, topk, jumprelu, gated; "),
        ("sae_lens_standard", {"architecture": "jumprelu"}, "holds no threshold; copy it again"),
        ("sae_lens_gated", {"architecture": "standard"}, "holds no b_enc; .* b_gate, which such an SAE has not"),
        ("sae_lens_standard", {"normalize_activations": "layer_norm"}, "normalize_activations layer_norm is not in"),
        ("sae_lens_topk", {"k": None}, "says no k"),
        ("sae_lens_topk", {"d_sae": None}, "says no d_sae"),
    ]):  # fmt: skip
        with pytest.raises(InputError, match=message):
            read(rewritten(name, tmp_path / str(number), **changes))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_weights_of_sixteen_bits_are_read_as_they_are(dtype: Any, tmp_path: Path) -> None:
    folder = rewritten("sparsify", tmp_path / "sae")
    halved = {name: tensor.astype(dtype) for name, tensor in load_file(folder / "sae.safetensors").items()}
    save_file(halved, folder / "sae.safetensors")
    found = read(folder)[-1]
    assert found.W_dec.dtype == np.float32
    np.testing.assert_array_equal(found.W_dec, halved["W_dec"].astype(np.float32))


def test_broken_files_are_refused(tmp_path: Path) -> None:
    folder = rewritten("sparsify", tmp_path / "sae")
    file, settings = folder / "sae.safetensors", folder / "cfg.json"
    tensors = load_file(file)
    save_file({**tensors, "W_skip": np.zeros((8, 8), np.float32)}, file)
    with pytest.raises(InputError, match="holds W_skip, which such an SAE has not; copy it again"):
        read(folder)
    save_file({"W_dec": tensors["W_dec"].T.copy()}, file)
    with pytest.raises(InputError, match=r"no encoder\.weight; .*no b_dec; .*W_dec of shape \[8, 24\], not \[24, 8\]"):
        read(folder)
    tensors["b_dec"][3] = np.nan
    save_file(tensors, file)
    with pytest.raises(InputError, match="b_dec holds NaN or infinite entries"):
        read(folder)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(InputError, match="is not a whole safetensors file"):
        read(folder)
    settings.write_text("[1]")
    with pytest.raises(InputError, match="holds no settings but list"):
        read(folder)
    settings.write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        read(folder)
    settings.unlink()
    with pytest.raises(InputError, match="cfg.json is absent"):
        read(folder)
    file.unlink()
    (folder / "ae.pt").write_bytes(b"")
    with pytest.raises(InputError, match=r"holds no sae\.safetensors \(sparsify\) or .* but ae\.pt, golden\.npz; name"):
        read(folder)
    with pytest.raises(InputError, match="but nothing; name the folder of one SAE"):
        read(tmp_path / "nowhere")
    lens = rewritten("sae_lens_standard", tmp_path / "lens")
    file = lens / "sae_weights.safetensors"
    save_file({**load_file(file), "scaling_factor": np.full(LATENTS, 2, np.float32)}, file)
    with pytest.raises(InputError, match="holds a scaling_factor that is not 1, of finetuning"):
        read(lens)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    x = planted.activations(3000, planted.atoms(16, 32), active=3)
    return planted.store_of(x, tmp_path_factory.mktemp("stores") / "store")


@pytest.fixture(scope="module")
def trained(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(
        SAETrainConfig(
            store=store.path, hook=planted.HOOK, out=tmp_path_factory.mktemp("runs") / "sae", d_sae=16, k=4, steps=400,
            batch=200, learning_rate=3e-3, warmup_steps=10, decay_steps=100, initial_rows=500, checkpoint_every=400,
        )
    )  # fmt: skip


def written(sae: SAE, out: Path, kind: str = "sparsify") -> Path:
    """Write one of our SAEs, brought to the model's units, as another library would."""
    folded = fold(sae)
    W_enc, b_enc, W_dec, b_dec = (np.asarray(a) for a in (folded.W_enc, folded.b_enc, folded.W_dec, folded.b_dec))
    d_model, d_sae = W_enc.shape
    out.mkdir()
    if kind == "sparsify":
        settings = {"d_in": d_model, "num_latents": d_sae, "k": sae.config.k}
        tensors = {"encoder.weight": W_enc.T.copy(), "encoder.bias": b_enc, "W_dec": W_dec, "b_dec": b_dec}
        save_file(tensors, out / "sae.safetensors")
    else:
        settings = {"d_in": d_model, "d_sae": d_sae, "architecture": "standard"}
        tensors = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
        if kind == "jump_relu":
            settings["architecture"] = "jumprelu"
            tensors["threshold"] = np.full(d_sae, THRESHOLD, np.float32)
        save_file(tensors, out / "sae_weights.safetensors")
    (out / "cfg.json").write_text(json.dumps(settings))
    return out


def test_an_imported_sae_encodes_as_the_one_it_was_written_from(
    store: Store, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source, out = written(load(trained), tmp_path / "theirs"), tmp_path / "ours"
    words = ["--source", source, "--store", store.path, "--hook", planted.HOOK, "--out", out]
    cli.main(["sae", "import", *map(str, words)])
    assert capsys.readouterr().out.splitlines() == [str(out)]
    health, expected = (
        {line["metric"]: line["value"] for line in artifacts.read_json(run / "health.json")} for run in (out, trained)
    )
    for name in ("fvu", "l0", "dead_rate", "decoder_cosine_max"):
        assert health[name] == pytest.approx(expected[name], rel=1e-4), name
    codes = []
    for sae, folder in ((out, tmp_path / "a"), (trained, tmp_path / "b")):
        config = EncodeConfig(store.path, sae, folder)
        codes.append(np.concatenate([block.toarray() for block in FeatureCodes.open(encode(config)).blocks()]))
        directions = np.load(folder / "decoder.npy")
        np.testing.assert_allclose(directions, load(trained).W_dec, atol=1e-5)
    np.testing.assert_allclose(codes[0], codes[1], rtol=1e-3, atol=1e-3)
    facts = artifacts.read_finished(out, "sae")["facts"]
    assert (facts["format"], facts["hook"], facts["foreign_config"]["num_latents"]) == ("sparsify", planted.HOOK, 16)
    cli.main(["sae", "import", *map(str, words)])
    with pytest.raises(InputError, match="is a run of saejax"):
        import_sae(ImportSAEConfig(out, store.path, planted.HOOK, tmp_path / "again"))


def test_what_does_not_explain_the_store_is_refused_before_anything_is_written(
    store: Store, trained: Path, tmp_path: Path
) -> None:
    """A decoder that lies transposed has the right shape where there are as many latents as dimensions."""
    sae, out = load(trained), tmp_path / "out"
    turned = dataclasses.replace(fold(sae), W_dec=fold(sae).W_dec.T)
    source = written(turned, tmp_path / "turned")
    with pytest.raises(
        InputError, match=r"leaves [\d.e+]+ of the variance of resid_post\.0 .* unexplained, as its mean"
    ):
        import_sae(ImportSAEConfig(source, store.path, planted.HOOK, out))
    source = written(sae, tmp_path / "right")
    with pytest.raises(InputError, match=r"has no hook mlp_out\.0, only resid_post\.0"):
        import_sae(ImportSAEConfig(source, store.path, "mlp_out.0", out))
    with pytest.raises(InputError, match=r"reads rows of 8 numbers, and resid_post\.0 of .* has 16; name the model"):
        import_sae(ImportSAEConfig(FOREIGN / "sparsify", store.path, planted.HOOK, out))
    none = RowFilter(first_document=5)
    with pytest.raises(InputError, match="no row of store .* is left by RowFilter"):
        import_sae(ImportSAEConfig(source, store.path, planted.HOOK, out, rows=none))
    with pytest.raises(InputError, match="k 0; give at least 1"):
        ImportSAEConfig(source, store.path, planted.HOOK, out, k=0)
    assert not out.exists()


@pytest.mark.parametrize("first", [1000, 799])
def test_rows_that_are_left_out_do_not_count_as_tried(
    first: int, store: Store, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first eight blocks of the store hold no row that is read, or a single one, which has no variance."""
    monkeypatch.setattr(run, "BLOCK", 100)
    source = written(load(trained), tmp_path / "theirs")
    config = ImportSAEConfig(source, store.path, planted.HOOK, tmp_path / "out", RowFilter(first_position=first))
    facts = artifacts.read_finished(import_sae(config), "sae")["facts"]
    assert facts["measured_rows"] == store.kept[first:].sum()


@pytest.mark.parametrize("activation", ["relu", "jump_relu"])
def test_what_keeps_all_that_is_active_has_room_for_it_or_is_refused(
    activation: str, store: Store, trained: Path, tmp_path: Path
) -> None:
    """Where it is imported, and where it is used later, on rows that were not seen then."""
    source = written(load(trained), tmp_path / "theirs", activation)
    refusal = f"k 4 is too small: a row has as many latents active, and a {activation} SAE keeps all; import it again"
    with pytest.raises(InputError, match=refusal):
        import_sae(ImportSAEConfig(source, store.path, planted.HOOK, tmp_path / "few", k=4))
    assert not (tmp_path / "few").exists()
    out = import_sae(ImportSAEConfig(source, store.path, planted.HOOK, tmp_path / "all"))
    assert (load(out).config.k, load(out).config.activation) == (16, activation)
    active = (np.asarray(load(out).encode(store.read(planted.HOOK, 0, store.rows))) > 0).sum(axis=1)
    room = int(active.max()) + 1
    out = import_sae(ImportSAEConfig(source, store.path, planted.HOOK, tmp_path / "enough", k=room))
    encode(EncodeConfig(store.path, out, tmp_path / "codes"))
    sae = load(out)
    everything = np.float64(sae.b_dec) + (50 - np.float64(sae.b_enc)) @ np.linalg.inv(np.float64(sae.W_enc))
    other = planted.store_of(np.tile(everything, (3, 1)).astype(np.float32), tmp_path / "other")
    with pytest.raises(InputError, match=f"k {room} is too small"):
        encode(EncodeConfig(other.path, out, tmp_path / "more"))


def test_a_jump_relu_sae_jumps(store: Store, trained: Path, tmp_path: Path) -> None:
    """Its codes are those of the ReLU SAE of the same weights where they are above the threshold, and none is below."""
    x, held = store.read(planted.HOOK, 0, 500), fold(load(trained))
    plain, codes = (
        np.asarray(read(written(held, tmp_path / kind, kind))[-1].sae(16).encode(x)) for kind in ("relu", "jump_relu")
    )
    assert ((plain > 0) & (plain < 0.9 * THRESHOLD)).any()
    clear = np.abs(plain - THRESHOLD) > 1e-4
    np.testing.assert_allclose(codes[clear], np.where(plain > THRESHOLD, plain, 0)[clear], atol=1e-5)
    assert codes[codes > 0].min() >= THRESHOLD


def test_gemma_scope_for_what_is_not_read(tmp_path: Path) -> None:
    shutil.copytree(FOREIGN / "gemma_scope_2b", tmp_path / "embedding" / "width_4k")
    with pytest.raises(InputError, match="reads embeddings in units of its own; name one of a layer"):
        read(tmp_path / "embedding" / "width_4k")
    shutil.copytree(FOREIGN / "gemma_scope_3", tmp_path / "transcoder")
    file = tmp_path / "transcoder" / "params.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "affine_skip_connection": np.zeros((8, 8), np.float32)}, file)
    with pytest.raises(InputError, match="holds affine_skip_connection, which such an SAE has not; copy it again"):
        read(tmp_path / "transcoder")
    (tmp_path / "transcoder" / "config.json").write_text('{"hf_hook_point_out": "model.layers.5.output"}')
    with pytest.raises(InputError, match="is a transcoder, to model.layers.5.output; name an autoencoder"):
        read(tmp_path / "transcoder")
    shutil.copytree(FOREIGN / "gemma_scope_2b", tmp_path / "cut")
    file = tmp_path / "cut" / "params.npz"
    np.savez(file, W_dec=tensors["w_dec"])
    with pytest.raises(InputError, match=r"params\.npz holds no matrix W_enc; copy it again"):
        read(tmp_path / "cut")
    np.savez(file, W_enc=tensors["w_dec"], W_dec=tensors["w_dec"], b_enc=tensors["b_enc"], b_dec=tensors["b_dec"])
    with pytest.raises(InputError, match=r"no threshold; .*W_dec of shape \[24, 8\], not \[8, 24\]"):
        read(tmp_path / "cut")
    file.write_bytes((FOREIGN / "gemma_scope_2b" / "params.npz").read_bytes()[:900])
    with pytest.raises(InputError, match="is not a whole npz file"):
        read(tmp_path / "cut")
