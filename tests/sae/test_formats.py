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
from saejax.sae.formats import ImportSAEConfig, import_sae
from saejax.sae.formats.run import read
from saejax.sae.params import SAE, load
from saejax.sae.train import train

FOREIGN = Path(__file__).parent / "foreign"
NAMES = (
    "sparsify", "sparsify_expansion", "sae_lens_standard", "sae_lens_bias_left", "sae_lens_topk",
    "sae_lens_topk_by_norm",
)  # fmt: skip
LATENTS = 24


@pytest.mark.parametrize("name", NAMES)
def test_codes_and_reconstructions_are_those_of_the_library(name: str) -> None:
    """As foreign/make.py had them from the library itself; its SAEs have random biases and decoder norms."""
    _, foreign = read(FOREIGN / name)
    sae = foreign.sae(most=20)
    with np.load(FOREIGN / name / "golden.npz") as golden:
        assert (golden["codes"] > 0).sum(axis=1).max() <= 20
        np.testing.assert_allclose(sae.encode(golden["x"]), golden["codes"], atol=1e-5)
        np.testing.assert_allclose(sae.decode(golden["codes"]), golden["x_hat"], atol=1e-5)
        np.testing.assert_allclose(sae.decode_sparse(*sae.encode_sparse(golden["x"])), golden["x_hat"], atol=1e-5)
    assert sae.config.d_sae == LATENTS
    assert sae.config.k == (20 if "topk" not in name and "sparsify" not in name else 3)


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
    assert same(read(early)[1].sae(1), read(FOREIGN / "sparsify")[1].sae(1))
    early = rewritten(
        "sae_lens_topk", tmp_path / "b", architecture=None, k=None, apply_b_dec_to_input=None,
        normalize_activations=True, activation_fn_str="topk", activation_fn_kwargs={"k": 3},
        hook_point="blocks.5.hook_resid_pre",
    )  # fmt: skip
    assert same(read(early)[1].sae(1), read(FOREIGN / "sae_lens_topk")[1].sae(1))
    assert read(early)[1].k == 3
    early = rewritten("sae_lens_standard", tmp_path / "c", architecture=None)
    file = early / "sae_weights.safetensors"
    save_file({**load_file(file), "scaling_factor": np.ones(LATENTS, np.float32)}, file)
    assert same(read(early)[1].sae(1), read(FOREIGN / "sae_lens_standard")[1].sae(1))


def test_the_settings_say_what_is_not_read(tmp_path: Path) -> None:
    for number, (name, changes, message) in enumerate([
        ("sparsify", {"transcode": True, "activation": "groupmax"},
         "activation groupmax is not topk; transcode true is not a plain autoencoder; name a TopK autoencoder"),
        ("sparsify", {"signed": True}, "signed true has negative codes"),
        ("sparsify", {"d_in": None, "k": None}, r"cfg\.json says no d_in; .*cfg\.json says no k"),
        ("sparsify", {"num_latents": 32}, r"holds encoder\.weight of shape \[24, 8\], not \[32, 8\]; .*W_dec of shape"),
        ("sae_lens_standard", {"architecture": "jumprelu"}, r"architecture jumprelu is not standard \(ReLU\) or topk"),
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
    found = read(folder)[1]
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


def test_a_relu_sae_keeps_all_that_is_positive_or_is_refused(store: Store, trained: Path, tmp_path: Path) -> None:
    source = written(load(trained), tmp_path / "theirs", "SAELens")
    with pytest.raises(InputError, match="k 4 is too small: a row of .* has as many latents above zero; raise k"):
        import_sae(ImportSAEConfig(source, store.path, planted.HOOK, tmp_path / "few", k=4))
    assert not (tmp_path / "few").exists()
    out = import_sae(ImportSAEConfig(source, store.path, planted.HOOK, tmp_path / "all"))
    assert load(out).config.k == 16
