"""Checkpoints that are pickles, `pytorch_model.bin`: read only where that is asked for, and then tensors alone.

Unpickling runs what the file says. torch's loader for weights alone refuses all but tensors and plain values.
"""

import importlib.util
import pickle
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from saejax.artifacts import read_json
from saejax.errors import InputError

PICKLE_FILE = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"


def pickle_files(folder: Path) -> list[Path]:
    """Return the pickles of a model folder, shards in order of their names; none where it has none.

    Raises:
        InputError: one that its index lists is missing.
    """
    if (folder / PICKLE_INDEX).exists():
        names = sorted(set(read_json(folder / PICKLE_INDEX)["weight_map"].values()))
        missing = [name for name in names if not (folder / name).exists()]
        if missing:
            raise InputError(f"{folder} lacks {', '.join(missing)} that {PICKLE_INDEX} lists; copy the folder again")
        return [folder / name for name in names]
    return [folder / PICKLE_FILE] if (folder / PICKLE_FILE).exists() else []


class PickledFolder:
    """The pickles of a model folder, memory-mapped by torch."""

    def __init__(self, folder: Path) -> None:
        """Read the tensors' names and shapes.

        Raises:
            InputError: torch is absent, there are no pickles, or one is broken or holds more than tensors.
        """
        if importlib.util.find_spec("torch") is None:
            raise InputError('pickled checkpoints need the package torch; pip install "saejax[torch]"')
        import torch

        self.files = pickle_files(folder)
        if not self.files:
            raise InputError(f"{folder} holds no {PICKLE_FILE}; leave allow_pickle out")
        self._tensors: dict[str, Any] = {}
        for file in self.files:
            try:
                self._tensors |= torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
                said = str(error).strip().splitlines()[0]
                raise InputError(f"{file} is no pickle of tensors alone ({said}); get safetensors of it") from None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor by name."""
        return {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def read(self, name: str) -> np.ndarray:
        """Return one tensor."""
        import torch

        tensor = self._tensors[name]
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()
