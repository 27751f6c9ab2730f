"""safetensors files with a tensor of activations, alone or beside tokens and a mask, as llamascopium caches them.

llamascopium (OpenMOSS) writes a folder per hook with `chunk-00000000.safetensors`, or `shard-R-chunk-00000000` where R
processes write, which hold `activation`, `tokens` and `mask`. Texts of equal length are stacked, `[texts, positions,
width]` ("2D"), and the mask is 0 where a token is padding or begins a text; or the rows that the mask leaves stand one
after the other, `[rows, width]` ("1D"), without a trace of where texts end: then each file is a document.
"""

import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Shaped

from saejax.activations.imports.files import BLOCK_ROWS, UNKNOWN, Block, all_or_none, one_width, require_none
from saejax.errors import InputError

ACTIVATION, TOKENS, MASK = "activation", "tokens", "mask"
"""llamascopium's names of tensors."""
FLOATS = ("F16", "BF16", "F32", "F64")
INTEGERS = ("I8", "U8", "I16", "U16", "I32", "U32", "I64")
CHUNK_NAME = re.compile(r"(?:shard-(\d+)-)?chunk-(\d+)")


class SafetensorsFiles:
    """Tensors of one hook, read through memory maps."""

    def __init__(self, files: Sequence[Path], key: str | None) -> None:
        """Look at the headers.

        Args:
            files: the files in the order of their rows.
            key: name of the tensor of activations; when None `activation`, or the only tensor.

        Raises:
            InputError: a file is broken or lacks the tensor, or files do not fit together.
        """
        self.files = files
        self._texts: dict[Path, int] = {}
        widths, told, faults = {}, {}, []
        for file in self.files:
            try:
                with _mapped(file) as tensors:
                    names = list(tensors.keys())
                    key = _key(file, names, key)
                    shape = _checked_shape(file, tensors, key)
            except InputError as error:
                faults.append(str(error))
                continue
            widths[file], told[file] = shape[-1], TOKENS in names
            self._texts[file] = math.prod(shape[:-2])
        require_none(faults)
        self.key = str(key)
        self.width = one_width(widths)
        self.has_tokens = all_or_none(told, TOKENS)

    @staticmethod
    def in_order(files: Sequence[Path]) -> list[Path]:
        """Return chunks by the numbers of shard and chunk (`shard-10` is behind `shard-2`), other files as given."""
        names = [CHUNK_NAME.fullmatch(file.stem) for file in files]
        numbers = {file: (int(name[1] or 0), int(name[2])) for file, name in zip(files, names, strict=True) if name}
        return sorted(files, key=numbers.__getitem__) if len(numbers) == len(files) else list(files)

    def blocks(self) -> Iterator[Block]:
        """Yield all rows that no mask leaves out; see `ActivationFiles`."""
        document = 0
        for file in self.files:
            with _mapped(file) as tensors:
                shape = tensors.get_slice(self.key).get_shape()
                per_entry = math.prod(shape[1:-1])
                step = max(1, BLOCK_ROWS // max(per_entry, 1))
                for start in range(0, shape[0], step):
                    entries = slice(start, min(start + step, shape[0]))
                    kept = _kept(file, tensors, entries, per_entry)
                    number = entries.start * per_entry + np.flatnonzero(kept)
                    tokens = (
                        tensors.get_slice(TOKENS)[entries].reshape(-1)[kept]
                        if self.has_tokens
                        else np.full(len(number), UNKNOWN)
                    )
                    yield Block(
                        document=document + number // shape[-2],
                        position=number % shape[-2],
                        token_id=tokens.astype(np.int64),
                        read=partial(_rows, tensors, self.key, entries, kept),
                    )
            document += self._texts[file]


@contextlib.contextmanager
def _mapped(file: Path) -> Iterator[Any]:
    """Open a file by its header."""
    from safetensors import SafetensorError, safe_open

    try:
        opened = safe_open(file, framework="np")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is not a whole safetensors file ({error}); copy it again") from None
    with opened as tensors:
        yield tensors


def _key(file: Path, names: Sequence[str], key: str | None) -> str:
    """Return which tensor holds the activations."""
    if key is None:
        key = ACTIVATION if ACTIVATION in names or len(names) != 1 else names[0]
    if key not in names:
        known = ", ".join(sorted(names)) or "none at all"
        raise InputError(f"{file} has no tensor {key}, only {known}; name one by --key")
    return key


def _checked_shape(file: Path, tensors: Any, key: str) -> list[int]:
    """Return the shape of the activations, to which tokens and mask fit."""
    found = tensors.get_slice(key)
    shape, dtype = found.get_shape(), found.get_dtype()
    faults = []
    if dtype not in FLOATS:
        faults.append(f"{key} is of {dtype}, not {', '.join(FLOATS)}")
    if len(shape) < 2:
        faults.append(f"{key} has shape {shape}, not [rows, width] or [texts, positions, width]")
    for name, types in ((TOKENS, INTEGERS), (MASK, ("BOOL", *INTEGERS))):
        if name in tensors.keys():
            beside = tensors.get_slice(name)
            if beside.get_shape() != shape[:-1] or beside.get_dtype() not in types:
                faults.append(f"{name} of {beside.get_dtype()} has shape {beside.get_shape()} beside {key} of {shape}")
    if faults:
        raise InputError(f"{file}: {'; '.join(faults)}; name the right tensor by --key, or save the file again")
    return shape


def _kept(file: Path, tensors: Any, entries: slice, per_entry: int) -> Bool[np.ndarray, "rows"]:
    """Return which rows of some entries of the first axis the mask leaves."""
    if MASK not in tensors.keys():
        return np.ones((entries.stop - entries.start) * per_entry, bool)
    mask = tensors.get_slice(MASK)[entries].reshape(-1)
    if not np.isin(mask, (0, 1)).all():
        raise InputError(f"{file}: {MASK} holds {np.setdiff1d(mask, (0, 1))[0]}; it may hold 0 and 1 only")
    return mask.astype(bool)


def _rows(tensors: Any, key: str, entries: slice, kept: Bool[np.ndarray, "rows"]) -> Shaped[np.ndarray, "kept width"]:
    found = tensors.get_slice(key)[entries]
    return found.reshape(-1, found.shape[-1])[kept]
