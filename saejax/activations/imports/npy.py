"""`.npy` files of shape `[rows, width]`: rows and nothing else, each file a document of its own.

A file of bfloat16 does not say so: numpy writes the type of `ml_dtypes` and JAX as two bytes without a meaning. Nothing
else that numpy writes looks so, and it is read as bfloat16.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
from jaxtyping import Shaped

from saejax.activations.imports.files import BLOCK_ROWS, UNKNOWN, Block, one_width, require_none
from saejax.errors import InputError

BARE_BFLOAT16 = np.dtype("V2")
FLOATS = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))


class NpyFiles:
    """Arrays of one hook, read through memory maps."""

    key = None
    has_tokens = False

    def __init__(self, files: Sequence[Path], key: str | None) -> None:
        """Look at the headers.

        Args:
            files: the files in the order of their rows.
            key: must be None: the arrays have no names.

        Raises:
            InputError: a key is given; or a file is broken, no matrix of floats, or of another width.
        """
        if key is not None:
            raise InputError(f"key {key} is given, but a .npy file holds one array without a name; leave --key out")
        self.files = files
        shapes = {}
        faults = []
        for file in files:
            try:
                shapes[file] = _matrix(file).shape
            except InputError as error:
                faults.append(str(error))
        require_none(faults)
        self.width = one_width({file: shape[1] for file, shape in shapes.items()})

    @staticmethod
    def in_order(files: Sequence[Path]) -> list[Path]:
        """Return the files as given."""
        return list(files)

    def blocks(self) -> Iterator[Block]:
        """Yield all rows; see `ActivationFiles`."""
        for number, file in enumerate(self.files):
            matrix = _matrix(file)
            for start in range(0, len(matrix), BLOCK_ROWS):
                rows = matrix[start : start + BLOCK_ROWS]
                yield Block(
                    document=np.full(len(rows), number),
                    position=np.arange(start, start + len(rows)),
                    token_id=np.full(len(rows), UNKNOWN),
                    read=partial(np.array, rows),
                )


def _matrix(file: Path) -> Shaped[np.ndarray, "rows width"]:
    """Map a file's array into memory."""
    try:
        array = np.lib.format.open_memmap(file, mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{file} is not a whole .npy file of numbers ({error}); save it again") from None
    if array.dtype == BARE_BFLOAT16:
        array = array.view(ml_dtypes.bfloat16)
    elif array.dtype.newbyteorder("=") not in FLOATS:
        raise InputError(f"{file} is of {array.dtype}; save activations as float16, bfloat16, float32 or float64")
    if array.ndim != 2:
        raise InputError(f"{file} has shape {list(array.shape)}; save one row per token, [rows, width]")
    return array
