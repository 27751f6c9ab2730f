"""Reads GGUF files: metadata becomes a Hugging Face config, tensors are dequantised one at a time (extra `gguf`).

llama.cpp stores query and key rows with the two halves of each head's rotary pairs interleaved; they are put back in
Hugging Face order, which is the order that our rotation expects.
"""

from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from saejax.errors import InputError
from saejax.models.config import TransformerConfig
from saejax.models.families import FAMILIES, Family, read_config
from saejax.models.weights import Dtype, LoadedModel, assemble

CONFIG_KEYS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}


class GGUFCheckpoint:
    """One GGUF file as a checkpoint: tensors by their Hugging Face names, as float32.

    Attributes:
        path: the file.
        metadata: its key-value pairs.
        family: the family of its architecture.
        config: the model's shape.
    """

    def __init__(self, path: Path) -> None:
        """Map a file and read its metadata.

        Raises:
            InputError: the `gguf` package is absent, the file is not GGUF, or its architecture is not supported.
        """
        reader = open_reader(path)
        self.path = path
        self.metadata: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
        architecture = str(self.metadata.get("general.architecture"))
        known = ", ".join(name for name, family in FAMILIES.items() if any(weight.gguf for weight in family.weights))
        if architecture not in known.split(", "):
            raise InputError(f"{path}: architecture {architecture} is not supported; supported are {known}")
        self.family: Family = FAMILIES[architecture]
        self._stored: dict[str, Any] = {tensor.name: tensor for tensor in reader.tensors}
        self.config: TransformerConfig = read_config(self.family, self._fields())
        layers = range(self.config.n_layers)
        name_of = {w.gguf.format(n): w.theirs.format(n) for w in self.family.weights if w.gguf for n in layers}
        self._tensors: dict[str, Any] = {name_of.get(name, name): tensor for name, tensor in self._stored.items()}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor by its Hugging Face name; unknown ones keep their own."""
        return {name: tuple(int(n) for n in tensor.shape[::-1]) for name, tensor in self._tensors.items()}

    def read(self, name: str) -> np.ndarray:
        """Return one tensor as float32.

        Raises:
            InputError: its quantisation is not one that the `gguf` package can undo.
        """
        from gguf import quants

        tensor = self._tensors[name]
        try:
            values = quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        except NotImplementedError:
            kind = tensor.tensor_type.name
            raise InputError(f"{self.path}: {name} is {kind}, which gguf cannot dequantise; use another file") from None
        heads = {"q_proj.weight": self.config.n_heads, "k_proj.weight": self.config.n_kv_heads}
        for ending, count in heads.items():
            if name.endswith(ending):
                return split_pairs(values, count)
        return values

    def _fields(self) -> dict[str, Any]:
        """Return the metadata as the fields of a Hugging Face `config.json`."""
        prefix = self.metadata["general.architecture"]
        fields = {theirs: self.metadata.get(f"{prefix}.{key}") for key, theirs in CONFIG_KEYS.items()}
        fields = {name: value for name, value in fields.items() if value is not None}
        if "token_embd.weight" not in self._stored:
            raise InputError(f"{self.path} lacks token_embd.weight; name a file that holds a whole model")
        fields["vocab_size"] = int(self._stored["token_embd.weight"].shape[1])
        fields["tie_word_embeddings"] = "output.weight" not in self._stored
        scaling = self.metadata.get(f"{prefix}.rope.scaling.type", "none")
        fields["rope_scaling"] = None
        if scaling != "none":
            factor = float(self.metadata.get(f"{prefix}.rope.scaling.factor", 1.0))
            fields["rope_scaling"] = {"rope_type": scaling, "factor": factor}
        turned = self.metadata.get(f"{prefix}.rope.dimension_count")
        if turned and "num_attention_heads" in fields and "hidden_size" in fields:
            width = fields.get("head_dim", fields["hidden_size"] // fields["num_attention_heads"])
            fields["partial_rotary_factor"] = turned / width
        return fields


def open_reader(path: Path) -> Any:
    """Open a GGUF file with the `gguf` package.

    Raises:
        InputError: the package or the file is absent, or the file is not whole.
    """
    require_gguf()
    import gguf

    try:
        return gguf.GGUFReader(path)
    except (ValueError, IndexError) as error:
        raise InputError(f"{path} is not a whole GGUF file ({error}); copy it again") from None


def require_gguf() -> None:
    """Make sure that the `gguf` package is there.

    Raises:
        InputError: it is not.
    """
    import importlib.util

    if importlib.util.find_spec("gguf") is None:
        raise InputError('GGUF files need the package gguf; pip install "saejax[gguf]"')


def split_pairs(rows: np.ndarray, heads: int) -> np.ndarray:
    """Bring the rows of each head from llama.cpp's order (0, h, 1, h + 1, ...) to 0, 1, ..., h, h + 1, ...

    Args:
        rows: query or key matrix, `[heads * d_head, d_model]`; h is d_head / 2.
        heads: how many heads its rows hold.
    """
    return rows.reshape(heads, -1, 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def load_gguf(path: Path, dtype: Dtype = "float32", mesh: Mesh | None = None) -> LoadedModel:
    """Load the model of a GGUF file, dequantised.

    Args:
        path: the file.
        dtype: type of the weights in memory.
        mesh: devices to spread them over; the first device alone when None.

    Raises:
        InputError: the file, its architecture or its tensors are not what this can read.
    """
    checkpoint = GGUFCheckpoint(path)
    model = assemble(checkpoint.family, checkpoint.config, checkpoint, str(path), dtype, mesh)
    return LoadedModel(checkpoint.family, model, (path,))
