import json
import shutil
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from made_models import Pair, error, random_model, saved_model, torch_forward
from safetensors.numpy import load_file, save_file

import saejax.models
from saejax.errors import InputError
from saejax.models import weights
from saejax.models.config import Rope, TransformerConfig
from saejax.models.families import LLAMA
from saejax.models.transformer import Transformer

IDS = np.arange(14).reshape(2, 7)


def same(a: Transformer, b: Transformer) -> None:
    assert a.config == b.config
    left, right = (jax.tree_util.tree_leaves_with_path(nnx.state(model)) for model in (a, b))
    assert [path for path, _ in left] == [path for path, _ in right]
    for (path, one), (_, other) in zip(left, right, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_is_the_same_model_for_us_and_for_transformers(tied: bool, tmp_path: Path) -> None:
    config = TransformerConfig(
        vocab_size=30, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, d_head=4, d_mlp=24, rope=Rope(theta=5e4),
        tie_embeddings=tied,
    )  # fmt: skip
    model = Transformer(config, nnx.Rngs(params=3))
    weights.save(tmp_path, model, family=LLAMA, bos_id=3, eos_id=4, dtype="float32")
    same(weights.load_weights(tmp_path), model)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(theirs, transformers.LlamaForCausalLM)
    assert (theirs.config.bos_token_id, theirs.config.eos_token_id, theirs.dtype) == (3, 4, torch.float32)
    assert error(saejax.models.load(tmp_path).run(IDS).logits, torch_forward(theirs, IDS).logits) < 1e-5


@pytest.mark.parametrize(("dtype", "kind"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_sixteen_bit_folders_load_as_their_exact_values(
    dtype: Literal["bfloat16", "float16"], kind: torch.dtype, tmp_path: Path
) -> None:
    theirs = random_model("llama-grouped-tied").type(kind)
    theirs.save_pretrained(tmp_path / "theirs")
    model = weights.load_weights(tmp_path / "theirs")
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {np.dtype(np.float32)}
    (tmp_path / "ours").mkdir()
    weights.save(tmp_path / "ours", model, family=LLAMA, bos_id=None, eos_id=None, dtype=dtype)
    same(weights.load_weights(tmp_path / "ours"), model)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert again.dtype == kind
    for name, value in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_shards_give_the_same_model_as_one_file(pair: Pair, tmp_path: Path) -> None:
    pair.theirs.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(weights.weight_files(tmp_path)) > 1
    same(weights.load_weights(tmp_path), weights.load_weights(pair.folder))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    random_model("llama-multiquery-untied").save_pretrained(tmp_path, max_shard_size="60KB")
    lost = weights.weight_files(tmp_path)[1]
    lost.unlink()
    with pytest.raises(InputError, match=f"lacks {lost.name}"):
        weights.load_weights(tmp_path)


def test_all_wrong_tensors_are_named_at_once(tmp_path: Path) -> None:
    saved_model("llama-grouped-tied", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.norm.weight"] = np.ones(5, np.float32)
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.ones(48, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError) as caught:
        weights.load_weights(tmp_path)
    said = str(caught.value)
    assert "model.layers.1.mlp.up_proj.weight is missing" in said
    assert "model.layers.0.self_attn.q_proj.bias is not of this model" in said
    assert "model.norm.weight is [5], not [48]" in said
    assert "\n" not in said


def test_tensors_that_only_repeat_what_is_known_are_ignored(tmp_path: Path) -> None:
    saved_model("llama-grouped-tied", tmp_path)
    before = weights.load_weights(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    same(weights.load_weights(tmp_path), before)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    saved_model("llama-grouped-tied", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match="holds no weights"):
        saejax.models.load(tmp_path)


def test_a_cut_off_file_is_refused(tmp_path: Path) -> None:
    saved_model("llama-grouped-tied", tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors is not a whole safetensors file"):
        saejax.models.load(tmp_path)


def test_another_architecture_is_refused_by_name(pair: Pair, tmp_path: Path) -> None:
    shutil.copytree(pair.folder, tmp_path, dirs_exist_ok=True)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**fields, "model_type": "mamba"}))
    with pytest.raises(InputError, match="model_type mamba is not supported; supported are gpt2, opt, gpt_neox, llama"):
        saejax.models.load(tmp_path)
