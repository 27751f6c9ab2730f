"""Pickled checkpoints are read only where that is asked for, and run nothing."""

import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_models import random_model, saved_model, torch_forward

import saejax.models
from saejax.errors import InputError

IDS = np.arange(20).reshape(2, 10)


def pickled(folder: Path, tensors: Any) -> Path:
    """A model folder with a pickle in place of safetensors."""
    saved_model("llama-grouped-tied", folder)
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pickle_gives_the_model_of_its_tensors(dtype: torch.dtype, tmp_path: Path) -> None:
    theirs = random_model("llama-grouped-tied")
    tensors = {name: tensor.to(dtype) for name, tensor in theirs.state_dict().items()}
    theirs.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    found = saejax.models.load(pickled(tmp_path, tensors), allow_pickle=True)
    expected = torch_forward(theirs, IDS).logits.numpy()
    np.testing.assert_allclose(found.run(IDS).logits, expected, atol=1e-4 * np.abs(expected).max())
    assert len(found.fingerprint) == 64


def test_a_pickle_is_refused_unasked(tmp_path: Path) -> None:
    pickled(tmp_path, random_model("llama-grouped-tied").state_dict())
    with pytest.raises(InputError, match=r"holds its weights in pytorch_model\.bin, a pickle, which can run code"):
        saejax.models.load(tmp_path)


class Harmful:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.file),)


def test_a_pickle_that_would_run_code_runs_none(tmp_path: Path) -> None:
    file = tmp_path / "ran"
    pickled(tmp_path / "model", {"model.norm.weight": Harmful(file)})
    with pytest.raises(InputError, match=r"pytorch_model\.bin is no pickle of tensors alone .*; get safetensors of it"):
        saejax.models.load(tmp_path / "model", allow_pickle=True)
    assert not file.exists()


def test_what_is_no_checkpoint_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved_model("llama-grouped-tied", tmp_path)
    with pytest.raises(InputError, match=r"holds no pytorch_model\.bin; leave allow_pickle out"):
        saejax.models.load(tmp_path, allow_pickle=True)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({})[:-1])
    with pytest.raises(InputError, match="is no pickle of tensors alone"):
        saejax.models.load(tmp_path, allow_pickle=True)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r'pip install "saejax\[torch\]"'):
        saejax.models.load(tmp_path, allow_pickle=True)
