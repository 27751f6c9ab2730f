from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from saejax.errors import InputError
from saejax.nulls.matrices import read_array

A = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
B = A[:, ::-1].copy()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.save(tmp_path / "one.npy", A)
    np.savez(tmp_path / "one.npz", only=A)
    np.savez(tmp_path / "two.npz", a=A, b=B)
    save_file({"W_dec": A.astype(ml_dtypes.bfloat16)}, tmp_path / "one.safetensors")
    save_file({"a": A, "b": B}, tmp_path / "two.safetensors")
    return tmp_path


def test_every_format_gives_the_array(folder: Path) -> None:
    for file, name, expected in (
        ("one.npy", None, A), ("one.npz", None, A), ("one.npz", "only", A), ("two.npz", "b", B),
        ("two.safetensors", "a", A),
    ):  # fmt: skip
        np.testing.assert_array_equal(read_array(folder / file, name, "x"), expected)
    narrow = read_array(folder / "one.safetensors", None, "x")
    np.testing.assert_array_equal(narrow.astype(np.float32), A.astype(ml_dtypes.bfloat16).astype(np.float32))


@pytest.mark.parametrize(
    ("file", "name", "message"),
    [
        ("absent.npy", None, "y {} does not exist; name a .npy, .npz, .safetensors file"),
        ("text.txt", None, "y {} must end in .npy, .npz, .safetensors"),
        ("one.npy", "a", "y_name a is given for {}, which holds one array; leave it out"),
        ("two.npz", None, "y {} holds 2 arrays (a, b); give y_name"),
        ("two.safetensors", "c", "y_name c is not in {}; choose among a, b"),
        ("broken.npy", None, "y {} is not a .npy file of numbers; write one with numpy.save"),
        ("broken.npz", None, "y {} is not a .npz file of numbers; write one with numpy.savez"),
        ("pickled.npz", None, "y {} is not a .npz file of numbers; write one with numpy.savez"),
    ],
)
def test_bad_files_are_named(folder: Path, file: str, name: str | None, message: str) -> None:
    for broken in ("broken.npy", "broken.npz", "broken.safetensors", "text.txt"):
        (folder / broken).write_bytes(b"no array")
    np.savez(folder / "pickled.npz", a=np.array([{}], dtype=object))
    with pytest.raises(InputError) as error:
        read_array(folder / file, name, "y")
    assert str(error.value) == message.format(folder / file)


def test_a_broken_safetensors_file_is_named(folder: Path) -> None:
    (folder / "broken.safetensors").write_bytes(b"no array")
    with pytest.raises(InputError, match=r"^y .*broken\.safetensors is not a whole safetensors file \(.*\); write it"):
        read_array(folder / "broken.safetensors", None, "y")
