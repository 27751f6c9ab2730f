"""Reads one array from a file of bare arrays: .npy, .npz or .safetensors."""

from pathlib import Path

import numpy as np

from saejax.errors import InputError

SUFFIXES = (".npy", ".npz", ".safetensors")


def read_array(path: Path, name: str | None, side: str) -> np.ndarray:
    """Read an array from a file.

    Args:
        path: the file.
        name: which array of an .npz or .safetensors file; needed where it holds several.
        side: what errors call the array.

    Raises:
        InputError: the file is absent, of another format or damaged, or the array is not named, or is not there.
    """
    if not path.is_file():
        raise InputError(f"{side} {path} does not exist; name a {', '.join(SUFFIXES)} file")
    if path.suffix == ".npy":
        if name is not None:
            raise InputError(f"{side}_name {name} is given for {path}, which holds one array; leave it out")
        return _read_npy(path, side)
    if path.suffix == ".npz":
        return _read_npz(path, name, side)
    if path.suffix == ".safetensors":
        return _read_safetensors(path, name, side)
    raise InputError(f"{side} {path} must end in {', '.join(SUFFIXES)}")


def _read_npy(path: Path, side: str) -> np.ndarray:
    try:
        with path.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError):
        raise InputError(f"{side} {path} is not a .npy file of numbers; write one with numpy.save") from None


def _read_npz(path: Path, name: str | None, side: str) -> np.ndarray:
    import zipfile

    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays[_chosen(list(arrays), name, path, side)]
    except (ValueError, EOFError, zipfile.BadZipFile):
        raise InputError(f"{side} {path} is not a .npz file of numbers; write one with numpy.savez") from None


def _read_safetensors(path: Path, name: str | None, side: str) -> np.ndarray:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as tensors:
            return tensors.get_tensor(_chosen(list(tensors.keys()), name, path, side))
    except SafetensorError as error:
        raise InputError(f"{side} {path} is not a whole safetensors file ({error}); write it again") from None


def _chosen(names: list[str], wanted: str | None, path: Path, side: str) -> str:
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    if wanted is None and len(names) != 1:
        raise InputError(f"{side} {path} holds {len(names)} arrays ({shown}); give {side}_name")
    if wanted is not None and wanted not in names:
        raise InputError(f"{side}_name {wanted} is not in {path}; choose among {shown}")
    return wanted or names[0]
