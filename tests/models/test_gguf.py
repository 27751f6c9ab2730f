"""GGUF files are made here by the `gguf` package, and read by transformers and by us."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from made_ggufs import Kind, interleaved, written_gguf
from made_models import error, random_model, torch_forward

import saejax.models
from saejax.errors import InputError
from saejax.models.gguf import GGUFCheckpoint, split_pairs

IDS = np.arange(24).reshape(2, 12)


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.BF16, Kind.Q4_1, Kind.Q8_0])
def test_logits_are_those_of_transformers_reading_the_same_file(kind: Kind, tmp_path: Path) -> None:
    file = written_gguf(tmp_path / "model.gguf", kind=kind)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32)
    ours = saejax.models.load(tmp_path)
    assert error(ours.run(IDS).logits, torch_forward(theirs, IDS).logits) < 1e-4
    assert ours.name == "model"


def test_an_unquantised_file_holds_the_model_that_was_written(tmp_path: Path) -> None:
    ours = saejax.models.load(written_gguf(tmp_path / "model.gguf"))
    theirs = random_model("llama-multiquery-untied")
    assert (ours.config.rope.theta, ours.config.tie_embeddings) == (100.0, False)
    assert ours.config.norm_eps == np.float32(1e-3)
    assert error(ours.run(IDS).logits, torch_forward(theirs, IDS).logits) < 1e-4


def test_without_an_output_matrix_the_embedding_serves(tmp_path: Path) -> None:
    checkpoint = GGUFCheckpoint(written_gguf(tmp_path / "model.gguf", leave_out="output.weight"))
    assert checkpoint.config.tie_embeddings
    assert "lm_head.weight" not in checkpoint.shapes()


def test_pairs_come_back_in_order() -> None:
    rows = np.arange(24.0).reshape(24, 1)
    np.testing.assert_array_equal(split_pairs(interleaved(rows, 3), 3), rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "mamba"}, "architecture mamba is not supported; supported are llama"),
        ({"llama.rope.scaling.type": "yarn"}, "rope_type 'yarn'"),
        ({"leave_out": "blk.2.ffn_up.weight"}, "model.layers.2.mlp.up_proj.weight is missing"),
        ({"leave_out": "token_embd.weight"}, "lacks token_embd.weight"),
    ],
)
def test_files_that_cannot_run_here_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        saejax.models.load(written_gguf(tmp_path / "model.gguf", **changes))


def test_a_file_that_is_not_gguf_is_refused(tmp_path: Path) -> None:
    whole = written_gguf(tmp_path / "whole.gguf").read_bytes()
    for name, content in (("text.gguf", b"not a model at all, only some text"), ("cut.gguf", whole[:3000])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name} is not a whole GGUF file"):
            saejax.models.load(tmp_path / name)


def test_the_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.gguf").touch()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match=r'pip install "saejax\[gguf\]"'):
        saejax.models.load(tmp_path)
