"""Extraction from a model that runs in torch, and what either runtime refuses, all in one line."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from made_stores import files_of

from saejax import artifacts, cli
from saejax.activations.extract import ExtractConfig, extract
from saejax.activations.store import Store
from saejax.errors import InputError
from saejax.models.torch_model import TorchModel
from saejax.text.corpus import CorpusConfig
from saejax.text.tokens import save_tokenizer, train_bpe

TEXTS = [f"the cat number {i} sat on a mat and saw {'a rat run to sea ' * (i % 4)}" for i in range(12)]
HOOKS = ("resid_post.0", "transformer.h.1.mlp.fc_in:output")
SIZES: dict[str, Any] = {"vocab_size": 264, "n_embd": 12, "n_layer": 2, "n_head": 2, "n_positions": 32}
SPECIAL: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ExtractConfig:
    """An extraction from GPT-J, a family that has no model in JAX."""
    folder = tmp_path_factory.mktemp("runtimes")
    torch.manual_seed(0)
    model = transformers.GPTJForCausalLM(transformers.GPTJConfig(**SIZES, **SPECIAL, rotary_dim=4))
    model.save_pretrained(folder / "gptj")
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**SIZES, **SPECIAL)).save_pretrained(folder / "gpt2")
    for name in ("gptj", "gpt2"):
        save_tokenizer(train_bpe(iter(TEXTS), SIZES["vocab_size"]), folder / name)
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return ExtractConfig(
        folder / "gptj", HOOKS, folder / "store", CorpusConfig(str(folder / "corpus.jsonl")), context=16, batch=4,
        dtype="float32", shard_tokens=64,
    )  # fmt: skip


@pytest.fixture(scope="module")
def store(made: ExtractConfig) -> Store:
    return Store.open(extract(made))


def test_a_store_holds_what_transformers_says_of_each_text(made: ExtractConfig, store: Store) -> None:
    model = transformers.AutoModel.from_pretrained(made.model).eval()
    seen = []
    model.h[1].mlp.fc_in.register_forward_hook(lambda _, args, output: seen.append(output[0].numpy()))
    ledger = store.ledger(0, store.rows)
    texts = ledger["document"].astype(np.int64) * store.rows + np.arange(store.rows) // made.context
    for text in np.unique(texts):
        rows = np.flatnonzero(texts == text)
        with torch.no_grad():
            run = model(input_ids=torch.tensor(ledger["token_id"][rows][None]), output_hidden_states=True)
        for hook, expected in zip(HOOKS, (run.hidden_states[1][0].numpy(), seen[-1]), strict=True):
            atol = 1e-5 * np.abs(expected).max()
            np.testing.assert_allclose(store.gather(hook, rows), expected, rtol=0, atol=atol)


def test_the_manifest_says_what_ran(made: ExtractConfig, store: Store, tmp_path: Path) -> None:
    facts = store.manifest["facts"]
    assert facts["runtime"] == store.manifest["inputs"]["runtime"] == "torch"
    assert store.manifest["config"]["runtime"] == "auto"
    assert facts["hooks"]["resid_post.0"] == {"width": 12, "module_path": "transformer.h.0:output"}
    assert facts["hooks"][HOOKS[1]] == {"width": 48, "module_path": HOOKS[1]}
    assert facts["model_fingerprint"] == artifacts.file_sha256(made.model / "model.safetensors")
    known = dataclasses.replace(made, model=made.model.parent / "gpt2", hooks=HOOKS[:1], out=tmp_path / "jax")
    ran = {runtime: Store.open(extract(dataclasses.replace(known, runtime=runtime, out=tmp_path / runtime)))
           for runtime in ("auto", "torch")}  # fmt: skip
    assert [each.manifest["facts"]["runtime"] for each in ran.values()] == ["jax", "torch"]
    one, other = (each.read(HOOKS[0], 0, each.rows) for each in ran.values())
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-4 * np.abs(one).max())


def test_an_interrupted_extraction_goes_on(
    made: ExtractConfig, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = TorchModel.activations, []

    def killed(self, *args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, *args)

    config = dataclasses.replace(made, out=tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(TorchModel, "activations", killed)
        with pytest.raises(KeyboardInterrupt):
            extract(config)
    assert files_of(extract(config)) == files_of(store.path)


@pytest.mark.parametrize("name", ["gptj", "gpt2"])
def test_all_that_does_not_go_together_is_told_at_once(made: ExtractConfig, tmp_path: Path, name: str) -> None:
    model = shutil.copytree(made.model.parent / name, tmp_path / name)
    save_tokenizer(train_bpe(iter(TEXTS), 270), model)
    hooks = ("resid_post.5", "embed", "nowhere")
    config = dataclasses.replace(made, model=model, hooks=hooks, context=64, batch=1, out=tmp_path / "run")
    with pytest.raises(InputError) as refusal:
        extract(config)
    line = str(refusal.value)
    assert "\n" not in line
    for part in ("hook resid_post.5, nowhere is not in this model", "context 64 is above the model's 32 positions",
                 "a tokenizer of 270 tokens and a model of 264"):  # fmt: skip
        assert part in line
    assert not (tmp_path / "run").exists()


def test_the_verb_takes_runtime_and_pickles(
    made: ExtractConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(made.model, tmp_path / "model")
    (model / "model.safetensors").unlink()
    torch.save(transformers.AutoModelForCausalLM.from_pretrained(made.model).state_dict(), model / "pytorch_model.bin")
    words = ["extract", "--model", str(model), "--hooks", "embed", "--corpus.source", made.corpus.source,
             "--context", "16", "--out", str(tmp_path / "out"), "--runtime"]  # fmt: skip
    with pytest.raises(SystemExit):
        cli.main([*words, "jax"])
    assert "model_type gptj has no model in JAX; those are gpt2" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main([*words, "torch"])
    assert "a pickle, which can run code" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    cli.main([*words, "torch", "--allow-pickle"])
    assert Store.open(tmp_path / "out").hooks == ("embed",)


def test_another_runtime_is_refused(made: ExtractConfig) -> None:
    config = dataclasses.replace(made)
    object.__setattr__(config, "runtime", "numpy")  # as if annotations were not checked, as for users
    with pytest.raises(InputError, match="runtime numpy is none of auto, jax, torch"):
        config.__post_init__()
