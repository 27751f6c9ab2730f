"""Every file of activations that cannot be imported: one line before anything is written."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from made_imports import (
    COLUMN,
    HOOK,
    INTEGERS,
    MATRIX,
    cached_by_saelens,
    config_of,
    imported,
    lists,
    normal,
    save_npy,
    save_to_disk,
    token_ids,
    write_arrow,
)
from safetensors.numpy import save_file

from saejax.activations.imports import import_activations
from saejax.errors import InputError


def refused(tmp_path: Path, source: Path, message: str, **changes: Any) -> None:
    """Import what must be refused in one line before anything is written."""
    with pytest.raises(InputError, match=message) as refusal:
        import_activations(config_of(source, tmp_path / "out", **changes))
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(5, np.float32), r"has shape \[5\]; save one row per token"),
        (np.zeros((5, 2, 3), np.float32), r"has shape \[5, 2, 3\]"),
        (np.zeros((5, 3), np.int32), "is of int32; save activations as float16"),
        (np.zeros((5, 3), np.complex64), "is of complex64"),
        (np.zeros((5, 3), "V4"), "is of |V4"),
        (np.zeros((0, 3), np.float32), "holds no rows"),
        (np.zeros((5, 0), np.float32), "has rows of 0 entries"),
        (np.array([[object()]]), "is not a whole .npy file of numbers"),
    ],
    ids=lambda value: "" if isinstance(value, np.ndarray) else None,
)
def test_an_array_that_is_no_matrix_of_floats(tmp_path: Path, array: np.ndarray, message: str) -> None:
    refused(tmp_path, save_npy(tmp_path / "x", [array]), message)


@pytest.mark.parametrize("length", [0, 5, 60, -1])
def test_a_truncated_npy_file(tmp_path: Path, length: int) -> None:
    file = save_npy(tmp_path / "x", [normal(5, 3)]) / "0000.npy"
    file.write_bytes(file.read_bytes()[:length])
    refused(tmp_path, tmp_path / "x", r"0000\.npy is not a whole \.npy file")


def test_files_of_another_width_are_named(tmp_path: Path) -> None:
    save_npy(tmp_path / "x", [normal(5, 3), normal(5, 4)])
    refused(tmp_path, tmp_path / "x", r"0001\.npy has rows of 4 entries and .*0000\.npy of 3; import files of one hook")
    save_file({"activation": normal(5, 4)}, tmp_path / "chunk-0.safetensors")
    save_file({"activation": normal(5, 3)}, tmp_path / "chunk-1.safetensors")
    refused(tmp_path, tmp_path, r"chunk-1\.safetensors has rows of 3 entries and .*chunk-0\.safetensors of 4")


def test_many_faulty_files_are_one_line(tmp_path: Path) -> None:
    save_npy(tmp_path / "x", [np.zeros(5, np.float32)] * 9)
    refused(tmp_path, tmp_path / "x", r"0002\.npy has shape \[5\].*; and 6 more like these$")


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_an_activation_that_is_no_number_is_named_by_its_row(tmp_path: Path, value: float) -> None:
    x = normal(40, 3)
    x[33, 1] = value
    with pytest.raises(InputError, match=rf"hook {HOOK} is {value} at row 33"):
        imported(save_npy(tmp_path / "x", [x]), tmp_path / "out")


@pytest.mark.filterwarnings("error")
def test_a_number_beyond_float32_is_refused(tmp_path: Path) -> None:
    x = normal(20, 3).astype(np.float64)
    x[12, 2] = 1e39
    with pytest.raises(InputError, match="is inf at row 12, which float32 cannot hold"):
        imported(save_npy(tmp_path / "x", [x]), tmp_path / "out")


def test_sources_that_are_none(tmp_path: Path) -> None:
    refused(tmp_path, tmp_path / "no", "source .*no does not exist; name a file")
    (tmp_path / "x.pt").write_text("pickle")
    refused(tmp_path, tmp_path / "x.pt", r"x\.pt is none of \.npy, \.safetensors, \.arrow; convert it")
    refused(tmp_path, tmp_path, r"holds no file \.npy, \.safetensors, \.arrow, but x\.pt")
    (tmp_path / "empty").mkdir()
    refused(tmp_path, tmp_path / "empty", "but nothing")
    save_npy(tmp_path, [normal(5, 3)])
    save_file({"x": normal(5, 3)}, tmp_path / "x.safetensors")
    refused(tmp_path, tmp_path, r"holds files of \.npy and \.safetensors; name one file")
    refused(tmp_path, tmp_path / "0000.npy", "key x is given, but a .npy file holds one array", key="x")
    refused(tmp_path, tmp_path / "0000.npy", "bos_id 1 is given, but .* tells no tokens", bos_id=1)
    refused(tmp_path, tmp_path / "0000.npy", "holds no weights", model=None, model_folder=tmp_path / "empty")


def chunk(**tensors: np.ndarray) -> dict[str, np.ndarray]:
    return {"activation": normal(4, 5, 3), "tokens": np.full((4, 5), 2), "mask": np.ones((4, 5), np.int32), **tensors}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"activation": np.zeros((4, 5, 3), np.int32)}, "activation is of I32, not F16"),
        ({"activation": normal(3)}, r"activation has shape \[3\], not \[rows, width\].*tokens of I64 has shape"),
        ({"tokens": np.zeros((4, 6), np.int64)}, r"tokens of I64 has shape \[4, 6\] beside activation of \[4, 5, 3\]"),
        ({"mask": np.zeros((4, 5), np.float32)}, "mask of F32 has shape"),
        ({"mask": np.full((4, 5), 2)}, "mask holds 2; it may hold 0 and 1 only"),
        ({"mask": np.zeros((4, 5), bool)}, "holds no rows"),
        ({"tokens": np.full((4, 5), -100)}, "holds token id -100; mask what is no token"),
        ({"tokens": np.full((4, 5), 2**40)}, "holds token id 1099511627776"),
    ],
)
def test_a_chunk_that_does_not_fit_together(tmp_path: Path, tensors: dict[str, np.ndarray], message: str) -> None:
    save_file(chunk(**tensors), tmp_path / "chunk-0.safetensors")
    refused(tmp_path, tmp_path, message)


def test_safetensors_that_are_broken_or_unlike(tmp_path: Path) -> None:
    file = tmp_path / "chunk-0.safetensors"
    save_file(chunk(), file)
    refused(tmp_path, tmp_path, "has no tensor x, only activation, mask, tokens; name one by --key", key="x")
    save_file({"activation": normal(4, 5, 3)}, tmp_path / "chunk-1.safetensors")
    refused(tmp_path, tmp_path, r"chunk-1\.safetensors has no tokens and other files have")
    file.write_bytes(file.read_bytes()[:-1])
    refused(tmp_path, tmp_path, r"chunk-0\.safetensors is not a whole safetensors file")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"t": lists([np.arange(3)], INTEGERS)}, r"no single column of lists of lists of floats, but t \(list<"),
        ({name: lists([normal(2, 3)], MATRIX) for name in "gh"}, "no single column"),
        ({"h": lists([normal(2, 3), normal(1, 4)], MATRIX)}, "a row of text 1 has not the 3 entries of the first row"),
        ({"h": lists([normal(2, 3)], MATRIX), "token_ids": lists([np.arange(3)], INTEGERS)}, "are not as many as rows"),
        (
            {"h": lists([normal(2, 3)], MATRIX), "token_ids": lists([normal(2)], MATRIX.value_type)},
            "token_ids of list<",
        ),
        ({"h": pyarrow.array([None, [[1.0]]], MATRIX)}, "has 1 empty places"),
        ({"h": lists([], MATRIX)}, "holds no rows"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_columns_that_cannot_be_activations(tmp_path: Path, columns: dict[str, pyarrow.Array], message: str) -> None:
    write_arrow(tmp_path / "x.arrow", columns)
    refused(tmp_path, tmp_path, message)


def test_data_sets_that_are_broken_or_lack_a_file(tmp_path: Path) -> None:
    source = save_to_disk(cached_by_saelens(normal(8, 6, 4), token_ids(8, 6)), tmp_path / "cache", shards=2)
    refused(
        tmp_path, source, rf"no column x of lists of lists of floats, but {COLUMN} \(list<.*name one by --key", key="x"
    )
    first, second = source / "data-00000-of-00002.arrow", source / "data-00001-of-00002.arrow"
    whole = first.read_bytes()
    for content in (whole[:-8], whole[:-200], whole[:4], b"", b"no stream" + whole[-8:]):
        first.write_bytes(content)
        refused(tmp_path, source, r"data-00000-of-00002\.arrow (is not a whole|does not end as an) Arrow stream")
    first.write_bytes(whole)
    second.unlink()
    refused(tmp_path, source, r"data-00001-of-00002\.arrow does not exist, though .*state\.json lists it")
    (source / "state.json").write_text("{}")
    refused(tmp_path, source, r"state\.json is no state of a saved data set")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hook": "a/b"}, "hook 'a/b' cannot name a folder"),
        ({"hook": ""}, "hook '' cannot name a folder"),
        ({"model": None}, "model and model_folder are both given or both not"),
        ({"model_folder": Path("there")}, "both given or both not; give one of them"),
        ({"bos_id": -1, "shard_tokens": 0}, "bos_id -1 is below 0.*; shard_tokens 0 is below 1"),
        ({"chunk_tokens": 0}, "chunk_tokens 0 is below 1"),
        ({"chunk_tokens": 5}, "chunk_tokens 5 must divide shard_tokens 16"),
    ],
)
def test_a_config_that_cannot_run_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config_of(Path("x"), Path("y"), **fields)
